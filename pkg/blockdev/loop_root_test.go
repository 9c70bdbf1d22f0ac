package blockdev

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
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
		info, found, err := FindLoopByPath(path)
		noErr(t, err)
		if found != (root != "") {
			t.Errorf("root %q: found %t", root, found)
		}
		if found {
			noErr(t, DetachLoopOf(info.Device, path))
			continue
		}
		image, found, err := FindLoopByImage(path)
		noErr(t, err)
		if !found {
			t.Fatal("the device is gone with its container")
		}
		noErr(t, DetachLoop(image.Device))
	}
}

// TestLoopRootElsewhere checks that a file that has another path below the root is refused: its device would not be found.
func TestLoopRootElsewhere(t *testing.T) {
	dir := loopDir(t)
	path := newBacking(t, dir, "v/image", 1<<20)
	noErr(t, os.Mkdir(filepath.Join(dir, "root"), 0o700))
	noErr(t, os.MkdirAll(filepath.Join(dir, "root", filepath.Dir(path)), 0o700))
	noErr(t, os.Link(path, filepath.Join(dir, "root", path)))
	if _, err := AttachLoop(LoopConfig{BackingPath: path, Root: filepath.Join(dir, "root")}); err == nil || !strings.Contains(err.Error(), "same path") {
		t.Errorf("error %v", err)
	}
	if _, err := AttachLoop(LoopConfig{BackingPath: path, Root: filepath.Join(dir, "nowhere")}); err == nil {
		t.Error("attached below a root that is not there")
	}
}
