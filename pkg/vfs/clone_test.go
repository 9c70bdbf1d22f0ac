package vfs

import (
	"bytes"
	"errors"
	"path/filepath"
	"syscall"
	"testing"
)

// origin writes a file of 1 MiB with data in its second page, synced, and an empty file beside it.
func origin(t *testing.T, fsys FS, dir string) (src, dst File) {
	t.Helper()
	src, err := fsys.Create(filepath.Join(dir, "src"))
	noErr(t, err)
	t.Cleanup(func() { src.Close() })
	noErr(t, src.Truncate(1<<20))
	_, err = src.WriteAt(bytes.Repeat([]byte{'a'}, 4096), 4096)
	noErr(t, err)
	noErr(t, src.Datasync())
	dst, err = fsys.Create(filepath.Join(dir, "dst"))
	noErr(t, err)
	t.Cleanup(func() { dst.Close() })
	// Longer than the origin, with data where that has a hole.
	_, err = dst.WriteAt([]byte("old"), 2<<20)
	noErr(t, err)
	_, err = dst.WriteAt([]byte("old"), 0)
	noErr(t, err)
	noErr(t, dst.Datasync())
	return src, dst
}

func contents(t *testing.T, fsys FS, name string) []byte {
	t.Helper()
	b, err := ReadFile(fsys, name, 1<<30)
	noErr(t, err)
	return b
}

func TestClone(t *testing.T) {
	mem := memWithDir(t, "/dir")
	mem.SetReflink(true)
	for name, fsys := range map[string]FS{
		"mem": mem,
		"err": NewErrFS(mem, func(Op, string) error { return nil }),
		"os":  OS,
	} {
		t.Run(name, func(t *testing.T) {
			dir := "/dir"
			if fsys == OS {
				dir = t.TempDir()
			}
			src, dst := origin(t, fsys, dir)
			want := contents(t, fsys, src.Name())
			err := dst.(Cloner).CloneFrom(src)
			if fsys == OS && errors.Is(err, errors.ErrUnsupported) {
				if size, err := dst.Size(); err != nil || size != 0 {
					t.Errorf("after a refused clone the file has %d bytes, %v", size, err)
				}
				t.Skip("the file system of the temporary directory cannot reflink")
			}
			noErr(t, err)
			// Before anything is written: XFS reports as data what it reserves around a write to shared space.
			if start, end, err := dst.NextData(0); err != nil || start != 4096 || end != 8192 {
				t.Errorf("the clone's data is [%d, %d), %v: holes did not stay holes", start, end, err)
			}
			// Neither sees what is written to the other, from the first write on.
			_, err = src.WriteAt([]byte("src"), 4096)
			noErr(t, err)
			if !bytes.Equal(contents(t, fsys, dst.Name()), want) {
				t.Error("the clone differs from what its origin was")
			}
			_, err = dst.WriteAt([]byte("dst"), 4100)
			noErr(t, err)
			if got := contents(t, fsys, src.Name()); string(got[4096:4104]) != "srcaaaaa" || len(got) != 1<<20 {
				t.Errorf("the origin holds %q", got[4096:4104])
			}
		})
	}
}

func TestCloneRefused(t *testing.T) {
	m := memWithDir(t, "/dir")
	src, dst := origin(t, m, "/dir")
	wantErr(t, dst.(Cloner).CloneFrom(src), errors.ErrUnsupported)
	if size, err := dst.Size(); err != nil || size != 0 {
		t.Errorf("after a refused clone the file has %d bytes, %v", size, err)
	}
	other := memWithDir(t, "/dir")
	other.SetReflink(true)
	foreign, _ := origin(t, other, "/dir")
	m.SetReflink(true)
	wantErr(t, dst.(Cloner).CloneFrom(foreign), errors.ErrUnsupported)
	wantErr(t, src.(Cloner).CloneFrom(src), syscall.EINVAL)
	if got := contents(t, m, "/dir/src"); len(got) != 1<<20 || got[4096] != 'a' {
		t.Error("a clone onto itself damaged the file")
	}
	m.SetCapacity(4096)
	wantErr(t, dst.(Cloner).CloneFrom(src), syscall.ENOSPC)
	if size, err := dst.Size(); err != nil || size != 0 {
		t.Errorf("after a clone without space the file has %d bytes, %v", size, err)
	}
	m.SetCapacity(8192)
	noErr(t, dst.(Cloner).CloneFrom(src))
	failing := NewErrFS(m, func(op Op, _ string) error {
		if op == OpClone {
			return syscall.EIO
		}
		return nil
	})
	a, err := failing.Open("/dir/src")
	noErr(t, err)
	defer a.Close()
	b, err := failing.Open("/dir/dst")
	noErr(t, err)
	defer b.Close()
	wantErr(t, b.(Cloner).CloneFrom(a), syscall.EIO)
}

// TestCloneCrash: a clone is durable after a Datasync, not before, and the crashed file system still can.
func TestCloneCrash(t *testing.T) {
	m := memWithDir(t, "/dir")
	m.SetReflink(true)
	src, dst := origin(t, m, "/dir")
	noErr(t, m.SyncDir("/dir"))
	before := contents(t, m, "/dir/dst")
	noErr(t, dst.(Cloner).CloneFrom(src))
	if got := contents(t, m.CrashClone(CrashConfig{}), "/dir/dst"); !bytes.Equal(got, before) {
		t.Errorf("a clone that was not synced survived a crash: %d bytes", len(got))
	}
	noErr(t, dst.Datasync())
	crashed := m.CrashClone(CrashConfig{})
	if !bytes.Equal(contents(t, crashed, "/dir/dst"), contents(t, m, "/dir/src")) {
		t.Error("a clone that was synced did not survive a crash")
	}
	if !crashed.reflink {
		t.Error("the file system forgot that it can reflink")
	}
}
