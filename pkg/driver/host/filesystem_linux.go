package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// No program here has a time limit: how long they take depends on the file system and its device, and one that is ended
// by a limit begins anew with the next call. They end with ctx, which is that of work in the background.

type linuxFileSystems struct{}

func (linuxFileSystems) Superblock(device string) (sb Superblock, err error) {
	err = withDevice(device, func(f *os.File) error {
		sb, err = readSuperblock(f)
		return err
	})
	return sb, err
}

func (l linuxFileSystems) Blank(device string) (blank bool, err error) {
	size, err := l.DeviceSize(device)
	if err != nil {
		return false, err
	}
	err = withDevice(device, func(f *os.File) error {
		blank, err = readBlank(f, size)
		return err
	})
	return blank, err
}

func (linuxFileSystems) Make(ctx context.Context, device string, spec FormatSpec, force bool) error {
	if err := blockdev.ValidateFSType(spec.FSType); err != nil {
		return fmt.Errorf("format %s: %w", device, err)
	}
	program, args := spec.MkfsArgs(force)
	if _, err := Run(ctx, program, append(args, device)...); err != nil {
		return err
	}
	// mkfs syncs, but through its own descriptor and not with the same care everywhere. The record that follows says
	// "formatted" permanently, so what it speaks of has to be on stable storage first.
	return withDevice(device, func(f *os.File) error { return f.Sync() })
}

// e2fsck's exit code is a sum of bits; these two mean that the file system is sound now.
const (
	fsckCorrected = 1
	fsckReboot    = 2
)

// Check preens ext4. XFS replays its log when it is mounted, and xfs_repair may lose what a person could still save, so
// it is never run unasked.
func (linuxFileSystems) Check(ctx context.Context, device, fsType string) error {
	if fsType != capability.Ext4 {
		return nil
	}
	output, err := Run(ctx, "e2fsck", "-p", device)
	if err == nil {
		return nil
	}
	var failure *CommandError
	if errors.As(err, &failure) && failure.ExitCode > 0 && failure.ExitCode&^(fsckCorrected|fsckReboot) == 0 {
		klog.InfoS("Repaired a file system", "device", device, "output", output)
		return nil
	}
	return err
}

func (linuxFileSystems) Grow(ctx context.Context, device, mountPath, fsType string) error {
	var err error
	switch fsType {
	case capability.Ext4:
		if _, err = Run(ctx, "resize2fs", device); err != nil && !CanGrowMountedExt4() {
			err = fmt.Errorf("%w; ext4 is grown while it is mounted by a process with CAP_SYS_RESOURCE only: give it to the "+
				"driver", err)
		}
	case capability.XFS:
		_, err = Run(ctx, "xfs_growfs", "-d", mountPath)
	default:
		err = fmt.Errorf("file system %q on %s cannot be grown", fsType, device)
	}
	return err
}

// CanGrowMountedExt4 reports whether this process has CAP_SYS_RESOURCE, which the kernel wants for that. A privileged
// container has it; some sandboxes take it away even from root. XFS asks for CAP_SYS_ADMIN, without which nothing
// could be mounted.
func CanGrowMountedExt4() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return true // not known: let the kernel say
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

// ShutDown is for XFS, which has no word for it in the mount table. The root's inode is in memory as long as it is
// mounted, and XFS answers EIO about it only when it is shut down.
func (linuxFileSystems) ShutDown(path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Lstat(path, &st), unix.EIO)
}

func (linuxFileSystems) Usage(path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, fmt.Errorf("statfs %s: %w", path, err)
	}
	unit := int64(st.Bsize)
	return Usage{
		TotalBytes:      int64(st.Blocks) * unit,
		AvailableBytes:  int64(st.Bavail) * unit,
		UsedBytes:       int64(st.Blocks-st.Bfree) * unit,
		TotalInodes:     int64(st.Files),
		AvailableInodes: int64(st.Ffree),
		UsedInodes:      int64(st.Files - st.Ffree),
	}, nil
}

func (linuxFileSystems) DeviceSize(device string) (size int64, err error) {
	err = withDevice(device, func(f *os.File) error {
		// Seeking a block device knows its size without the ioctl's unsafe pointer.
		size, err = f.Seek(0, io.SeekEnd)
		return err
	})
	return size, err
}

func (linuxFileSystems) SetDeviceReadOnly(device string, readOnly bool) error {
	value := 0
	if readOnly {
		value = 1
	}
	return withDevice(device, func(f *os.File) error {
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.BLKROSET, value); err != nil {
			return fmt.Errorf("BLKROSET %d: %w", value, err)
		}
		return nil
	})
}
