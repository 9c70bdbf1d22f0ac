package blockdev

import (
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Image is a Device over a file.
//
// A thin image's file has holes: discarded and zeroed ranges give their space back. A thick image's space is reserved
// when it is created and stays: writing to it does not meet a full file system, so a discard only makes zeros.
type Image struct {
	fs    vfs.FS
	path  string
	f     vfs.File
	thick bool
	size  atomic.Int64

	growMu sync.Mutex
	// flushErr is why the image takes no more flushes: after a failed fdatasync the kernel may have dropped the dirty
	// pages and reports success the next time.
	flushErr atomic.Pointer[error]
}

var _ Device = (*Image)(nil)

// ErrShortImage is returned when an image's file is smaller than the volume. Part of the volume is gone: it must come
// back from the peer or a backup, and nothing may be written to it as if it were whole.
var ErrShortImage = fmt.Errorf("image is shorter than its volume")

// ImageOption says what OpenImage should know about an image.
type ImageOption func(*imageOptions)

type imageOptions struct {
	sizeBytes int64
	thick     bool
}

// ExpectSize makes OpenImage fail with ErrShortImage when the file is smaller than the volume, and makes the device
// that size when the file is larger: growing extends the file before the record.
func ExpectSize(bytes int64) ImageOption { return func(o *imageOptions) { o.sizeBytes = bytes } }

// Thick makes the image keep its space when ranges are discarded, and reserve space when it grows.
func Thick(thick bool) ImageOption { return func(o *imageOptions) { o.thick = thick } }

// CreateImage creates an image of zeros, replacing an existing file, and makes it durable with its directory entry.
// After an error, a full file system for one, the file is removed.
func CreateImage(fs vfs.FS, path string, sizeBytes int64, thick bool) (*Image, error) {
	if sizeBytes <= 0 {
		return nil, fmt.Errorf("create image %s: size %d is not positive", path, sizeBytes)
	}
	f, err := fs.Create(path)
	if err != nil {
		return nil, fmt.Errorf("create image: %w", err)
	}
	img, err := imageOf(fs, path, f, sizeBytes, thick)
	if err != nil {
		_ = fs.Remove(path) // the first error says what happened
	}
	return img, err
}

// imageOf makes an image of an empty file, durably with its directory entry. After an error the file is closed.
func imageOf(fs vfs.FS, path string, f vfs.File, sizeBytes int64, thick bool) (*Image, error) {
	img := &Image{fs: fs, path: path, f: f, thick: thick}
	err := img.Grow(sizeBytes)
	if err == nil {
		err = fs.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("create image %s: %w", path, err)
	}
	return img, nil
}

// OpenImage opens an image. Without options it is thin and of its file's size.
func OpenImage(fs vfs.FS, path string, opts ...ImageOption) (*Image, error) {
	var o imageOptions
	for _, opt := range opts {
		opt(&o)
	}
	f, err := fs.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	size, err := f.Size()
	if err == nil && size < o.sizeBytes {
		err = fmt.Errorf("%w: file has %d bytes, volume %d; restore it before using the volume", ErrShortImage, size,
			o.sizeBytes)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open image %s: %w", path, err)
	}
	if o.sizeBytes > 0 {
		size = o.sizeBytes
	}
	img := &Image{fs: fs, path: path, f: f, thick: o.thick}
	img.size.Store(size)
	return img, nil
}

// Path is the file's name as it was opened.
func (i *Image) Path() string { return i.path }

func (i *Image) check(off, n int64) error {
	if err := CheckRange(off, n, i.size.Load()); err != nil {
		return fmt.Errorf("image %s: [%d, +%d) of %d bytes: %w", i.path, off, n, i.size.Load(), err)
	}
	return nil
}

// ReadAt implements Device.
func (i *Image) ReadAt(p []byte, off int64) (int, error) {
	if err := i.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := i.f.ReadAt(p, off)
	if err == io.EOF {
		err = fmt.Errorf("read image %s at %d: %w: the file was cut while in use", i.path, off+int64(n), ErrShortImage)
	}
	return n, err
}

// ReadReadyAt implements ReadyReader.
func (i *Image) ReadReadyAt(p []byte, off int64) bool {
	f, ok := i.f.(vfs.ReadyReader)
	return ok && i.check(off, int64(len(p))) == nil && f.ReadReadyAt(p, off)
}

// WriteAt implements Device.
func (i *Image) WriteAt(p []byte, off int64) (int, error) {
	if err := i.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return i.f.WriteAt(p, off)
}

// Discard implements Device. A thick image keeps its space.
func (i *Image) Discard(off, n int64) error {
	if err := i.check(off, n); err != nil {
		return err
	}
	if i.thick {
		return i.f.ZeroRange(off, n)
	}
	return i.f.PunchHole(off, n)
}

// Zero implements Device. It is the same as Discard: zeroing a thin image must not allocate its holes, or making a file
// system on it would make it thick.
func (i *Image) Zero(off, n int64) error { return i.Discard(off, n) }

// Flush implements Device. After it failed once it fails until the image is opened again.
func (i *Image) Flush() error {
	if err := i.flushErr.Load(); err != nil {
		return *err
	}
	if err := i.f.Datasync(); err != nil {
		return i.flushFailed(err)
	}
	// One that failed while this one ran may have taken the dirty pages with it.
	if err := i.flushErr.Load(); err != nil {
		return *err
	}
	return nil
}

func (i *Image) flushFailed(err error) error {
	err = fmt.Errorf("flush image %s: writes since the last flush may be lost; open it again: %w", i.path, err)
	i.flushErr.CompareAndSwap(nil, &err)
	return err
}

// WriteOut writes what is in the page cache of a range to the disk and waits for that, without a flush of the disk: the
// next Flush has little to do, and other files' flushes wait less. It makes nothing durable. After it failed once,
// Flush fails as well.
func (i *Image) WriteOut(off, n int64) error {
	if err := vfs.WriteOut(i.f, off, n); err != nil {
		return i.flushFailed(err)
	}
	return nil
}

// StartFlush implements FlushStarter.
func (i *Image) StartFlush() {
	if f, ok := i.f.(vfs.WritebackStarter); ok {
		f.StartWriteback(0, 0)
	}
}

// Size implements Device.
func (i *Image) Size() int64 { return i.size.Load() }

// Grow makes the device larger, durably, by zeros. The size it has already is a success, a smaller one an error. When
// it fails the device keeps its size; the file may be larger, which the next try makes use of.
func (i *Image) Grow(sizeBytes int64) error {
	i.growMu.Lock()
	defer i.growMu.Unlock()
	old := i.size.Load()
	switch {
	case sizeBytes < old:
		return fmt.Errorf("grow image %s: %d bytes is less than its %d", i.path, sizeBytes, old)
	case sizeBytes == old:
		return nil
	}
	fileSize, err := i.f.Size()
	if err != nil {
		return err
	}
	if fileSize < sizeBytes {
		if err := i.f.Truncate(sizeBytes); err != nil {
			return fmt.Errorf("grow image %s to %d bytes: %w", i.path, sizeBytes, err)
		}
	}
	if i.thick {
		if err := i.f.Preallocate(old, sizeBytes-old); err != nil {
			return fmt.Errorf("reserve %d bytes for image %s: %w", sizeBytes-old, i.path, err)
		}
	}
	if err := i.Flush(); err != nil {
		return err
	}
	i.size.Store(sizeBytes)
	return nil
}

// reserve allocates the holes of a thick image, durably.
func (i *Image) reserve() error {
	allocated, err := i.AllocatedBytes()
	if err != nil || !i.thick || allocated >= i.Size() {
		return err
	}
	if err := i.f.Preallocate(0, i.Size()); err != nil {
		return fmt.Errorf("reserve %d bytes for image %s: %w", i.Size(), i.path, err)
	}
	return i.Flush()
}

// NextData returns the first extent at or after off that may hold other than zeros, cut at the device's end, or io.EOF.
func (i *Image) NextData(off int64) (start, end int64, err error) {
	start, end, err = i.f.NextData(off)
	if size := i.size.Load(); err == nil && end > size {
		end = size
		if start >= end {
			return 0, 0, io.EOF
		}
	}
	return start, end, err
}

// AllocatedBytes is the space the file takes.
func (i *Image) AllocatedBytes() (int64, error) {
	info, err := i.fs.Stat(i.path)
	if err != nil {
		return 0, err
	}
	return vfs.AllocatedBytes(info)
}

// Close closes the file. It does not flush.
func (i *Image) Close() error { return i.f.Close() }
