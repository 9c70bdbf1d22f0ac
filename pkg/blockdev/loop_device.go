package blockdev

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LoopDevice is a Device over /dev/loopN, or any other block device whose discarded ranges read as zeros. It goes
// through the page cache as an application without O_DIRECT does. Discards and zeroing take ranges of whole logical
// blocks.
type LoopDevice struct {
	f        *os.File
	size     atomic.Int64 // as last seen
	flushErr atomic.Pointer[error]
}

var _ Device = (*LoopDevice)(nil)

// OpenLoopDevice opens an attached device. Closing it leaves it attached.
func OpenLoopDevice(devPath string) (*LoopDevice, error) {
	f, err := os.OpenFile(devPath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	d := &LoopDevice{f: f}
	size, err := blockDeviceSize(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	d.size.Store(size)
	return d, nil
}

func blockDeviceSize(f *os.File) (int64, error) {
	var size uint64
	if err := ioctlPointer(f, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, fmt.Errorf("size of %s: %w", f.Name(), err)
	}
	return int64(size), nil
}

// ioctlPointer keeps the descriptor open during the call: Close waits for it.
func ioctlPointer(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			if _, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg)); errno != unix.EINTR {
				return
			}
		}
	})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

func (d *LoopDevice) check(off, n int64) error {
	if err := CheckRange(off, n, d.Size()); err != nil {
		return fmt.Errorf("%s: [%d, +%d) of %d bytes: %w", d.f.Name(), off, n, d.Size(), err)
	}
	return nil
}

// ReadAt implements Device.
func (d *LoopDevice) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.f.ReadAt(p, off)
}

// WriteAt implements Device.
func (d *LoopDevice) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.f.WriteAt(p, off)
}

// Discard implements Device.
func (d *LoopDevice) Discard(off, n int64) error { return d.clear("discard", unix.BLKDISCARD, off, n) }

// Zero implements Device.
func (d *LoopDevice) Zero(off, n int64) error { return d.clear("zero", unix.BLKZEROOUT, off, n) }

func (d *LoopDevice) clear(what string, request uintptr, off, n int64) error {
	if err := d.check(off, n); err != nil || n == 0 {
		return err
	}
	r := [2]uint64{uint64(off), uint64(n)}
	if err := ioctlPointer(d.f, request, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("%s [%d, +%d) of %s: %w", what, off, n, d.f.Name(), err)
	}
	return nil
}

// Flush implements Device.
func (d *LoopDevice) Flush() error {
	if err := d.flushErr.Load(); err != nil {
		return *err
	}
	if err := d.f.Sync(); err != nil {
		d.flushErr.CompareAndSwap(nil, &err)
		return err
	}
	return nil
}

// Size implements Device. It asks the kernel, so that it follows SetLoopSize.
func (d *LoopDevice) Size() int64 {
	if size, err := blockDeviceSize(d.f); err == nil {
		d.size.Store(size)
	}
	return d.size.Load()
}

// Close closes the descriptor.
func (d *LoopDevice) Close() error { return d.f.Close() }
