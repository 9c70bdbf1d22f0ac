package host

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCanonicalPath(t *testing.T) {
	dir := CanonicalDir(t.TempDir())
	for _, name := range []string{"a/b", "c"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o750); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"dir": "a/b", "up": "dir/..", "new": "dir/../new", "loop": "loop",
		"slash": "/", "self": "."} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"c": "c", "c/": "c", "c/none": "c/none", "none/none": "none/none", "dir": "a/b", "dir/": "a/b",
		"dir/none": "a/b/none",
		"up":       "a", "new": "a/new", "self": ".", "slash": "/", "loop": "loop",
	} {
		if want != "/" {
			want = filepath.Join(dir, want)
		}
		if got := CanonicalPath(dir + "/" + path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}
