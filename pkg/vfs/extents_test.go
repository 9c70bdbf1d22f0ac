package vfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// fiemapAnswer builds an answer of FIEMAP from logical, physical, length and flags of its extents.
func fiemapAnswer(extents ...[4]uint64) []byte {
	order := binary.NativeEndian
	buf := make([]byte, fiemapHeaderBytes+len(extents)*fiemapExtentBytes)
	order.PutUint32(buf[20:], uint32(len(extents)))
	for i, e := range extents {
		b := buf[fiemapHeaderBytes+i*fiemapExtentBytes:]
		order.PutUint64(b[0:], e[0])
		order.PutUint64(b[8:], e[1])
		order.PutUint64(b[16:], e[2])
		order.PutUint32(b[40:], uint32(e[3]))
	}
	return buf
}

func TestDecodeFiemap(t *testing.T) {
	got, err := decodeFiemap(fiemapAnswer([4]uint64{0, 1 << 20, 4096, fiemapShared},
		[4]uint64{8192, 2 << 20, 8192, fiemapShared},
		[4]uint64{16384, 3 << 20, 4096, 0}, [4]uint64{20480, 4 << 20, 4096, fiemapShared | 0x800}, [4]uint64{24576,
			math.MaxUint64, 4096, fiemapShared | 1}), 4096)
	want := []Extent{{Off: 8192, Len: 8192, Physical: 2 << 20, Shared: true}, {Off: 16384, Len: 4096},
		{Off: 20480, Len: 4096}, {Off: 24576, Len: 4096}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	if got, err := decodeFiemap(fiemapAnswer(), 0); len(got) != 0 || err != nil {
		t.Errorf("no extents: %v, %v", got, err)
	}
	for name, buf := range map[string][]byte{
		"short":         make([]byte, 31),
		"too many":      fiemapAnswer([4]uint64{0, 0, 4096, 0})[:fiemapHeaderBytes+fiemapExtentBytes-1],
		"empty extent":  fiemapAnswer([4]uint64{0, 0, 0, 0}),
		"overlap":       fiemapAnswer([4]uint64{0, 0, 8192, 0}, [4]uint64{4096, 0, 8192, 0}),
		"descending":    fiemapAnswer([4]uint64{8192, 0, 4096, 0}, [4]uint64{0, 0, 4096, 0}),
		"too far":       fiemapAnswer([4]uint64{1 << 63, 0, 4096, 0}),
		"too long":      fiemapAnswer([4]uint64{4096, 0, math.MaxInt64, 0}),
		"before offset": fiemapAnswer([4]uint64{0, 0, 4096, 0}),
	} {
		if got, err := decodeFiemap(buf, 4096); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzFiemap: whatever the kernel says, what comes out is ascending, does not overlap, and ends behind the offset.
func FuzzFiemap(f *testing.F) {
	f.Add(fiemapAnswer([4]uint64{0, 1 << 20, 4096, fiemapShared}, [4]uint64{8192, 2 << 20, 8192, 0}), int64(0))
	f.Add(fiemapAnswer([4]uint64{1 << 63, 1 << 63, 1 << 63, 0xffff}), int64(4096))
	f.Add(fiemapAnswer(), int64(math.MaxInt64))
	f.Fuzz(func(t *testing.T, buf []byte, off int64) {
		if off < 0 {
			return
		}
		extents, err := decodeFiemap(buf, off)
		if err != nil {
			return
		}
		at := int64(0)
		for _, e := range extents {
			if e.Off < at || e.Len <= 0 || e.End() <= off || e.Physical < 0 || (!e.Shared && e.Physical != 0) {
				t.Fatalf("%+v behind %d, asked for what ends behind %d", e, at, off)
			}
			at = e.End()
		}
	})
}

func TestExtentsUnsupported(t *testing.T) {
	m := memWithDir(t, "/dir")
	f, err := NewErrFS(m, func(Op, string) error { return nil }).Create("/dir/f")
	noErr(t, err)
	defer f.Close()
	_, err = f.(ExtentLister).Extents(0)
	wantErr(t, err, errors.ErrUnsupported)
	failing, err := NewErrFS(OS, func(op Op, _ string) error {
		if op == OpExtents {
			return syscall.EIO
		}
		return nil
	}).Create(filepath.Join(t.TempDir(), "f"))
	noErr(t, err)
	defer failing.Close()
	_, err = failing.(ExtentLister).Extents(0)
	wantErr(t, err, syscall.EIO)
}

// TestExtentsOfClones: on XFS, what two clones share is where they say, in as many calls as it takes, and what one of
// them wrote is not shared.
func TestExtentsOfClones(t *testing.T) {
	at := testenv.MountFS(t, "mkfs.xfs", "-q", "-m", "reflink=1")
	src, err := OS.Create(filepath.Join(at, "src"))
	noErr(t, err)
	defer src.Close()
	const pieces = 3*fiemapBatch + 7
	for i := range int64(pieces) {
		_, err = src.WriteAt(bytes.Repeat([]byte{1}, 4096), i*16384)
		noErr(t, err)
	}
	dst, err := OS.Create(filepath.Join(at, "dst"))
	noErr(t, err)
	defer dst.Close()
	noErr(t, dst.(Cloner).CloneFrom(src))
	all := func(f File) []Extent {
		t.Helper()
		var all []Extent
		for off := int64(0); ; {
			batch, err := f.(ExtentLister).Extents(off)
			noErr(t, err)
			if len(batch) == 0 {
				return all
			}
			all = append(all, batch...)
			off = batch[len(batch)-1].End()
		}
	}
	// XFS reserved space between the pieces while they were written. It is not shared, and not cloned.
	before := slices.DeleteFunc(all(src), func(e Extent) bool { return !e.Shared })
	if diff := cmp.Diff(before, all(dst)); diff != "" || len(before) != pieces {
		t.Fatalf("%d extents, of %d: %s", len(before), pieces, diff)
	}
	for i, e := range before {
		if e.Off != int64(i)*16384 || e.Len != 4096 {
			t.Fatalf("extent %d of a clone: %+v", i, e)
		}
	}
	_, err = dst.WriteAt(bytes.Repeat([]byte{2}, 4096), 5*16384)
	noErr(t, err)
	// The origin's block is no longer shared when the clone's write has been given one of its own, and that is when its
	// dirty pages go to the disk: asking for the clone's extents waits for that.
	for _, f := range []File{dst, src} {
		batch, err := f.(ExtentLister).Extents(5*16384 + 100)
		noErr(t, err)
		if len(batch) == 0 || batch[0].Off != 5*16384 || batch[0].Shared {
			t.Errorf("%s: after a write to the clone: %+v", f.Name(), batch)
		}
	}
}
