package testenv

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/bug/inject"
)

// Catches shows that a test of the package in the working directory can fail: with a deliberate fault built in, it
// does. The calls of one test share a binary with all faults, since linking it takes longer than most of the tests.
func Catches(t *testing.T, fault bug.Name, test string) {
	t.Helper()
	cmd := exec.Command(faultyBinary(t), "-test.run", "^"+test+"$", "-test.failfast", "-test.timeout", "10m")
	cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG="+string(fault))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) {
		t.Errorf("%s does not catch %s: %v\n%s", test, fault, err, out)
	}
}

// faultyBinaries has the binary of each running test that has asked for one.
var faultyBinaries sync.Map // by *testing.T

func faultyBinary(t *testing.T) string {
	t.Helper()
	if path, ok := faultyBinaries.Load(t); ok {
		return path.(string)
	}
	dir := t.TempDir()
	flags, err := inject.Flags(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "faulty.test")
	build := exec.Command("go", slices.Concat([]string{"test", "-c"}, flags, []string{"-o", path, "."})...)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the tests with faults: %v\n%s", err, out)
	}
	faultyBinaries.Store(t, path)
	t.Cleanup(func() { faultyBinaries.Delete(t) })
	return path
}
