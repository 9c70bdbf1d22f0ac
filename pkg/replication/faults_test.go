package replication

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

// The tests of leaving, joining and changing settings can fail: with a deliberate fault built in, they do.
func TestFaultsOfMovingAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.LeaveUnapplied: "TestCrashWhileMoving",
		bug.KeepOldCopy:    "TestCopyGoesToTheNextGroup",
		bug.ModifyVolatile: "TestCrashWhileModifying",
		bug.NoShipLimit:    "TestShipRate",
	} {
		cmd := exec.Command("go", "test", "-tags", "slipstream_bugs", "-count=1", "-run", "^"+test+"$", ".")
		cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG="+string(fault))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) {
			t.Errorf("%s does not catch %s: %v\n%s", test, fault, err, out)
		}
	}
}
