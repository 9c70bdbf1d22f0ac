package testsite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// stepTimeout bounds each step of sweep: any of them can wait in the kernel for a FUSE server that is gone.
const stepTimeout = 15 * time.Second

// Sweep takes away a directory whose processes have ended, with all that release finds. When a mount stays, the
// directory stays too: removing it would remove what is mounted.
func Sweep(dir string) error {
	err := release(dir)
	left, listErr := mountsBelow(dir)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	if len(left) > 0 {
		return errors.Join(err, fmt.Errorf("%s stays: %s is still mounted", dir, left[0].Mountpoint))
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// release takes away what the kernel holds below a directory whose processes have ended: mounts, FUSE connections and
// loop devices over files in it. The files stay.
func release(dir string) error {
	// First the connections: with a dead server every access to a file system above one waits.
	abortErr := abortConnections(dir)
	// A file system above a loop device goes before the device, and that before the FUSE mount with its file. The order
	// does not matter for lazy unmounts, but what is still whole then ends without I/O errors.
	return errors.Join(
		abortErr,
		unmountBelow(dir, func(m *mountinfo.Info) bool { return !isFUSE(m) }),
		detachLoops(dir),
		unmountBelow(dir, isFUSE),
	)
}

func isFUSE(m *mountinfo.Info) bool { return strings.HasPrefix(m.FSType, "fuse") }

func mountsBelow(dir string) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("reading the mount table: %w", err)
	}
	// Later mounts lie on top of earlier ones and go first.
	sort.Slice(mounts, func(i, j int) bool { return mounts[i].ID > mounts[j].ID })
	return mounts, nil
}

func unmountBelow(dir string, which func(*mountinfo.Info) bool) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if !which(m) {
			continue
		}
		errs = append(errs, withTimeout("unmounting "+m.Mountpoint, func() error {
			err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EINVAL) { // not a mount point any more
				return nil
			}
			return err
		}))
	}
	return errors.Join(errs...)
}

const connectionsDir = "/sys/fs/fuse/connections"

// abortConnections aborts the FUSE connections mounted below dir. A connection without a server ends by itself when the
// last copy of its descriptor is closed; but a process that waits in the kernel for its own mount never closes it.
func abortConnections(dir string) error {
	mounts, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range mounts {
		if !isFUSE(m) {
			continue
		}
		errs = append(errs, withTimeout("aborting the FUSE connection of "+m.Mountpoint, func() error {
			return abortConnection(m.Minor)
		}))
	}
	return errors.Join(errs...)
}

func abortConnection(minor int) error {
	control := filepath.Join(connectionsDir, fmt.Sprint(minor), "abort")
	err := os.WriteFile(control, []byte("1"), 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The control file system is not mounted everywhere; if it is and the file is missing, the connection is gone.
	if mounted, err := mountinfo.Mounted(connectionsDir); err != nil || mounted {
		return err
	}
	if err := unix.Mount("fusectl", connectionsDir, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", connectionsDir, err)
	}
	err = os.WriteFile(control, []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, unix.Unmount(connectionsDir, unix.MNT_DETACH))
}

// detachLoops detaches the loop devices over files below dir, as sysfs names them: a stat of a backing file could hang.
func detachLoops(dir string) error {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	var errs []error
	for _, file := range files {
		backing, err := os.ReadFile(file)
		if err != nil {
			continue // detached meanwhile
		}
		if !strings.HasPrefix(string(backing), dir+"/") {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		errs = append(errs, withTimeout("detaching "+device, func() error { return detachLoop(device) }))
	}
	return errors.Join(errs...)
}

func detachLoop(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("LOOP_CLR_FD: %w", err)
	}
	return nil
}

// withTimeout runs a step that may wait in the kernel. When it does, its goroutine stays behind with it.
func withTimeout(what string, step func() error) error {
	done := make(chan error, 1)
	go func() { done <- step() }()
	timer := time.NewTimer(stepTimeout)
	defer timer.Stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	case <-timer.C:
		return fmt.Errorf("%s: not done after %v", what, stepTimeout)
	}
}
