package host

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// linuxMounter mounts in the process's own namespace. File systems go through mount(8), which knows the option strings
// that people write into StorageClasses; everything else is system calls.
//
// mount-utils' Mounter is not used: it has no deadlines, so a mount that hangs would block its volume permanently.
type linuxMounter struct{}

func (linuxMounter) Mounts() ([]MountEntry, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read the mount table: %w", err)
	}
	entries := make([]MountEntry, len(infos))
	for i, info := range infos {
		entries[i] = MountEntry{
			Mountpoint: info.Mountpoint,
			Source:     info.Source,
			Device:     fmt.Sprintf("%d:%d", info.Major, info.Minor),
			Root:       info.Root,
			FSType:     info.FSType,
			ReadOnly:   slices.Contains(strings.Split(info.Options, ","), "ro"),
			Stopped:    stopped(info.VFSOptions),
		}
	}
	return entries, nil
}

// stopped looks through the options of a file system, rather than of a mount of it, for one that says that it takes no
// writes. ext4 has emergency_ro since Linux 6.15, and ro before. XFS says nothing in its options.
func stopped(options string) string {
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "ro", "emergency_ro", "shutdown":
			return o
		}
	}
	return ""
}

// Mount takes the types that volumes can have and no others, and mount runs no helper (/sbin/mount.<type>) for them:
// whatever a record says, nothing but mount(2) is reached.
func (linuxMounter) Mount(ctx context.Context, device, target, fsType string, options []string) error {
	if err := blockdev.ValidateFSType(fsType); err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	args := []string{"-i", "-t", fsType}
	if len(options) > 0 {
		args = append(args, "-o", strings.Join(options, ","))
	}
	_, err := Run(ctx, "mount", append(args, "--", device, target)...)
	return err
}

// Bind clones the mount detached, sets it read-only there, and only then attaches it. bind and remount, as mount(8)
// does it, would leave a writable mount behind if the driver died between the two.
func (linuxMounter) Bind(source, target string, readOnly bool) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", source, err)
	}
	defer unix.Close(fd)
	if readOnly {
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("mount_setattr read-only of %s: %w", source, err)
		}
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount %s to %s: %w", source, target, err)
	}
	return nil
}

func (linuxMounter) Unmount(target string) error {
	if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("umount %s: %w", target, err)
	}
	return nil
}
