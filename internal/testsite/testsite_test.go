package testsite

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestSweep builds by hand what a dead site leaves and sees it go, and only that.
func TestSweep(t *testing.T) {
	testenv.RequireLoop(t)
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dead, alive := filepath.Join(root, "site"), filepath.Join(root, "site-other")
	var loops []string
	for _, dir := range []string{dead, alive} {
		for _, sub := range []string{"mnt", "bind"} {
			if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		image := filepath.Join(dir, "image")
		run(t, "truncate", "-s", "32M", image)
		run(t, "mkfs.ext4", "-q", image)
		device := run(t, "losetup", "--show", "-f", image)
		loops = append(loops, device)
		// Before the mount, so that a failure in between leaves nothing.
		t.Cleanup(func() {
			if err := Sweep(dir); err != nil {
				t.Error(err)
			}
		})
		run(t, "mount", device, filepath.Join(dir, "mnt"))
		run(t, "mount", "--bind", filepath.Join(dir, "mnt"), filepath.Join(dir, "bind"))
	}
	if err := Sweep(dead); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory stayed: %v", err)
	}
	if mounts, err := mountsBelow(alive); err != nil || len(mounts) != 2 {
		t.Errorf("the other site's mounts: %v, %v", mounts, err)
	}
	backing := func(device string) string {
		text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
		if err != nil {
			return ""
		}
		return strings.TrimSpace(string(text))
	}
	// The detach happens with the last reference of the lazy unmount, shortly after.
	deadline := time.Now().Add(10 * time.Second)
	for strings.HasPrefix(backing(loops[0]), dead+"/") {
		if time.Now().After(deadline) {
			t.Fatalf("%s is still over %s", loops[0], backing(loops[0]))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := backing(loops[1]); got != filepath.Join(alive, "image") {
		t.Errorf("the other site's loop device is over %q", got)
	}
}

// TestSweepUnmountsFirst: what is mounted in the directory is unmounted and not removed with it.
func TestSweepUnmountsFirst(t *testing.T) {
	testenv.RequireLoop(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mnt := filepath.Join(dir, "site", "mnt")
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) &&
			!errors.Is(err, unix.ENOENT) {
			t.Error(err)
		}
	})
	if err := Sweep(filepath.Join(dir, "site")); err != nil {
		t.Fatal(err)
	}
	if mounts, err := mountsBelow(dir); err != nil || len(mounts) != 0 {
		t.Errorf("left: %v, %v", mounts, err)
	}
}

func TestProcess(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	p, err := startProcess("sh", "/bin/sh", []string{"-c", "echo hello; exec sleep 100"}, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(time.Millisecond); err == nil {
		t.Error("it ended by itself")
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing it twice: %v", err)
	}
	if _, err := startProcess("missing", "/nonexistent", nil, log); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	testenv.RequireLoop(t)
	parent := t.TempDir()
	if _, err := New(Options{BinDir: t.TempDir(), Parent: parent}); err == nil ||
		!strings.Contains(err.Error(), "make build") {
		t.Errorf("without programs: %v", err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}
