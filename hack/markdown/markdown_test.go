package markdown

import (
	"strings"
	"testing"
)

func TestFill(t *testing.T) {
	word := strings.Repeat("ä", 59)
	for _, tt := range []struct{ first, text, want string }{
		{"", "", ""},
		{"", "a  b\nc", "a b c"},
		{"", word + " " + word + " x", word + " " + word + "\nx"},
		{"- ", word + " " + word + " x", "- " + word + "\n  " + word + " x"},
		{"", strings.Repeat("y", 130) + " z ", strings.Repeat("y", 130) + "\nz"},
	} {
		if got := Fill(tt.first, tt.text); got != tt.want {
			t.Errorf("Fill(%q, %q) = %q, want %q", tt.first, tt.text, got, tt.want)
		}
	}
}
