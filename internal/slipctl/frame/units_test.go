package frame

import "testing"

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "17": 17, "512Ki": 512 << 10, "64Mi": 64 << 20, "1Gi": 1 << 30,
		"2Ti": 2 << 40} {
		if got, err := ParseBytes(s); err != nil || got != want {
			t.Errorf("parseBytes(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"", "Gi", "-1", "1G", "1.5Gi", "9999999999Ti", "1 Gi"} {
		if got, err := ParseBytes(s); err == nil {
			t.Errorf("parseBytes(%q) = %d", s, got)
		}
	}
}

func TestFormats(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1536: "1.50 KiB",
		1 << 30: "1.00 GiB", 1020 << 20: "1.00 GiB", 300 << 20: "300 MiB"} {
		if got := FormatBytes(n); got != want {
			t.Errorf("formatBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for s, want := range map[float64]string{0: "0 ms", 0.0124: "12 ms", 1.5: "1.5 s", 90: "1m30s"} {
		if got := FormatSeconds(s); got != want {
			t.Errorf("formatSeconds(%v) = %q, want %q", s, got, want)
		}
	}
}
