package host

import "github.com/slipstream-storage/slipstream/pkg/blockdev"

// Loops attaches files as block devices. It is an interface for the sake of tests without root; the implementation for
// Linux is linuxLoops.
type Loops interface {
	// Attach attaches a file to a free loop device.
	Attach(config blockdev.LoopConfig) (Device, error)
	// List returns all attached loop devices. It reads sysfs only and never touches a backing file, which may be
	// served by a process that is not there.
	List() ([]LoopDevice, error)
	// KeepSpace makes discards of an attached device fail, as attaching it so does.
	KeepSpace(device string) error
	// SetSize changes a device's size limit.
	SetSize(device string, sizeBytes int64) error
	// File returns the file that a device is over. It is not for the replicator's files: it may wait for who serves them.
	File(device string) (blockdev.FileID, error)
	// Detach detaches a device that nothing has open, and returns when it is detached. It leaves one alone that is over
	// another file by now.
	Detach(device LoopDevice) error
}

// LoopDevice is an attached loop device.
type LoopDevice struct {
	Device
	BackingPath string // as the kernel shows it, without symbolic links
	Deleted     bool   // the backing file was removed, or is not where the volume's is any more
	SizeBytes   int64
}
