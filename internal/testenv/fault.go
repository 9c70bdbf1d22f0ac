package testenv

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

// Catches shows that a test of the package in the working directory can fail: with a deliberate fault built in, it
// does.
func Catches(t *testing.T, fault bug.Name, test string) {
	t.Helper()
	cmd := exec.Command("go", "test", "-tags", "slipstream_bugs", "-count=1", "-run", "^"+test+"$", ".")
	cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG="+string(fault))
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) {
		t.Errorf("%s does not catch %s: %v\n%s", test, fault, err, out)
	}
}
