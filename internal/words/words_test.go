package words

import "testing"

func TestCount(t *testing.T) {
	for _, tt := range []struct {
		n          int
		noun, want string
	}{
		{0, "volume", "0 volumes"},
		{1, "volume", "1 volume"},
		{2, "volume", "2 volumes"},
		{-1, "byte", "-1 bytes"},
		{1, "copy", "1 copy"},
		{2, "copy", "2 copies"},
		{2, "key", "2 keys"},
		{2, "access mode", "2 access modes"},
		{2, "address", "2 addresses"},
		{2, "index", "2 indexes"},
	} {
		if got := Count(tt.n, tt.noun); got != tt.want {
			t.Errorf("%d, %q: %q, want %q", tt.n, tt.noun, got, tt.want)
		}
	}
	if got := Count(uint64(1<<63), "ordinal"); got != "9223372036854775808 ordinals" {
		t.Error(got)
	}
	if one, two := Choose(1, "is", "are"), Choose(2, "is", "are"); one != "is" || two != "are" {
		t.Error(one, two)
	}
}
