package blockdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestCloneImage(t *testing.T) {
	fsys := vfs.NewMem()
	img, err := CreateImage(fsys, "/a", 64<<10, false)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	if _, err := img.WriteAt([]byte("content"), 32<<10); err != nil {
		t.Fatal(err)
	}
	if err := CloneImage(fsys, "/a", "/b", 64<<10, 64<<10); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	fsys.SetReflink(true)
	if err := CloneImage(fsys, "/a", "/b", 128<<10, 128<<10); !errors.Is(err, ErrShortImage) {
		t.Fatal(err)
	}
	// What is behind the volume's size is cut off before the clone is made larger.
	if err := CloneImage(fsys, "/a", "/b", 32<<10, 128<<10); err != nil {
		t.Fatal(err)
	}
	after := fsys.CrashClone(vfs.CrashConfig{})
	data, err := vfs.ReadFile(after, "/b", 1<<30)
	if err != nil || len(data) != 128<<10 || !vfs.AllZero(data) {
		t.Fatalf("%d bytes, zeros %t, %v", len(data), vfs.AllZero(data), err)
	}
	if err := CloneImage(fsys, "/a", "/b", 64<<10, 128<<10); err != nil {
		t.Fatal(err)
	}
	data, err = vfs.ReadFile(fsys.CrashClone(vfs.CrashConfig{}), "/b", 1<<30)
	if err != nil || len(data) != 128<<10 || string(data[32<<10:32<<10+7]) != "content" {
		t.Fatalf("%d bytes, %v", len(data), err)
	}
}

// TestImageCopy: whatever a copy is interrupted by, the run that goes on from what was told makes it the same as the
// source, with its holes.
func TestImageCopy(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		mem := vfs.NewMem()
		const size = 200 << 20
		source, err := CreateImage(mem, "/source", size, false)
		if err != nil {
			rt.Fatal(err)
		}
		want := map[int64][]byte{}
		for range rng.IntN(40) {
			p := make([]byte, 4096*(1+rng.IntN(64)))
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			if rng.IntN(4) == 0 {
				clear(p)
			}
			off := rng.Int64N((size-int64(len(p)))/4096) * 4096
			if _, err := source.WriteAt(p, off); err != nil {
				rt.Fatal(err)
			}
			want[off] = nil
		}
		if err := source.Flush(); err != nil {
			rt.Fatal(err)
		}
		source.Close()
		target := rapid.SampledFrom([]int64{size, size + 4096, 2 * size}).Draw(rt, "target")
		thick := rapid.Bool().Draw(rt, "thick") && target == size
		told := int64(0)
		copyOf := func(fsys vfs.FS) *ImageCopy {
			return &ImageCopy{FS: fsys, Source: "/source", Target: "/target", SourceBytes: size, TargetBytes: target,
				Thick: thick, CopiedBytes: told, syncBytes: 1 << 20,
				Progress: func(n int64) error {
					if n < told && n != 0 {
						return fmt.Errorf("test: told %d after %d", n, told)
					}
					told = n
					return nil
				}}
		}
		for range rng.IntN(4) {
			left := 1 + rng.IntN(60)
			failing := vfs.NewErrFS(mem, func(vfs.Op, string) error {
				if left--; left == 0 {
					return errors.New("test: interrupted")
				}
				return nil
			})
			if err := copyOf(failing).Run(context.Background()); err == nil {
				break
			}
			if rng.IntN(2) == 0 {
				mem = mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
			}
			if rng.IntN(4) == 0 { // what can be gone on with is not there any more
				if err := mem.Remove("/target"); err != nil && !errors.Is(err, fs.ErrNotExist) {
					rt.Fatal(err)
				}
			}
		}
		if err := copyOf(mem).Run(context.Background()); err != nil {
			rt.Fatal(err)
		}
		if told != size {
			rt.Fatalf("told %d", told)
		}
		after := mem.CrashClone(vfs.CrashConfig{})
		compare(rt, after, size, target, want)
		info, err := after.Stat("/target")
		if err != nil {
			rt.Fatal(err)
		}
		origin, err := after.Stat("/source")
		if err != nil {
			rt.Fatal(err)
		}
		a, _ := vfs.AllocatedBytes(info)
		b, _ := vfs.AllocatedBytes(origin)
		if thick && a < target || !thick && a > b {
			rt.Fatalf("the copy takes %d bytes, its source %d, thick %t", a, b, thick)
		}
	})
}

