package blockdevtest

import (
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// MemDevice is a Device in memory. Nothing about it survives anything.
type MemDevice struct {
	mu   sync.RWMutex
	data []byte
}

var _ blockdev.Device = (*MemDevice)(nil)

// NewMemDevice returns a device of zeros.
func NewMemDevice(sizeBytes int64) *MemDevice { return &MemDevice{data: make([]byte, sizeBytes)} }

// ReadAt implements Device.
func (d *MemDevice) ReadAt(p []byte, off int64) (int, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if err := blockdev.CheckRange(off, int64(len(p)), int64(len(d.data))); err != nil {
		return 0, err
	}
	return copy(p, d.data[off:]), nil
}

// WriteAt implements Device.
func (d *MemDevice) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := blockdev.CheckRange(off, int64(len(p)), int64(len(d.data))); err != nil {
		return 0, err
	}
	return copy(d.data[off:], p), nil
}

// Discard implements Device; the memory stays.
func (d *MemDevice) Discard(off, n int64) error { return d.Zero(off, n) }

// Zero implements Device.
func (d *MemDevice) Zero(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := blockdev.CheckRange(off, n, int64(len(d.data))); err != nil {
		return err
	}
	clear(d.data[off : off+n])
	return nil
}

// Flush implements Device.
func (d *MemDevice) Flush() error { return nil }

// Size implements Device.
func (d *MemDevice) Size() int64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return int64(len(d.data))
}
