package schedule

import (
	"strings"
	"testing"
	"time"
)

func TestRateAt(t *testing.T) {
	const otherwise = 7 << 20
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		schedule, at string // at is UTC
		zone         *time.Location
		want         int64
	}{
		{"", "2026-01-05T12:00:00Z", time.UTC, otherwise},
		{"08:00-18:00=20MiB,*=unlimited", "2026-01-05T07:59:59Z", time.UTC, 0},
		{"08:00-18:00=20MiB,*=unlimited", "2026-01-05T08:00:00Z", time.UTC, 20 << 20},
		{"08:00-18:00=20MiB,*=unlimited", "2026-01-05T17:59:59Z", time.UTC, 20 << 20},
		{"08:00-18:00=20MiB,*=unlimited", "2026-01-05T18:00:00Z", time.UTC, 0},
		{"08:00-18:00=20MiB", "2026-01-05T20:00:00Z", time.UTC, otherwise},
		{"22:00-06:00=64KiB, 06:00-22:00=unlimited", "2026-01-05T23:00:00Z", time.UTC, 64 << 10},
		{"22:00-06:00=64KiB, 06:00-22:00=unlimited", "2026-01-05T05:59:00Z", time.UTC, 64 << 10},
		{"22:00-06:00=64KiB, 06:00-22:00=unlimited", "2026-01-05T06:00:00Z", time.UTC, 0},
		{"22:00-24:00=65536,*=1Gi", "2026-01-05T23:59:00Z", time.UTC, 64 << 10},
		{"22:00-24:00=65536,*=1Gi", "2026-01-05T00:00:00Z", time.UTC, 1 << 30},
		// Without a zone the times are those of the machine.
		{"08:00-09:00=1MiB", "2026-01-05T07:30:00Z", berlin, 1 << 20},
		// A named zone is that, wherever the machine is, in winter and in summer.
		{"zone=Europe/Berlin,08:00-09:00=1MiB", "2026-01-05T07:30:00Z", time.UTC, 1 << 20},
		{"zone=Europe/Berlin,08:00-09:00=1MiB", "2026-07-05T07:30:00Z", time.UTC, otherwise},
		{"08:00-09:00=1MiB,zone=Europe/Berlin", "2026-07-05T06:30:00Z", time.UTC, 1 << 20},
	} {
		s, err := Parse(tc.schedule)
		if err != nil {
			t.Errorf("%q: %v", tc.schedule, err)
			continue
		}
		at, err := time.Parse(time.RFC3339, tc.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.RateAt(at.In(tc.zone), otherwise); got != tc.want {
			t.Errorf("%q at %s: %d, want %d", tc.schedule, tc.at, got, tc.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		",":                                 "FROM-TO=RATE",
		"08:00-18:00":                       "FROM-TO=RATE",
		"zone=UTC":                          "has no window",
		"zone=UTC,zone=UTC,*=1MiB":          "a zone already",
		"zone=Nowhere/Land,*=1MiB":          "no time zone",
		"zone=,*=1MiB":                      "name of a time zone",
		"zone=Local,*=1MiB":                 "name of a time zone",
		"*=1MiB,*=2MiB":                     "all other times already",
		"8:00-18:00=1MiB":                   "time of day",
		"08:00-24:01=1MiB":                  "time of day",
		"08:60-09:00=1MiB":                  "time of day",
		"24:00-01:00=1MiB":                  "23:59",
		"08:00-08:00=1MiB":                  "is empty",
		"08:00=1MiB":                        "want a window",
		"08:00-18:00=1KiB":                  "less than 64 KiB",
		"08:00-18:00=0":                     "less than 64 KiB",
		"08:00-18:00=-1":                    "not a rate",
		"08:00-18:00=1TiB":                  "not a rate",
		"08:00-18:00=9999999999999GiB":      "not a rate",
		"08:00-18:00=1MiB,17:00-19:00=1MiB": "overlaps",
		"22:00-06:00=1MiB,05:00-07:00=1MiB": "overlaps",
		"05:00-07:00=1MiB,22:00-06:00=1MiB": "overlaps",
		"08:00-18:00=1MiB,09:00-10:00=1MiB": "overlaps",
		strings.Repeat(" ", 1025):           "the limit is 1024",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
}

// Any text is read or refused, and what is read has a rate for each minute that it can have.
func FuzzParse(f *testing.F) {
	f.Add("08:00-18:00=20MiB,*=unlimited,zone=UTC")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		for minute := range minutesOfDay {
			at := time.Date(2026, 1, 5, 0, minute, 0, 0, time.UTC)
			if rate := s.RateAt(at, -1); rate < -1 || rate > 0 && rate < MinBytesPerSecond {
				t.Fatalf("%q at %s: %d", text, at, rate)
			}
		}
	})
}
