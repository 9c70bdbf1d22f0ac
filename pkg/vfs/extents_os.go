package vfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

var _ ExtentLister = (*osFile)(nil)

// linux/fiemap.h. All fields are in the machine's byte order.
const (
	fsIocFiemap = 0xC020660B

	fiemapHeaderBytes = 32
	fiemapExtentBytes = 56

	fiemapFlagSync = 1

	// An extent with any of these is not where fe_physical says, or not as the file reads it.
	fiemapNotPlain = 0x2 | // UNKNOWN
		0x4 | // DELALLOC
		0x8 | // ENCODED
		0x80 | // DATA_ENCRYPTED
		0x100 | // NOT_ALIGNED
		0x200 | // DATA_INLINE
		0x400 | // DATA_TAIL
		0x800 // UNWRITTEN
	fiemapShared = 0x2000
)

// fiemapBatch is how many extents one call asks for: 14 KiB of them.
const fiemapBatch = 256

// Extents implements ExtentLister with FIEMAP.
func (f *osFile) Extents(off int64) ([]Extent, error) { return f.fiemap(off, fiemapFlagSync) }

func (f *osFile) fiemap(off int64, flags uint32) ([]Extent, error) {
	if off < 0 {
		return nil, &fs.PathError{Op: "fiemap", Path: f.Name(), Err: unix.EINVAL}
	}
	// uint64s for their alignment.
	words := make([]uint64, (fiemapHeaderBytes+fiemapBatch*fiemapExtentBytes)/8)
	buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	order := binary.NativeEndian
	order.PutUint64(buf[0:], uint64(off))               // fm_start
	order.PutUint64(buf[8:], uint64(math.MaxInt64-off)) // fm_length
	order.PutUint32(buf[16:], flags)
	order.PutUint32(buf[24:], fiemapBatch)
	err := f.control("fiemap", func(fd int) error {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap,
			uintptr(unsafe.Pointer(&words[0]))); errno != 0 {
			return errno
		}
		return nil
	})
	if notSupported(err) || errors.Is(err, unix.ENOTTY) {
		return nil, fmt.Errorf("%w (%v)", &fs.PathError{Op: "fiemap", Path: f.Name(), Err: errors.ErrUnsupported}, err)
	}
	if err != nil {
		return nil, err
	}
	extents, err := decodeFiemap(buf, off)
	if err != nil {
		return nil, &fs.PathError{Op: "fiemap", Path: f.Name(), Err: err}
	}
	return extents, nil
}

// decodeFiemap reads the answer of FIEMAP: the extents that end behind off. The kernel is believed only as far as it
// agrees with itself, because a block that is taken for unchanged and is not would be missing in a backup: extents that
// are empty, overlap or leave the range of an int64 are an error.
func decodeFiemap(buf []byte, off int64) ([]Extent, error) {
	if len(buf) < fiemapHeaderBytes {
		return nil, fmt.Errorf("an answer of %d bytes", len(buf))
	}
	order := binary.NativeEndian
	n := int64(order.Uint32(buf[20:])) // fm_mapped_extents
	if room := int64(len(buf)-fiemapHeaderBytes) / fiemapExtentBytes; n > room {
		return nil, fmt.Errorf("%d extents in an answer with room for %d", n, room)
	}
	var extents []Extent
	at := int64(0)
	for i := range n {
		b := buf[fiemapHeaderBytes+i*fiemapExtentBytes:]
		logical, physical, length := order.Uint64(b[0:]), order.Uint64(b[8:]), order.Uint64(b[16:])
		flags := order.Uint32(b[40:])
		if logical > math.MaxInt64 || length == 0 || length > math.MaxInt64-logical || int64(logical) < at {
			return nil, fmt.Errorf("extent %d is [%d, +%d) behind [.., %d)", i, logical, length, at)
		}
		e := Extent{Off: int64(logical), Len: int64(length)}
		at = e.End()
		if at <= off {
			continue
		}
		if flags&fiemapShared != 0 && flags&fiemapNotPlain == 0 && physical <= math.MaxInt64-length {
			e.Physical, e.Shared = int64(physical), true
		}
		extents = append(extents, e)
	}
	if n > 0 && len(extents) == 0 {
		return nil, fmt.Errorf("%d extents, none of which ends behind %d", n, off)
	}
	return extents, nil
}
