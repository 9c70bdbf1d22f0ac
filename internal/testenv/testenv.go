// Package testenv says what a test needs from the machine: root, FUSE, loop devices, a program.
//
// A test whose prerequisite is missing is skipped with the reason, so that `go test ./...` passes on a laptop. Where
// the environment promises to have everything (CI=true, or SLIPSTREAM_REQUIRE_ROOT=1), a missing prerequisite fails the
// test instead: a suite that silently skips its root tests proves nothing.
package testenv

import (
	"os"
	"os/exec"
)

// TB is the part of testing.TB that is used here, so that the package can be tested.
type TB interface {
	Helper()
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Strict reports whether missing prerequisites fail tests instead of skipping them.
func Strict() bool {
	return os.Getenv("CI") == "true" || os.Getenv("SLIPSTREAM_REQUIRE_ROOT") == "1"
}

func missing(t TB, format string, args ...any) {
	t.Helper()
	if Strict() {
		t.Fatalf("required here (CI=true or SLIPSTREAM_REQUIRE_ROOT=1): "+format, args...)
		return
	}
	t.Skipf(format, args...)
}

// RequireRoot skips the test unless it runs as root.
func RequireRoot(t TB) {
	t.Helper()
	if uid := os.Geteuid(); uid != 0 {
		missing(t, "needs root, runs as uid %d", uid)
	}
}

// RequireFUSE skips the test unless it runs as root and can open /dev/fuse. Opening it has no effect until it is
// mounted.
func RequireFUSE(t TB) {
	t.Helper()
	RequireRoot(t)
	requireDevice(t, "/dev/fuse")
}

// RequireLoop skips the test unless it runs as root and can open /dev/loop-control.
func RequireLoop(t TB) {
	t.Helper()
	RequireRoot(t)
	requireDevice(t, "/dev/loop-control")
}

func requireDevice(t TB, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		missing(t, "needs %s: %v", path, err)
		return
	}
	f.Close()
}

// RequireTool skips the test unless a program is on PATH, and returns its path.
func RequireTool(t TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, "needs the program %s: %v", name, err)
	}
	return path
}
