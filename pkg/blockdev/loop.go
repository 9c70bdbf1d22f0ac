package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Loop devices are handled by ioctl(2) and sysfs alone: the losetup in a container image may be a busybox that cannot
// do direct I/O, and reports errors as text.
//
// They are attached without autoclear: a raw block volume is not open while no container runs, and would lose its
// device. What keeps them from leaking is the driver, which looks for those that no record has when it starts.

// LoopConfig says how a file becomes a block device.
type LoopConfig struct {
	BackingPath string // absolute
	// Root, if not empty, is the directory that BackingPath is opened below, as /proc/1/root. It is for a process in a
	// mount namespace that ends before the device does, as a container's: the kernel shows a device's file by its path
	// from where the file was opened, and once that namespace is gone nothing is left of the path but its last elements.
	// The file has to have the same path here and there.
	Root           string
	SizeLimitBytes int64 // size of the device; 0: the file's
	BlockSizeBytes int64 // logical block size; 0: the kernel's choice, 512
	ReadOnly       bool
	// KeepSpace makes discards fail; see KeepLoopSpace.
	KeepSpace bool
	// DirectIO bypasses the page cache of the backing file. The file system may not be able to; then attaching fails.
	DirectIO bool
}

const (
	loopControlPath = "/dev/loop-control"
	loopMajor       = 7
)

// Variables, so that tests of what happens behind them need not wait.
var (
	// attachPatience bounds the attempts to find a free device against other processes that take them first.
	attachPatience = 30 * time.Second
	// exclusivePatience is for those that open a new or unmounted device for a moment, as udev's probes do.
	exclusivePatience = 2 * time.Second
	// detachPatience is how long openers are waited for that do not exclude others: probes, and processes that are ending.
	detachPatience = 10 * time.Second
)

