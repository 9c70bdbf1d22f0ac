package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// FIFREEZE and FITHAW of linux/fs.h.
const (
	ioctlFreeze = 0xc0045877
	ioctlThaw   = 0xc0045878
)

// thawTimeout is how long a thaw is waited for. It only takes a lock.
const thawTimeout = 10 * time.Second

// Freeze implements FileSystems. After the freeze the device is flushed: what the file system has written is then in
// the loop device's file and not only on its way through a cache.
//
// It waits for the disk, or for a replicator that is away, in the kernel. When ctx ends first the call returns, and the
// freeze, should it still come about, is undone.
func (linuxFileSystems) Freeze(ctx context.Context, mountPath, device string) error {
	result := make(chan error) // unbuffered: a result that is sent has been received
	abandoned := make(chan struct{})
	go func() {
		err := freezeControl(mountPath, ioctlFreeze)
		if err == nil {
			if err = withDevice(device, func(f *os.File) error { return f.Sync() }); err != nil {
				err = errors.Join(err, freezeControl(mountPath, ioctlThaw))
			}
		}
		select {
		case <-abandoned:
			if err == nil {
				_ = freezeControl(mountPath, ioctlThaw) // the caller has left
			}
		case result <- err:
		}
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		close(abandoned)
		select {
		case err := <-result: // it was quicker
			if err == nil {
				_ = freezeControl(mountPath, ioctlThaw)
			}
		default:
		}
		return fmt.Errorf("freeze %s: %w", mountPath, ctx.Err())
	}
}

// Thaw implements FileSystems.
func (linuxFileSystems) Thaw(mountPath string) error {
	result := make(chan error, 1)
	go func() { result <- freezeControl(mountPath, ioctlThaw) }()
	timer := time.NewTimer(thawTimeout)
	defer timer.Stop()
	select {
	case err := <-result:
		if errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("thaw %s: %w", mountPath, ErrNotFrozen)
		}
		return err
	case <-timer.C:
		return fmt.Errorf("thaw %s: not done after %v; see fsfreeze(8)", mountPath, thawTimeout)
	}
}

func freezeControl(mountPath string, request uint) error {
	dir, err := os.Open(mountPath)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.IoctlSetInt(int(dir.Fd()), request, 0); err != nil {
		name := "FIFREEZE"
		if request == ioctlThaw {
			name = "FITHAW"
		}
		return fmt.Errorf("%s of %s: %w", name, mountPath, err)
	}
	return nil
}
