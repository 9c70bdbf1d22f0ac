package vfs

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// TestAllocatedTogether writes a file of 1 MiB, clones it and writes to the clone: what both have is one MiB and what
// was written.
func TestAllocatedTogether(t *testing.T) {
	mem := memWithDir(t, "/dir")
	mem.SetReflink(true)
	for name, fsys := range map[string]FS{"mem": mem, "err": NewErrFS(mem, func(Op, string) error {
		return nil
	}), "os": OS, "xfs": OS} {
		t.Run(name, func(t *testing.T) {
			dir := "/dir"
			switch name {
			case "os":
				dir = t.TempDir()
			case "xfs":
				dir = testenv.MountFS(t, "mkfs.xfs", "-q", "-m", "reflink=1")
			}
			const size, part = 1 << 20, 64 << 10
			file := func(name string) File {
				f, err := fsys.Create(filepath.Join(dir, name))
				noErr(t, err)
				t.Cleanup(func() { f.Close() })
				return f
			}
			a, b := file("a"), file("b")
			_, err := a.WriteAt(bytes.Repeat([]byte{1}, size), 0)
			noErr(t, err)
			noErr(t, a.Datasync())
			together := func() int64 {
				n, err := fsys.(SharedSpaceReporter).AllocatedTogether([]string{a.Name(), b.Name(), filepath.Join(dir, "missing")})
				noErr(t, err)
				return n
			}
			if n := together(); n < size || n > size+part {
				t.Errorf("one file of %d bytes takes %d", size, n)
			}
			shares := fsys == OS
			if err := b.(Cloner).CloneFrom(a); errors.Is(err, errors.ErrUnsupported) {
				shares = false
				_, err = b.WriteAt(bytes.Repeat([]byte{1}, size), 0)
				noErr(t, err)
			} else {
				noErr(t, err)
			}
			_, err = b.WriteAt(bytes.Repeat([]byte{2}, part), 0)
			noErr(t, err)
			noErr(t, b.Datasync())
			want := int64(2 * size)
			if shares {
				want = size + part
			}
			// XFS copies a few blocks around the ones that were written.
			if n := together(); n < want || n > want+2*part {
				t.Errorf("the two files take %d bytes, want %d", n, want)
			}
		})
	}
}

func TestUnionBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ranges []blockRange
		var covered [64]bool
		for range rapid.IntRange(0, 12).Draw(t, "ranges") {
			start := rapid.IntRange(0, 63).Draw(t, "start")
			end := rapid.IntRange(start, 64).Draw(t, "end")
			ranges = append(ranges, blockRange{uint64(start), uint64(end)})
			for i := start; i < end; i++ {
				covered[i] = true
			}
		}
		want := int64(0)
		for _, c := range covered {
			if c {
				want++
			}
		}
		if got := unionBytes(ranges); got != want {
			t.Fatalf("%v: %d, want %d", ranges, got, want)
		}
	})
}
