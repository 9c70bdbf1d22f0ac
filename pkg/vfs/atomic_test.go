package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// TestWriteFileAtomicFails: whatever fails, the old contents stay, and nothing is left over that was not there.
func TestWriteFileAtomicFails(t *testing.T) {
	boom := errors.New("boom")
	for _, op := range []Op{OpOpen, OpWrite, OpTruncate, OpDatasync, OpRename} {
		m := NewMem()
		noErr(t, WriteFileAtomic(m, "/a", []byte("old")))
		failing := NewErrFS(m, func(o Op, _ string) error {
			if o == op {
				return boom
			}
			return nil
		})
		wantErr(t, WriteFileAtomic(failing, "/a", []byte("new")), boom)
		wantContents(t, m, "/a", "old")
		wantNames(t, m, "/", "a", "a"+TempSuffix)
		if op == OpOpen || op == OpTruncate { // of what is there already
			continue
		}
		wantErr(t, WriteFileAtomic(failing, "/b", []byte("new")), boom)
		if names, err := m.ReadDir("/"); err != nil || slices.Contains(names, "b") || op != OpRename && len(names) != 2 {
			t.Errorf("%s failed, and left %q, %v", op, names, err)
		}
	}
}

// TestReplaceWithoutSpace: a file is replaced as often as one likes where there is neither a byte nor an inode left;
// one that is not there cannot be made.
func TestReplaceWithoutSpace(t *testing.T) {
	m := NewMem()
	text := func(n int) []byte { return []byte(strings.Repeat("x", 5000+n%3000)) }
	noErr(t, WriteFileAtomic(m, "/a", text(0)))
	m.Exhaust()
	_, err := m.Create("/b")
	wantErr(t, err, syscall.ENOSPC)
	for i := range 20 {
		noErr(t, WriteFileAtomic(m, "/a", text(i*397)))
		wantContents(t, m, "/a", string(text(i*397)))
	}
	wantErr(t, WriteFileAtomic(m, "/b", nil), syscall.ENOSPC)
	// More than a block longer than it was, and once a block longer.
	wantErr(t, WriteFileAtomic(m, "/a", make([]byte, 30000)), syscall.ENOSPC)
	wantContents(t, m, "/a", string(text(19*397)))
	noErr(t, WriteFileAtomic(m, "/a", make([]byte, 12000)))
	noErr(t, WriteFileAtomic(m, "/a", text(1)))
}

// TestReplaceCrash: versions follow each other, syncs of the directory fail now and then, and power is lost before any
// operation. What is left is whole: the last version that was written without an error, or a later one.
func TestReplaceCrash(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	version := func(i int) string {
		return fmt.Sprintf("%04d %s", i, strings.Repeat(fmt.Sprint(i%10), 1+rng.IntN(9000)))
	}
	m := NewMem()
	noErr(t, WriteFileAtomic(m, "/a", []byte(version(0))))
	settled, begun := 0, map[string]int{}
	crashes := 0
	failing := NewErrFS(m, func(op Op, _ string) error {
		for _, percent := range []int{0, 50, 100} {
			got, err := ReadFile(m.CrashClone(CrashConfig{UnsyncedPercent: percent, RNG: rng}), "/a", 1<<30)
			noErr(t, err)
			i, ok := begun[string(got)]
			if len(begun) > 0 && (!ok || i < settled) {
				t.Fatalf("seed %d: a crash before %s left version %d (known %t), %d was durable", seed, op, i, ok, settled)
			}
			crashes++
		}
		if op == OpSyncDir && rng.IntN(3) == 0 {
			return syscall.EIO
		}
		return nil
	})
	first, err := ReadFile(m, "/a", 1<<30)
	noErr(t, err)
	begun[string(first)] = 0
	for i := 1; i < 60; i++ {
		v := version(i)
		begun[v] = i
		if err := WriteFileAtomic(failing, "/a", []byte(v)); err == nil {
			settled = i
		}
	}
	if settled == 0 || crashes < 500 {
		t.Errorf("seed %d: nothing was tested: settled %d, %d crashes", seed, settled, crashes)
	}
}

// TestInodesRunOut: files and directories take an inode each for as long as they have a name or a handle.
func TestInodesRunOut(t *testing.T) {
	m := memWithDir(t, "/dir")
	total, free, err := m.Inodes("/dir")
	if total != 0 || free != 0 || err != nil {
		t.Errorf("%d of %d free, %v", free, total, err)
	}
	m.SetInodes(4)
	f := create(t, m, "/dir/a", "a")
	noErr(t, m.MkdirAll("/dir/b"))
	_, err = m.Create("/dir/c")
	wantErr(t, err, syscall.ENOSPC)
	if !NoSpace(err) || !NoSpace(fmt.Errorf("on %w", syscall.EDQUOT)) || NoSpace(syscall.EIO) {
		t.Error("NoSpace")
	}
	wantErr(t, m.MkdirAll("/dir/c"), syscall.ENOSPC)
	create(t, m, "/dir/a", "again")
	noErr(t, m.Rename("/dir/a", "/dir/d"))
	noErr(t, m.Remove("/dir/d"))
	_, err = m.Create("/dir/c") // a handle keeps the inode
	wantErr(t, err, syscall.ENOSPC)
	noErr(t, f.Close())
	// One handle of it is left, of the second create.
	if total, free, err = m.CrashClone(CrashConfig{UnsyncedPercent: 100}).Inodes("/"); total != 4 || free != 1 ||
		err != nil {
		t.Errorf("after a crash %d of %d free, %v", free, total, err)
	}
	noErr(t, m.RemoveAll("/dir/b"))
	noErr(t, m.MkdirAll("/dir/c"))
	noErr(t, m.RemoveAll("/dir"))
	if _, free, _ = m.Inodes("/"); free != 2 {
		t.Errorf("%d free", free)
	}
}

// TestReplaceOnFullFileSystems: as TestReplaceWithoutSpace, on real file systems that were filled to the last byte, or
// inode.
func TestReplaceOnFullFileSystems(t *testing.T) {
	for name, mkfs := range map[string][]string{
		"ext4":        {"mkfs.ext4", "-q", "-F", "-m", "0"},
		"ext4 inodes": {"mkfs.ext4", "-q", "-F", "-N", "32"},
		"xfs":         {"mkfs.xfs", "-q", "-m", "reflink=1"},
	} {
		t.Run(name, func(t *testing.T) {
			at := testenv.MountFS(t, mkfs...)
			path := filepath.Join(at, "a")
			noErr(t, WriteFileAtomic(OS, path, make([]byte, 3000)))
			noErr(t, WriteFileAtomic(OS, path, make([]byte, 3000)))
			testenv.Fill(t, at)
			if err := WriteFileAtomic(OS, filepath.Join(at, "b"), make([]byte, 8192)); !NoSpace(err) {
				t.Fatalf("the file system is not full: %v", err)
			}
			for i := range 50 {
				v := bytes.Repeat([]byte{byte(i)}, 3000+i*20)
				noErr(t, WriteFileAtomic(OS, path, v))
				wantContents(t, OS, path, string(v))
			}
		})
	}
}
