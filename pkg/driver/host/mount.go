package host

import (
	"context"
	"strings"
)

// MountEntry is a line of /proc/self/mountinfo, as far as it is used here.
type MountEntry struct {
	Mountpoint string
	// Source is the device of a file system, as it was given to mount.
	Source string
	// Device is the device number of the file system: "major:minor".
	Device string
	// Root is the part of the file system that is mounted; for a bind mount of a device node its name in devtmpfs.
	Root     string
	FSType   string
	ReadOnly bool
	// Stopped is why the file system as a whole takes no writes any more, in the kernel's word for it: ro, emergency_ro or
	// shutdown; empty for one that does.
	Stopped string
}

// Mounter mounts and unmounts. It is an interface for the sake of tests without root; the implementation for Linux is
// linuxMounter.
//
// Mounts never touches a mounted file system, so it is safe to call while one of them hangs.
type Mounter interface {
	// Mounts returns all mounts of the process's namespace, in the kernel's order: of two on one mount point the later is
	// on top.
	Mounts() ([]MountEntry, error)
	// Mount mounts a block device with a file system.
	Mount(ctx context.Context, device, target, fsType string, options []string) error
	// Bind mounts a directory or a device node on target, which exists. A read-only one is never visible writable.
	Bind(source, target string, readOnly bool) error
	// Unmount takes away the topmost mount on target. It fails with EBUSY while the mount is in use, and is never lazy:
	// a lazily detached file system would still be written while the next owner formats or deletes the device.
	Unmount(target string) error
}

// MountsAt returns the mounts on a mount point, bottom to top.
func MountsAt(mounts []MountEntry, path string) []MountEntry {
	var at []MountEntry
	for _, m := range mounts {
		if m.Mountpoint == path {
			at = append(at, m)
		}
	}
	return at
}

// MountsOf returns the mounts that show a block device: its file system (by number, which covers bind mounts of it) and
// bind mounts of its node in /dev.
func MountsOf(mounts []MountEntry, device Device) []MountEntry {
	var of []MountEntry
	for _, m := range mounts {
		if m.ShowsDevice(device) {
			of = append(of, m)
		}
	}
	return of
}

func (m MountEntry) ShowsDevice(device Device) bool {
	return m.Device == device.Number || m.IsNodeOf(device)
}

// IsNodeOf reports a bind mount of the device's node. The file system is devtmpfs, or tmpfs where a container runtime
// made its own /dev; Root is then the node's path inside it.
func (m MountEntry) IsNodeOf(device Device) bool {
	if m.FSType != "devtmpfs" && m.FSType != "tmpfs" {
		return false
	}
	return m.Root == "/"+strings.TrimPrefix(device.Path, "/dev/") || m.Root == device.Path
}

// Device is an attached device: its node, and its number in the notation of mountinfo and sysfs.
type Device struct {
	Path   string // /dev/loop7
	Number string // 7:7
}
