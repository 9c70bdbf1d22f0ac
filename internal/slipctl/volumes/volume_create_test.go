package volumes

import "testing"

// A volume that is made from a snapshot has the snapshot's file system; the default of the flag is not asked for.
func TestFileSystem(t *testing.T) {
	for _, tt := range []struct {
		fs    string
		given bool
		from  string
		want  string
	}{
		{"ext4", false, "", "ext4"},
		{"xfs", true, "", "xfs"},
		{"ext4", false, "tail-1-0", ""},
		{"ext4", true, "tail-1-0", "ext4"},
	} {
		if got := fileSystem(tt.fs, tt.given, tt.from); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}
