package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// FSType is the type of every shim mount in /proc/self/mountinfo; the mount's source is the volume id.
	FSType = "fuse.slipstream"
	// FileName is the name of the one file below the mount point.
	FileName = "volume"
)

// prepareMountPoint makes path a directory that nothing is mounted on and returns it with its parent's symbolic links
// resolved, as mountinfo names it.
//
// Only parents are ever looked at with stat. A mount of ours that is found at path has no descriptor left from
// which it can be served (a process that holds one calls Adopt instead of Mount). So its connection is aborted and it
// is detached. MNT_FORCE aborts first; without that a detach could wait for the writeback of pages that no process
// takes.
func prepareMountPoint(path, volumeID string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("mount point %q of volume %q is not an absolute path", path, volumeID)
	}
	path = filepath.Clean(path)
	parent, base := filepath.Split(path)
	if base == "" {
		return "", fmt.Errorf("mount point %q of volume %q cannot be the root directory", path, volumeID)
	}
	parent = filepath.Clean(parent)
	shims, err := mountinfo.GetMounts(mountinfo.FSTypeFilter(FSType))
	if err != nil {
		return "", fmt.Errorf("mount point of volume %q: %w", volumeID, err)
	}
	for _, m := range shims {
		if parent == m.Mountpoint || strings.HasPrefix(parent, m.Mountpoint+"/") {
			return "", fmt.Errorf("mount point %q of volume %q lies inside the mount of volume %q at %q", path, volumeID,
				m.Source, m.Mountpoint)
		}
	}
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", fmt.Errorf("mount point of volume %q: %w", volumeID, err)
	}
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return "", fmt.Errorf("mount point of volume %q: %w", volumeID, err)
	}
	path = filepath.Join(parent, base)

	for range 64 { // mounts may be stacked; more than a few are another program's endless loop
		m, err := topMount(path)
		if err != nil {
			return "", fmt.Errorf("mount point of volume %q: %w", volumeID, err)
		}
		if m == nil {
			if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
				return "", fmt.Errorf("mount point of volume %q: %w", volumeID, err)
			}
			return path, nil
		}
		if m.FSType != FSType || m.Source != volumeID {
			return "", fmt.Errorf("mount point %q of volume %q is in use by a mount of type %s, source %q: unmount it or "+
				"choose another directory", path, volumeID, m.FSType, m.Source)
		}
		klog.InfoS("Detaching a shim mount that is not served any more", "volume", volumeID, "mountPoint", path, "device",
			deviceOf(m))
		if err := unix.Unmount(path, unix.MNT_FORCE|unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return "", fmt.Errorf("detach the dead mount of volume %q at %q: %w", volumeID, path, err)
		}
	}
	return "", fmt.Errorf("mount point %q of volume %q: detached 64 mounts and there are more", path, volumeID)
}

// topMount returns the uppermost mount at exactly path, or nil. It reads mountinfo only, which lists stacked mounts
// from the bottom up.
func topMount(path string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false })
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, nil
	}
	return all[len(all)-1], nil
}

func deviceOf(m *mountinfo.Info) string {
	return strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor)
}

// mountFUSE opens /dev/fuse and mounts it. The kernel sends INIT on its own; nothing here waits for its answer.
//
// allow_other with default_permissions lets the kernel check the file's mode (root only): without the former a loop
// device's or a container's root in another user namespace is refused, without the latter every user who can reach the
// directory may open the volume.
func mountFUSE(path, volumeID string) (*os.File, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("mount volume %q: open /dev/fuse: %w", volumeID, err)
	}
	dev := os.NewFile(uintptr(fd), "/dev/fuse")
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions", fd, os.Getuid(),
		os.Getgid())
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(volumeID, path, FSType, flags, opts); err != nil {
		dev.Close()
		return nil, fmt.Errorf("mount volume %q at %q: %w", volumeID, path, err)
	}
	return dev, nil
}

// Unmount unmounts a shim mount. It waits until dirty pages have reached the server, so it is best called by another
// process than the one that serves (see the package comment). EBUSY means that a loop device or a process still has the
// file open: detach it first.
//
// A path that no shim is mounted on is not an error.
func Unmount(mountPoint string) error {
	m, err := topMount(mountPoint)
	if err != nil {
		return fmt.Errorf("unmount %q: %w", mountPoint, err)
	}
	if m == nil {
		return nil
	}
	if m.FSType != FSType {
		return fmt.Errorf("unmount %q: it is a mount of type %s, not %s", mountPoint, m.FSType, FSType)
	}
	if err := unix.Unmount(mountPoint, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount volume %q at %q: %w", m.Source, mountPoint, err)
	}
	return nil
}

// Abort ends the FUSE connection of the mount with the given "major:minor": everything that waits for it, and
// everything that comes later, fails with an I/O error. It is the last resort when neither the serving process nor
// the keeper can be brought to serve. The mount itself stays until it is unmounted.
//
// It works without /sys/fs/fuse/connections being mounted: it opens the control file system detached, which changes
// nothing for other processes.
func Abort(device string) error {
	_, minor, ok := strings.Cut(device, ":")
	if !ok || !deviceNumber.MatchString(device) {
		return fmt.Errorf("abort FUSE connection: device %q is not major:minor", device)
	}
	fsfd, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("abort FUSE connection %s: open fusectl: %w", device, err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return fmt.Errorf("abort FUSE connection %s: create fusectl: %w", device, err)
	}
	mfd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("abort FUSE connection %s: mount fusectl: %w", device, err)
	}
	defer unix.Close(mfd)
	fd, err := unix.Openat(mfd, minor+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("abort FUSE connection %s: %w", device, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("1")); err != nil {
		return fmt.Errorf("abort FUSE connection %s: %w", device, err)
	}
	return nil
}
