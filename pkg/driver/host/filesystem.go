package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// Superblock is what the first blocks of a device say is on it.
type Superblock struct {
	// FSType is ext4, xfs, or empty when there is neither.
	FSType string
	UUID   string
	// SizeBytes is how much of the device the file system takes, as of its last checkpoint.
	SizeBytes int64
}

// Usage of a mounted file system.
type Usage struct {
	TotalBytes, AvailableBytes, UsedBytes    int64
	TotalInodes, AvailableInodes, UsedInodes int64
}

// FileSystems makes, checks and grows file systems. It is an interface for the sake of tests without root; the
// implementation for Linux is linuxFileSystems.
type FileSystems interface {
	// Superblock reads what is on a device.
	Superblock(device string) (Superblock, error)
	// Blank reports whether the first and the last MiB of a device are zeros.
	Blank(device string) (bool, error)
	// Make formats a device. force overwrites what mkfs recognises as a file system.
	Make(ctx context.Context, device string, f FormatSpec, force bool) error
	// Check repairs what can be repaired without loss. The file system is not mounted.
	Check(ctx context.Context, device, fsType string) error
	// Grow grows a mounted file system to its device's size; one that has it already is left alone.
	Grow(ctx context.Context, device, mountPath, fsType string) error
	// Freeze writes out a mounted file system and makes writers wait until Thaw; what it wrote is in the device's file. It
	// fails for one that is frozen already.
	Freeze(ctx context.Context, mountPath, device string) error
	// Thaw ends a freeze; errNotFrozen without one.
	Thaw(mountPath string) error
	// ShutDown reports whether the file system mounted on path has shut itself down and says so only when it is asked. It
	// is answered from memory, without waiting for the device.
	ShutDown(path string) bool
	// Usage of the file system mounted on path.
	Usage(path string) (Usage, error)
	// DeviceSize is a block device's size in bytes.
	DeviceSize(device string) (int64, error)
	// SetDeviceReadOnly makes later opens of a block device for writing fail, or succeed again.
	SetDeviceReadOnly(device string, readOnly bool) error
}

// FormatSpec says how a device is formatted.
type FormatSpec struct {
	FSType string
	UUID   string
	// KeepSpace keeps mkfs from discarding: a thick image would lose the space that was reserved for it.
	KeepSpace bool
}

// MkfsArgs returns the program and its arguments, without the device.
//
// The file system's UUID is chosen here rather than by mkfs: so it is in the durable record before the first byte is
// written, and what is found later can be told from a foreign file system.
func (f FormatSpec) MkfsArgs(force bool) (program string, args []string) {
	switch f.FSType {
	case capability.XFS:
		args = []string{"-q", "-m", "uuid=" + f.UUID}
		if f.KeepSpace {
			args = append(args, "-K")
		}
		if force {
			args = append(args, "-f")
		}
		return "mkfs.xfs", args
	default:
		// -m0: no blocks are reserved for root; there is no system on the volume that would need them.
		args = []string{"-q", "-m0", "-U", f.UUID}
		if f.KeepSpace {
			// Inode tables that the kernel zeroes later, it zeroes by punching holes.
			args = append(args, "-E", "nodiscard,lazy_itable_init=0")
		}
		if force {
			args = append(args, "-F")
		}
		return "mkfs.ext4", args
	}
}

// Places in the superblocks. Both file systems keep theirs at a fixed place for compatibility's sake.
const (
	superblockReadBytes = 4096

	xfsMagicOffset     = 0 // "XFSB", big-endian
	xfsBlockSizeOffset = 4 // bytes
	xfsBlocksOffset    = 8
	xfsUUIDOffset      = 32

	extBlocksOffset     = 1024 + 0x4  // little-endian
	extBlockSizeOffset  = 1024 + 0x18 // as a shift of 1 KiB
	extMagicOffset      = 1024 + 0x38
	extMagic            = 0xEF53
	extIncompatOffset   = 1024 + 0x60
	extIncompat64Bit    = 0x80
	extUUIDOffset       = 1024 + 0x68
	extBlocksHighOffset = 1024 + 0x150 // with extIncompat64Bit
)

// readSuperblock looks for the two file systems that the driver makes.
//
// blkid is not asked: its exit code 2 stands for "nothing there" and for "ambiguous" and for "could not be read" alike,
// and taking all three for blank has cost others their data.
func readSuperblock(r io.ReaderAt) (Superblock, error) {
	b := make([]byte, superblockReadBytes)
	if _, err := r.ReadAt(b, 0); err != nil {
		return Superblock{}, err
	}
	asUUID := func(off int) string { return uuid.UUID(b[off : off+16]).String() }
	switch {
	case bytes.Equal(b[xfsMagicOffset:xfsMagicOffset+4], []byte("XFSB")):
		blocks, blockSize := binary.BigEndian.Uint64(b[xfsBlocksOffset:]), binary.BigEndian.Uint32(b[xfsBlockSizeOffset:])
		return Superblock{FSType: capability.XFS, UUID: asUUID(xfsUUIDOffset), SizeBytes: sizeOf(blocks, uint64(blockSize))},
			nil
	case binary.LittleEndian.Uint16(b[extMagicOffset:]) == extMagic:
		blocks := uint64(binary.LittleEndian.Uint32(b[extBlocksOffset:]))
		if binary.LittleEndian.Uint32(b[extIncompatOffset:])&extIncompat64Bit != 0 {
			blocks |= uint64(binary.LittleEndian.Uint32(b[extBlocksHighOffset:])) << 32
		}
		blockSize := uint64(1024) << binary.LittleEndian.Uint32(b[extBlockSizeOffset:])
		return Superblock{FSType: capability.Ext4, UUID: asUUID(extUUIDOffset), SizeBytes: sizeOf(blocks, blockSize)}, nil
	}
	return Superblock{}, nil
}

// sizeOf is 0 for numbers that no file system has: they come from a disk.
func sizeOf(blocks, blockSizeBytes uint64) int64 {
	high, low := bits.Mul64(blocks, blockSizeBytes)
	if high != 0 || low > math.MaxInt64 {
		return 0
	}
	return int64(low)
}

// blankProbeBytes is read at either end of a device. That is where every file system, partition table and volume
// manager keeps its signature.
const blankProbeBytes = int64(1) << 20

func readBlank(r io.ReaderAt, sizeBytes int64) (bool, error) {
	b := make([]byte, min(blankProbeBytes, sizeBytes))
	for _, off := range []int64{0, sizeBytes - int64(len(b))} {
		if _, err := r.ReadAt(b, off); err != nil {
			return false, fmt.Errorf("read %s at %d: %w", words.Count(len(b), "byte"), off, err)
		}
		for _, c := range b {
			if c != 0 {
				return false, nil
			}
		}
	}
	return true, nil
}

// withDevice opens a device for reading.
func withDevice(device string, f func(*os.File) error) error {
	file, err := os.Open(device)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := f(file); err != nil {
		return fmt.Errorf("%s: %w", device, err)
	}
	return nil
}

// ErrNotFrozen is returned by FileSystems.Thaw for a file system that is not frozen.
var ErrNotFrozen = errors.New("file system is not frozen")
