package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// containerEnv makes TestInContainer attach a file: root and path, separated by a line break.
const containerEnv = "SLIPSTREAM_TEST_ATTACH"

// TestInContainer is the process that TestLoopOutlivesMountNamespace starts in a mount namespace of its own.
func TestInContainer(t *testing.T) {
	root, path, ok := strings.Cut(os.Getenv(containerEnv), "\n")
	if !ok {
		return
	}
	// As a container runtime does with a host directory.
	pool := filepath.Dir(filepath.Dir(path))
	noErr(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	noErr(t, unix.Mount(pool, pool, "", unix.MS_BIND|unix.MS_REC, ""))
	_, err := AttachLoop(LoopConfig{BackingPath: path, Root: root})
	noErr(t, err)
}

// TestLoopOutlivesMountNamespace checks that a device that was attached in a container is found by its path after the
// container is gone, and that without Root it would not be: the test would show nothing.
func TestLoopOutlivesMountNamespace(t *testing.T) {
	dir := loopDir(t)
	for _, root := range []string{"", fmt.Sprintf("/proc/%d/root", os.Getpid())} {
		path := newBacking(t, dir, fmt.Sprintf("pool-%d/v/image", len(root)), 1<<20)
		cmd := exec.Command(os.Args[0], "-test.run=^TestInContainer$")
		cmd.Env = append(os.Environ(), containerEnv+"="+root+"\n"+path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("root %q: %v\n%s", root, err, out)
		}
		info, found, err := findLoop(path)
		noErr(t, err)
		if found != (root != "") {
			t.Errorf("root %q: found %t", root, found)
		}
		if found {
			noErr(t, DetachLoopOf(info.Device, path))
			continue
		}
		// It is there all the same: under what is left of its path, with the file's inode.
		var want unix.Stat_t
		noErr(t, unix.Stat(path, &want))
		left, err := FindLoops(func(p string) bool { return filepath.Base(p) == "image" })
		noErr(t, err)
		left = slices.DeleteFunc(left, func(i LoopInfo) bool {
			file, err := LoopFile(i.Device)
			return err != nil || file != FileID{want.Dev, want.Ino}
		})
		if len(left) != 1 {
			t.Fatalf("the device is gone with its container: %v", left)
		}
		noErr(t, DetachLoop(left[0].Device))
	}
}

// TestLoopRootElsewhere checks that a file that has another path below the root is refused: its device would not be
// found.
func TestLoopRootElsewhere(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 1<<20)
	noErr(t, os.Mkdir(filepath.Join(dir, "root"), 0o700))
	noErr(t, os.MkdirAll(filepath.Join(dir, "root", filepath.Dir(path)), 0o700))
	noErr(t, os.Link(path, filepath.Join(dir, "root", path)))
	_, err := AttachLoop(LoopConfig{BackingPath: path, Root: filepath.Join(dir, "root")})
	if err == nil || !strings.Contains(err.Error(), "same path") {
		t.Errorf("error %v", err)
	}
	if _, err := AttachLoop(LoopConfig{BackingPath: path, Root: filepath.Join(dir, "nowhere")}); err == nil {
		t.Error("attached below a root that is not there")
	}
}

// TestKeepLoopSpace: a device that keeps its file's space is not discarded, and the next file that is attached can be.
func TestKeepLoopSpace(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 16<<20)
	f, err := vfs.OS.Open(path)
	noErr(t, err)
	defer f.Close()
	noErr(t, f.Preallocate(0, 16<<20))
	allocated := func() int64 {
		info, err := os.Stat(path)
		noErr(t, err)
		n, err := vfs.AllocatedBytes(info)
		noErr(t, err)
		return n
	}
	for _, keep := range []bool{true, false, true} {
		devPath, err := AttachLoop(LoopConfig{BackingPath: path, KeepSpace: keep})
		noErr(t, err)
		if keep {
			noErr(t, KeepLoopSpace(devPath))
		}
		dev, err := OpenLoopDevice(devPath)
		noErr(t, err)
		err = dev.Discard(0, 8<<20)
		if keep != errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("keep %t: discard: %v", keep, err)
		}
		if n := allocated(); (n >= 16<<20) != keep {
			t.Errorf("keep %t: %d bytes are left after a discard", keep, n)
		}
		noErr(t, f.Preallocate(0, 16<<20))
		noErr(t, dev.Zero(0, 8<<20))
		if n := allocated(); n < 16<<20 {
			t.Errorf("keep %t: %d bytes are left after zeroing", keep, n)
		}
		noErr(t, dev.Close())
		noErr(t, DetachLoop(devPath))
	}
	// A number that was left in this state is not used for a file that can be discarded.
	left, err := AttachLoop(LoopConfig{BackingPath: path, KeepSpace: true})
	noErr(t, err)
	device, err := os.Open(left)
	noErr(t, err)
	noErr(t, unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0))
	noErr(t, device.Close())
	// It goes with its last opener, and a program that looks at all devices may have it open for a moment.
	attached := errors.New("still attached")
	noErr(t, pause.Poll(detachPatience, func(err error) bool { return err == attached }, func() error {
		_, err := readLoop(strings.TrimPrefix(left, "/dev/"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		}
		return attached
	}))
	devPath, err := AttachLoop(LoopConfig{BackingPath: path})
	noErr(t, err)
	if refuses, err := refusesDiscards(devPath); err != nil || refuses {
		t.Errorf("%s (%s was left): refuses discards %t, %v", devPath, left, refuses, err)
	}
	noErr(t, DetachLoop(devPath))
}
