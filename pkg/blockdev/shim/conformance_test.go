package shim_test

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// TestConformance runs the suite of all devices on the served file, and on a loop device over it.
func TestConformance(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		requireAll(t)
		blockdevtest.Run(t, "file", func(t *testing.T, size int64) blockdev.Device {
			srv := mount(t, mode, blockdevtest.NewMemDevice(size))
			return openServed(t, srv.Path(), size)
		}, blockdevtest.Options{RandomOps: 500})
		blockdevtest.Run(t, "loop", func(t *testing.T, size int64) blockdev.Device {
			srv := mount(t, mode, blockdevtest.NewMemDevice(size))
			_, loop := attachLoop(t, srv.Path(), size, mode)
			return loop
		}, blockdevtest.Options{ClearGranularityBytes: 4096, RandomOps: 500})
	})
}

// served is the served file as a Device, with the size that a loop device would give it.
type served struct {
	fileDevice
}

func openServed(t *testing.T, path string, size int64) *served {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &served{fileDevice{f: f, size: size}}
}

func (d *served) ReadAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	return d.fileDevice.ReadAt(p, off)
}

func (d *served) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	return d.fileDevice.WriteAt(p, off)
}

func (d *served) Discard(off, n int64) error {
	return d.punch(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *served) Zero(off, n int64) error {
	return d.punch(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *served) punch(mode uint32, off, n int64) error {
	if err := blockdev.CheckRange(off, n, d.size); err != nil {
		return err
	}
	if n == 0 {
		return nil // fallocate(2) refuses it
	}
	if err := unix.Fallocate(int(d.f.Fd()), mode, off, n); err != nil {
		return fmt.Errorf("fallocate mode %#x at %d, %d bytes: %w", mode, off, n, err)
	}
	return nil
}
