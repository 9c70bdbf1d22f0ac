package untrusted

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

func TestEscape(t *testing.T) {
	for _, tc := range []struct {
		in   string
		max  int
		want string
	}{
		{"", 0, ""},
		{"group shop is at site-b", 100, "group shop is at site-b"},
		{"übergröße", 100, "übergröße"},
		{"a\nb\tc", 100, `a\nb\tc`},
		{"\x1b[2J", 100, `\x1b[2J`},
		{"\u202eevil", 100, `\u202eevil`},
		{"a\xffb", 100, `a\xffb`},
		{"\x00", 100, `\x00`},
		{`C:\n`, 100, `C:\n`},
		{strings.Repeat("x", 40), 40, strings.Repeat("x", 40)},
		{strings.Repeat("x", 41), 40, strings.Repeat("x", 26) + "... (41 bytes)"},
		{strings.Repeat("x", 25) + "ö" + strings.Repeat("x", 25), 40, strings.Repeat("x", 25) + "... (52 bytes)"},
		{strings.Repeat("\n", 30), 40, strings.Repeat(`\n`, 13) + "... (30 bytes)"},
	} {
		if got := Escape(tc.in, tc.max); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.in, got, tc.want)
		}
	}
}

func TestCheckText(t *testing.T) {
	for _, good := range []string{"", "pvc-1", "Größe 1", strings.Repeat("x", 20)} {
		if err := CheckText("name", good, 20); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{strings.Repeat("x", 21), "a\nb", "\x1b[2J", "a\xff", "\u202e", "\ufffd"} {
		if err := CheckText("name", bad, 20); err == nil {
			t.Errorf("%q was taken", bad)
		} else if text := err.Error(); !strings.HasPrefix(text, "name ") || Escape(text, len(text)) != text {
			t.Errorf("%q: the error is %q", bad, text)
		}
	}
}

func TestCheckCSIName(t *testing.T) {
	for _, good := range []string{"pvc-1", "Größe 1", "a\tb\r\n", "\u3000", strings.Repeat("x", 20)} {
		if err := CheckCSIName("name", good, 20); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("x", 21), "a\x00", "\x1b[2J", "\u0085", "a\xff"} {
		if err := CheckCSIName("name", bad, 20); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "site-b", "a.b-c.0", strings.Repeat("x", MaxNameBytes)} {
		if err := CheckName("site", good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", ".a", "a.", "A", "a b", "a\n", "../etc", "ä",
		strings.Repeat("x", MaxNameBytes+1)} {
		if err := CheckName("site", bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// Whatever comes in, what goes out is printable, valid, bounded, and stays as it is.
func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "abc", "\x1b]0;x\a", "\xff\xfe", "\u202e", strings.Repeat("\n", 100)} {
		f.Add(s, 40)
	}
	f.Fuzz(func(t *testing.T, s string, maxBytes int) {
		maxBytes = max(32, min(maxBytes, 1<<16))
		got := Escape(s, maxBytes)
		if len(got) > maxBytes {
			t.Fatalf("%d bytes, the limit was %d", len(got), maxBytes)
		}
		if !utf8.ValidString(got) {
			t.Fatalf("%q is not UTF-8", got)
		}
		for _, r := range got {
			if !unicode.IsPrint(r) {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if again := Escape(got, maxBytes); again != got {
			t.Fatalf("%q becomes %q", got, again)
		}
		if CheckText("x", s, maxBytes) == nil && got != s {
			t.Fatalf("%q is text, and becomes %q", s, got)
		}
	})
}
