package vfs

import (
	"path/filepath"
	"testing"
	"time"
)

// A file keeps its identity when it is written and renamed, through a power loss too; a copy under its name has
// another.
func TestIdentity(t *testing.T) {
	for name, fsys := range map[string]FS{"os": OS, "memory": NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := "/"
			if name == "os" {
				dir = t.TempDir()
			}
			path := filepath.Join(dir, "image")
			identity := func(fsys FS, path string) string {
				t.Helper()
				id, err := Identity(fsys, path)
				if err != nil {
					t.Fatal(err)
				}
				return id
			}
			write := func(path, text string) {
				t.Helper()
				if err := WriteFileAtomic(fsys, path, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			write(path, "a")
			first := identity(fsys, path)
			if first == "" {
				t.Skip("this file system does not know when a file was made")
			}
			f, err := fsys.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("b"), 0); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if err := fsys.Rename(path, path+"2"); err != nil {
				t.Fatal(err)
			}
			if got := identity(fsys, path+"2"); got != first {
				t.Errorf("written and renamed it is %s, and was %s", got, first)
			}
			if m, ok := fsys.(*MemFS); ok {
				if err := m.SyncDir(dir); err != nil {
					t.Fatal(err)
				}
				if got := identity(m.CrashClone(CrashConfig{}), path+"2"); got != first {
					t.Errorf("after a power loss it is %s, and was %s", got, first)
				}
			}
			if err := fsys.Remove(path + "2"); err != nil {
				t.Fatal(err)
			}
			if name == "os" {
				time.Sleep(50 * time.Millisecond) // the time of birth is that of the clock's last tick
			}
			write(path+"2", "b")
			if got := identity(fsys, path+"2"); got == first {
				t.Errorf("another file has identity %s, too", got)
			}
		})
	}
}