// compare reads what was written, and the holes in between where they begin.
func compare(rt *rapid.T, fsys vfs.FS, size, target int64, written map[int64][]byte) {
	a, err := fsys.OpenReadOnly("/source")
	if err != nil {
		rt.Fatal(err)
	}
	defer a.Close()
	b, err := fsys.OpenReadOnly("/target")
	if err != nil {
		rt.Fatal(err)
	}
	defer b.Close()
	if n, err := b.Size(); err != nil || n != target {
		rt.Fatalf("the copy has %d bytes, %v", n, err)
	}
	x, y := make([]byte, 512<<10), make([]byte, 512<<10)
	for off := range written {
		n := min(int64(len(x)), size-off)
		if _, err := a.ReadAt(x[:n], off); err != nil {
			rt.Fatal(err)
		}
		if _, err := b.ReadAt(y[:n], off); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(x[:n], y[:n]) {
			rt.Fatalf("the copy differs within %d bytes at %d", n, off)
		}
	}
}

// TestImageCopyBegunAnew: a copy that was begun anew and interrupted before it told anything has nothing of what the
// earlier run had copied. A target that cannot be opened is not begun anew.
func TestImageCopyBegunAnew(t *testing.T) {
	const size = 8 << 20
	mem := vfs.NewMem()
	want := bytes.Repeat([]byte("content."), size/8)
	source, err := CreateImage(mem, "/source", size, false)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if _, err := source.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	told := int64(0)
	failing := vfs.Op("")
	fsys := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == failing && name == "/target" {
			return errors.New("test: interrupted")
		}
		return nil
	})
	run := func(stopAt int64) error {
		c := ImageCopy{FS: fsys, Source: "/source", Target: "/target", SourceBytes: size, TargetBytes: size,
			CopiedBytes: told, syncBytes: 1 << 20,
			Progress: func(n int64) error {
				told = n
				if n == stopAt {
					return errors.New("test: interrupted")
				}
				return nil
			}}
		return c.Run(context.Background())
	}
	if err := run(4 << 20); err == nil || told != 4<<20 {
		t.Fatalf("told %d, %v", told, err)
	}
	failing = vfs.OpOpen
	if err := run(0); err == nil || told != 4<<20 {
		t.Fatalf("with a target that cannot be opened: told %d, %v", told, err)
	}
	if err := mem.Remove("/target"); err != nil {
		t.Fatal(err)
	}
	failing = vfs.OpWrite // by now the new target has its size
	if err := run(-1); err == nil || told != 0 {
		t.Fatalf("begun anew: told %d, %v", told, err)
	}
	failing = ""
	if err := run(-1); err != nil {
		t.Fatal(err)
	}
	if got, err := vfs.ReadFile(mem, "/target", 1<<30); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the copy differs, %v", err)
	}
}

// TestImageCopyWritesOut: a copy has each chunk written to the disk before the next one, also between its syncs, and
// ends if that fails.
func TestImageCopyWritesOut(t *testing.T) {
	mem := vfs.NewMem()
	source, err := CreateImage(mem, "/source", 8<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if _, err := source.WriteAt(bytes.Repeat([]byte{7}, 5<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	lost := errors.New("lost")
	for _, failure := range []error{nil, lost} {
		waiting, writes := 0, 0
		fsys := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
			switch {
			case name != "/target":
			case op == vfs.OpWrite:
				if waiting++; waiting > 1 {
					t.Errorf("%d chunks wait for the disk", waiting)
				}
				writes++
			case op == vfs.OpWriteOut:
				waiting = 0
				return failure
			}
			return nil
		})
		run := ImageCopy{FS: fsys, Source: "/source", Target: "/target", SourceBytes: 8 << 20, TargetBytes: 8 << 20}
		if err := run.Run(context.Background()); !errors.Is(err, failure) {
			t.Errorf("%v, want %v", err, failure)
		}
		if failure == nil && (writes != 5 || waiting != 0) {
			t.Errorf("%d writes, %d wait for the disk", writes, waiting)
		}
	}
}

func TestImageCopyStops(t *testing.T) {
	fsys := vfs.NewMem()
	img, err := CreateImage(fsys, "/source", 1<<20, false)
	if err != nil {
		t.Fatal(err)
	}
	img.Close()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	run := ImageCopy{FS: fsys, Source: "/source", Target: "/target", SourceBytes: 1 << 20, TargetBytes: 1 << 20}
	if err := run.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	run.SourceBytes = 2 << 20
	run.TargetBytes = 2 << 20
	// A source without content is not read, so its size does not matter; one that ends within its content does.
	if err := run.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}
