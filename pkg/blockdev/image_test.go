package blockdev

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func newImage(t *testing.T, fsys vfs.FS, size int64, thick bool) *Image {
	t.Helper()
	img, err := CreateImage(fsys, "/image", size, thick)
	noErr(t, err)
	t.Cleanup(func() { img.Close() })
	return img
}

func allocated(t *testing.T, img *Image) int64 {
	t.Helper()
	n, err := img.AllocatedBytes()
	noErr(t, err)
	return n
}

func TestImageSpace(t *testing.T) {
	const size = 1 << 20
	thin := newImage(t, vfs.NewMem(), size, false)
	thick := newImage(t, vfs.NewMem(), size, true)
	steps := []struct {
		name        string
		do          func(*Image) error
		thin, thick int64
	}{
		{"created", func(*Image) error { return nil }, 0, size},
		{"written", func(i *Image) error { _, err := i.WriteAt(make([]byte, 65536), 0); return err }, 65536, size},
		{"discarded", func(i *Image) error { return i.Discard(0, 32768) }, 32768, size},
		{"zeroed", func(i *Image) error { return i.Zero(32768, 16384) }, 16384, size},
		{"zeroed holes", func(i *Image) error { return i.Zero(0, size) }, 0, size},
		{"grown", func(i *Image) error { return i.Grow(2 * size) }, 0, 2 * size},
	}
	for _, s := range steps {
		noErr(t, s.do(thin))
		noErr(t, s.do(thick))
		if got := allocated(t, thin); got != s.thin {
			t.Errorf("%s: thin image has %d bytes allocated, want %d", s.name, got, s.thin)
		}
		if got := allocated(t, thick); got != s.thick {
			t.Errorf("%s: thick image has %d bytes allocated, want %d", s.name, got, s.thick)
		}
	}
}

// TestThickImageNeedsNoSpace: whatever is done to a thick image, a full file system does not matter.
func TestThickImageNeedsNoSpace(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(1 << 20)
	img := newImage(t, m, 1<<20, true)
	for range 2 {
		_, err := img.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0)
		noErr(t, err)
		noErr(t, img.Discard(4096, 65536))
	}
	err := img.Grow(2 << 20)
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("growing a thick image on a full file system: %v", err)
	}
	if img.Size() != 1<<20 {
		t.Errorf("size is %d after a failed Grow", img.Size())
	}
	m.SetCapacity(2 << 20)
	noErr(t, img.Grow(2<<20))
	_, err = img.WriteAt([]byte{1}, 2<<20-1)
	noErr(t, err)
}

func TestCreateImageFails(t *testing.T) {
	m := vfs.NewMem()
	m.SetCapacity(4096)
	_, err := CreateImage(m, "/image", 1<<20, true)
	wantErrText(t, err, "/image")
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("error %v, want ENOSPC", err)
	}
	if _, err := m.Stat("/image"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half an image is left: %v", err)
	}
	for _, size := range []int64{0, -1} {
		_, err = CreateImage(m, "/image", size, false)
		wantErrText(t, err, "/image", "not positive")
	}
}

func TestCreateImageIsDurable(t *testing.T) {
	m := vfs.NewMem()
	img := newImage(t, m, 1<<20, false)
	c := m.CrashClone(vfs.CrashConfig{})
	after, err := OpenImage(c, "/image", ExpectSize(1<<20))
	noErr(t, err)
	noErr(t, after.Close())
	// Growing is, too, and so is what was flushed.
	noErr(t, img.Grow(2<<20))
	_, err = img.WriteAt([]byte("x"), 2<<20-1)
	noErr(t, err)
	noErr(t, img.Flush())
	after, err = OpenImage(m.CrashClone(vfs.CrashConfig{}), "/image", ExpectSize(2<<20))
	noErr(t, err)
	defer after.Close()
	buf := make([]byte, 1)
	_, err = after.ReadAt(buf, 2<<20-1)
	noErr(t, err)
	if buf[0] != 'x' {
		t.Error("a flushed write is lost")
	}
}

func TestShortImage(t *testing.T) {
	m := vfs.NewMem()
	img := newImage(t, m, 1<<20, false)
	_, err := OpenImage(m, "/image", ExpectSize(1<<20+4096))
	if !errors.Is(err, ErrShortImage) {
		t.Fatalf("got %v, want ErrShortImage", err)
	}
	wantErrText(t, err, "/image", "1048576", "1052672")
	// One that is larger was being grown; the device is as large as its record.
	noErr(t, img.Grow(2<<20))
	_, err = img.WriteAt([]byte("behind"), 1<<20)
	noErr(t, err)
	same, err := OpenImage(m, "/image", ExpectSize(1<<20))
	noErr(t, err)
	defer same.Close()
	if same.Size() != 1<<20 {
		t.Errorf("size is %d", same.Size())
	}
	if _, _, err := same.NextData(0); err != io.EOF {
		t.Errorf("NextData shows what is behind the end: %v", err)
	}
	_, err = same.WriteAt([]byte("x"), 1<<20)
	if !errors.Is(err, ErrOutOfRange) {
		t.Errorf("write behind the end: %v", err)
	}
	// One that is cut while open is noticed when it is read.
	f, err := m.Open("/image")
	noErr(t, err)
	defer f.Close()
	noErr(t, f.Truncate(4096))
	if _, err := same.ReadAt(make([]byte, 8192), 0); !errors.Is(err, ErrShortImage) {
		t.Errorf("read of a cut image: %v", err)
	}
}

func TestImageGrow(t *testing.T) {
	img := newImage(t, vfs.NewMem(), 1<<20, false)
	noErr(t, img.Grow(1<<20))
	wantErrText(t, img.Grow(4096), "/image", "less than")
	if img.Size() != 1<<20 {
		t.Errorf("size is %d", img.Size())
	}
}

// TestFailedFlushStays: after an fdatasync that failed, a later one that works proves nothing.
func TestFailedFlushStays(t *testing.T) {
	boom := errors.New("boom")
	failures := 0
	m := vfs.NewErrFS(vfs.NewMem(), func(op vfs.Op, _ string) error {
		if op == vfs.OpDatasync && failures > 0 {
			failures--
			return boom
		}
		return nil
	})
	img := newImage(t, m, 1<<20, false)
	noErr(t, img.Flush())
	failures = 1
	for range 3 {
		if err := img.Flush(); !errors.Is(err, boom) {
			t.Fatalf("flush: %v, want the first error", err)
		}
	}
	again, err := OpenImage(m, "/image")
	noErr(t, err)
	defer again.Close()
	noErr(t, again.Flush())
}
