// Package untrusted checks and cleans text that comes from outside: from a call, a peer's message or a file on disk.
// Names are checked and refused; free text, such as another site's reason for a refusal, is cut and escaped before it
// is stored, logged or printed.
//
// What a record as a whole may say is checked by the record's own Validate (blockdev.VolumeRecord, core.Meta), which
// calls this package. The functions have no state and are safe for concurrent use.
package untrusted

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxNameBytes bounds a DNS name: of a site, or of an object in Kubernetes.
	MaxNameBytes = 253
	// MaxReasonBytes bounds the text of an error or refusal of a peer that is kept, logged or shown. It is the size in
	// bytes after escaping.
	MaxReasonBytes = 1 << 10
	// maxQuotedBytes is how much of a refused value an error shows.
	maxQuotedBytes = 80
)

// Escape returns s with everything that a terminal, a log or protobuf could take for more than text written as an
// escape (\n, \x1b, \u202e), and cut to at most maxBytes bytes, of which there should be 32 or more; a cut text ends
// with "... (N bytes)". The result is valid UTF-8 and printable, and escaping it again with the same bound changes
// nothing.
func Escape(s string, maxBytes int) string {
	suffix := fmt.Sprintf("... (%d bytes)", len(s))
	var b strings.Builder
	cut := 0 // as much of b as leaves room for the suffix
	for rest := s; rest != ""; {
		r, size := utf8.DecodeRuneInString(rest)
		piece := rest[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, rest[0])
		case !unicode.IsPrint(r):
			piece = strconv.QuoteRuneToASCII(r)
			piece = piece[1 : len(piece)-1]
		}
		if b.Len()+len(piece) > maxBytes {
			return b.String()[:cut] + suffix
		}
		b.WriteString(piece)
		if b.Len()+len(suffix) <= maxBytes {
			cut = b.Len()
		}
		rest = rest[size:]
	}
	return b.String()
}

// Reason is Escape for the reason of a refusal or an error that came from a peer.
func Reason(s string) string { return Escape(s, MaxReasonBytes) }

// CheckText says what is wrong with a text that is kept as it is: longer than maxBytes, not UTF-8, or with characters
// that are not printable. What names it in the error. The empty text is fine.
func CheckText(what, s string, maxBytes int) error {
	if len(s) > maxBytes {
		return fmt.Errorf("%s has %d bytes, the limit is %d", what, len(s), maxBytes)
	}
	for i, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return fmt.Errorf("%s \"%s\" has a character at byte %d that is not printable", what, Escape(s, maxQuotedBytes), i)
		}
	}
	return nil
}

// CheckCSIName says what is wrong with a name that a container orchestrator chose: not 1 to maxBytes bytes of UTF-8, or
// with one of the control characters that the CSI specification bans, which are all but tab, line feed and carriage
// return. So such a name is escaped where it is shown.
func CheckCSIName(what, s string, maxBytes int) error {
	if s == "" || len(s) > maxBytes {
		return fmt.Errorf("%s has %d bytes, want 1 to %d", what, len(s), maxBytes)
	}
	for i, r := range s {
		if r == utf8.RuneError || unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r' {
			return fmt.Errorf("%s \"%s\" has a control character, or none of UTF-8, at byte %d", what,
				Escape(s, maxQuotedBytes), i)
		}
	}
	return nil
}

// CheckName says what is wrong with a name as DNS and Kubernetes have them (RFC 1123, subdomain): 1 to 253 of a-z, 0-9,
// '-' and '.', beginning and ending with a letter or digit. The empty name is wrong.
func CheckName(what, s string) error {
	alphanumeric := func(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
	ok := s != "" && len(s) <= MaxNameBytes && alphanumeric(s[0]) && alphanumeric(s[len(s)-1])
	for i := 0; ok && i < len(s); i++ {
		ok = alphanumeric(s[i]) || s[i] == '-' || s[i] == '.'
	}
	if !ok {
		return fmt.Errorf(
			"%s \"%s\": want 1 to %d of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit", what,
			Escape(s, maxQuotedBytes), MaxNameBytes)
	}
	return nil
}
