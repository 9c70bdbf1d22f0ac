package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// MountFS makes a file system of 512 MiB with a command line such as mkfs.xfs -q, on a sparse file and a loop device of
// its own, and returns where it is mounted until the test ends. It skips the test where the machine cannot.
func MountFS(t testing.TB, mkfs ...string) string {
	t.Helper()
	RequireLoop(t)
	RequireTool(t, mkfs[0])
	dir := t.TempDir()
	image, at := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	must(os.WriteFile(image, nil, 0o600))
	must(os.Truncate(image, 512<<20))
	must(os.Mkdir(at, 0o700))
	run(append(mkfs, image)...)
	run("mount", "-o", "loop", image, at) // the loop device goes with the mount
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount %s: %v", at, err)
			_ = unix.Unmount(at, unix.MNT_DETACH)
		}
	})
	return at
}