// AttachLoop attaches a file to a free loop device and returns the device's path. Several processes may do so at
// once. The device has the size, block size and direct I/O that were asked for, or an error is returned and nothing
// stays attached.
//
// It does not look whether the file is attached already: two devices over one file have two caches that know nothing of
// each other. FindLoops does.
func AttachLoop(cfg LoopConfig) (devPath string, err error) {
	flags := os.O_RDWR
	if cfg.ReadOnly {
		flags = os.O_RDONLY
	}
	backing, err := openBacking(cfg, flags)
	if err != nil {
		return "", fmt.Errorf("attach loop device: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile(loopControlPath, os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("attach loop device to %s: %w", cfg.BackingPath, err)
	}
	defer control.Close()

	lc := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: uint32(cfg.BlockSizeBytes)}
	lc.Info.Sizelimit = uint64(cfg.SizeLimitBytes)
	if cfg.ReadOnly {
		lc.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if cfg.DirectIO {
		lc.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	setFileName(&lc.Info, cfg.BackingPath)

	raced := func(err error) bool {
		// Another process configured the device first, holds it exclusively to detach it, or removed it.
		return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV)
	}
	err = pause.Poll(attachPatience, raced, func() error {
		number, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return fmt.Errorf("no free loop device: %w", err)
		}
		devPath = loopPath(number)
		if err := ensureLoopNode(devPath, number); err != nil {
			return err
		}
		dev, err := os.OpenFile(devPath, flags, 0)
		if err != nil {
			return err
		}
		defer dev.Close()
		if err := unix.IoctlLoopConfigure(int(dev.Fd()), &lc); err != nil {
			return fmt.Errorf("configure %s: %w", devPath, err)
		}
		err = checkLoop(dev, cfg)
		if err == nil {
			err = prepareDiscards(devPath, cfg.KeepSpace)
		}
		if err != nil {
			_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
			dev.Close()
			_ = removeWithoutDiscards(devPath) // the next try meets it again
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("attach loop device to %s: %w", cfg.BackingPath, err)
	}
	return devPath, nil
}

// openBacking opens an image. Links in its directory's path are followed, a link in place of the file is not.
func openBacking(cfg LoopConfig, flags int) (*os.File, error) {
	if cfg.Root == "" {
		return vfs.OpenRegular(cfg.BackingPath, flags, 0)
	}
	root, err := unix.Open(cfg.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root directory %s: %w", cfg.Root, err)
	}
	defer unix.Close(root)
	// Links in the path mean what they mean there.
	fd, err := unix.Openat2(root, cfg.BackingPath,
		&unix.OpenHow{Flags: uint64(flags | vfs.NoSurprises), Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil, fmt.Errorf("open %s below %s: %w", cfg.BackingPath, cfg.Root, err)
	}
	return vfs.AsRegular(fd, cfg.BackingPath)
}

// checkLoop compares a device with what was asked for: the kernel silently falls back to buffered I/O, and silently
// makes the device smaller when the file is.
func checkLoop(dev *os.File, cfg LoopConfig) error {
	size, err := blockDeviceSize(dev)
	if err != nil {
		return err
	}
	if cfg.SizeLimitBytes > 0 && size != cfg.SizeLimitBytes {
		return fmt.Errorf("%w: device has %d bytes, want %d", ErrShortImage, size, cfg.SizeLimitBytes)
	}
	info, err := readLoop(strings.TrimPrefix(dev.Name(), "/dev/"))
	if err != nil {
		return err
	}
	if cfg.Root != "" && info.BackingPath != cfg.BackingPath {
		return fmt.Errorf("below %s the file is %s, here it is %s: both have to see it under the same path, without "+
			"symbolic links",
			cfg.Root, info.BackingPath, cfg.BackingPath)
	}
	if cfg.DirectIO && !info.DirectIO {
		return fmt.Errorf("%s: the kernel refused direct I/O: its file system cannot do it, or not in blocks of %d bytes",
			cfg.BackingPath, info.BlockSizeBytes)
	}
	if cfg.BlockSizeBytes > 0 && info.BlockSizeBytes != cfg.BlockSizeBytes {
		return fmt.Errorf("%s has blocks of %d bytes, want %d", dev.Name(), info.BlockSizeBytes, cfg.BlockSizeBytes)
	}
	return nil
}

func loopPath(number int) string { return fmt.Sprintf("/dev/loop%d", number) }

// ensureLoopNode makes the device's node if the system does not: in a container, /dev is often not a devtmpfs.
func ensureLoopNode(devPath string, number int) error {
	if _, err := os.Lstat(devPath); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := unix.Mknod(devPath, unix.S_IFBLK|0o660, int(unix.Mkdev(loopMajor, uint32(number))))
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make node %s: %w", devPath, err)
	}
	return nil
}

// setFileName fills in the name that the kernel keeps for losetup to show. Nothing depends on it.
func setFileName(info *unix.LoopInfo64, path string) {
	copy(info.File_name[:len(info.File_name)-1], path)
}

// DetachLoop detaches a device and returns when it is gone. A device that is not attached is a success; one that is
// mounted or open stays attached, and is an error that matches unix.EBUSY.
//
// Detaching waits for the device's dirty pages. When its file is served by a process, that process must be alive, and
// must not be the caller.
func DetachLoop(devPath string) error { return detachLoop(devPath, nil) }

// DetachLoopOf is DetachLoop for the case that the device is still attached to that file; otherwise it does nothing,
// because the device may belong to another program by now.
func DetachLoopOf(devPath, backingPath string) error {
	return detachLoop(devPath, func(i LoopInfo) bool { return i.BackingPath == backingPath })
}

func detachLoop(devPath string, still func(LoopInfo) bool) (err error) {
	name := strings.TrimPrefix(devPath, "/dev/")
	busy := func(err error) bool { return errors.Is(err, unix.EBUSY) }
	var before LoopInfo
	err = pause.Poll(exclusivePatience, busy, func() error {
		// O_EXCL fails when the device is mounted; LOOP_CLR_FD would not, and detach it later at the unmount. While
		// the device is held, no program can attach it to another file.
		dev, err := os.OpenFile(devPath, os.O_RDONLY|unix.O_EXCL, 0)
		if err != nil {
			return err
		}
		defer dev.Close()
		if before, err = readLoop(name); err != nil || (still != nil && !still(before)) {
			return err
		}
		return unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENXIO): // not attached, or no such device
		return nil
	case err != nil:
		return fmt.Errorf("detach %s: %w", devPath, err)
	case still != nil && !still(before):
		return nil
	}
	defer func() {
		if ferr := removeWithoutDiscards(devPath); err == nil && ferr != nil {
			err = fmt.Errorf("detach %s: %w", devPath, ferr)
		}
	}()

	// With other openers, who do not exclude us, the kernel has only marked the device to go with the last of them.
	attached := errors.New("still attached")
	err = pause.Poll(detachPatience, func(err error) bool { return err == attached }, func() error {
		now, err := readLoop(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case now.BackingPath != before.BackingPath || !now.AutoClear:
			return nil // detached, and attached again by another program
		}
		return attached
	})
	if err == attached {
		// Otherwise the kernel would detach the device later, when its opener ends.
		err = keepLoop(devPath, before)
		return errors.Join(
			fmt.Errorf("detach %s from %s: a process has it open: %w", devPath, before.BackingPath, unix.EBUSY), err)
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", devPath, err)
	}
	return nil
}

// keepLoop clears the mark that has the kernel detach a device with its last opener.
func keepLoop(devPath string, before LoopInfo) error {
	dev, err := os.OpenFile(devPath, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer dev.Close()
	err = setLoopStatus(dev, before, before.SizeLimitBytes)
	if errors.Is(err, unix.ENXIO) {
		return nil // its last opener went at this moment
	}
	return err
}

// setLoopStatus sets the size limit, and clears autoclear. It does not ask the kernel for the status first, as
// LOOP_GET_STATUS64 stats the backing file, which waits forever if no process serves that file.
func setLoopStatus(dev *os.File, info LoopInfo, sizeLimitBytes int64) error {
	status := unix.LoopInfo64{Offset: uint64(info.OffsetBytes), Sizelimit: uint64(sizeLimitBytes)}
	setFileName(&status, info.BackingPath)
	// EAGAIN: pages came back into the device's cache while the kernel emptied it.
	return pause.Poll(detachPatience, func(err error) bool { return errors.Is(err, unix.EAGAIN) }, func() error {
		return unix.IoctlLoopSetStatus64(int(dev.Fd()), &status)
	})
}

// SetLoopSize changes the size of an attached device, mounted or not. The backing file has to be that large already.
//
// The kernel writes the device's dirty pages first. When its file is served by a process, that process must be alive,
// and must not be the caller. Then the kernel asks for the size of the file (lo_calculate_size, Linux 6.18). If that
// fails, the device has a size of 0 and all I/O fails until the next call. It fails on a FUSE file if this process is
// killed before the server has taken the question, so the file's server must let the kernel remember the size: package
// shim does.
func SetLoopSize(devPath string, sizeBytes int64) error {
	fail := func(err error) error { return fmt.Errorf("set size of %s to %d bytes: %w", devPath, sizeBytes, err) }
	dev, err := os.OpenFile(devPath, os.O_RDONLY, 0)
	if err != nil {
		return fail(err)
	}
	defer dev.Close()
	info, err := readLoop(strings.TrimPrefix(devPath, "/dev/"))
	if err != nil {
		return fail(err)
	}
	if err := setLoopStatus(dev, info, sizeBytes); err != nil {
		return fail(err)
	}
	// The size limit may have been right already, over a file that was too short for it until now.
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fail(err)
	}
	size, err := blockDeviceSize(dev)
	if err != nil {
		return fail(err)
	}
	if size != sizeBytes {
		return fail(fmt.Errorf("%w: it has %d bytes; grow %s first", ErrShortImage, size, info.BackingPath))
	}
	return nil
}
