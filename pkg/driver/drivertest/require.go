// Package drivertest hands the prerequisites helper of the tests under pkg/ on to the tests under test/, which Go keeps from
// importing pkg/internal.
package drivertest

import "github.com/slipstream-storage/slipstream/internal/testenv"

// TB is the part of testing.TB that is used here.
type TB = testenv.TB

// RequireLoop skips, or in CI fails, the test unless it runs as root and loop devices can be made.
func RequireLoop(t TB) {
	t.Helper()
	testenv.RequireLoop(t)
}

// RequireFUSE skips, or in CI fails, the test unless it runs as root and FUSE file systems can be served.
func RequireFUSE(t TB) {
	t.Helper()
	testenv.RequireFUSE(t)
}

// RequireTools skips, or in CI fails, the test unless the programs are on PATH.
func RequireTools(t TB, names ...string) {
	t.Helper()
	for _, name := range names {
		testenv.RequireTool(t, name)
	}
}
