package vfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// Whatever has a file's name, opening it neither hangs nor touches anything else, and the error names it.
func TestOpenOfWhatIsNoFile(t *testing.T) {
	opens := map[string]func(name string) (File, error){"Open": OS.Open, "OpenReadOnly": OS.OpenReadOnly,
		"Create": OS.Create}
	for _, odd := range testenv.Odds {
		for how, open := range opens {
			t.Run(odd.Name+"/"+how, func(t *testing.T) {
				outside, name := t.TempDir(), filepath.Join(t.TempDir(), "record")
				if err := odd.Put(name, outside); err != nil {
					t.Fatal(err)
				}
				testenv.Within(t, how, func() {
					f, err := open(name)
					if err == nil {
						defer f.Close()
					}
					var unfit *UnfitError
					if regular := strings.HasSuffix(odd.Name, " file") &&
						!strings.HasPrefix(odd.Name, "link"); regular != (err == nil) {
						t.Errorf("error %v", err)
					} else if !regular && (!errors.As(err, &unfit) || unfit.Path != name) {
						t.Errorf("error %v, want an UnfitError that names %s", err, name)
					}
				})
				if _, err := os.Stat(filepath.Join(outside, "nothing")); !errors.Is(err, fs.ErrNotExist) {
					t.Error("what a link points to was created")
				}
			})
		}
	}
}

func TestReadFileIsBounded(t *testing.T) {
	for name, fsys := range map[string]FS{"OS": OS, "MemFS": NewMem()} {
		path := filepath.Join(t.TempDir(), "file")
		if err := fsys.MkdirAll(filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		if err := WriteFileAtomic(fsys, path, []byte("12345")); err != nil {
			t.Fatal(err)
		}
		if data, err := ReadFile(fsys, path, 5); err != nil || string(data) != "12345" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		var unfit *UnfitError
		if _, err := ReadFile(fsys, path, 4); !errors.As(err, &unfit) || unfit.Path != path {
			t.Errorf("%s: error %v, want an UnfitError that names %s", name, err, path)
		}
	}
}

// A spare is of no account, also what has the name of one.
func TestWriteFileAtomicReplacesAnOddSpare(t *testing.T) {
	for _, odd := range testenv.Odds {
		if odd.Name == "directory" {
			continue // foreign: nothing in it is removed
		}
		name := filepath.Join(t.TempDir(), "record")
		if err := odd.Put(name+TempSuffix, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		testenv.Within(t, "writing", func() {
			if err := WriteFileAtomic(OS, name, []byte("new")); err != nil {
				t.Errorf("%s: %v", odd.Name, err)
			}
		})
		if data, err := ReadFile(OS, name, 10); err != nil || string(data) != "new" {
			t.Errorf("%s: %q, %v", odd.Name, data, err)
		}
	}
}
