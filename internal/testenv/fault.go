package testenv

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/bug/inject"
)

// Catches shows that a test of the package in the working directory can fail: with a deliberate fault built in, it
// does.
func Catches(t *testing.T, fault bug.Name, test string) {
	t.Helper()
	flags, err := inject.Flags(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go",
		slices.Concat([]string{"test"}, flags, []string{"-count=1", "-run", "^" + test + "$", "."})...)
	cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG="+string(fault))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) {
		t.Errorf("%s does not catch %s: %v\n%s", test, fault, err, out)
	}
}
