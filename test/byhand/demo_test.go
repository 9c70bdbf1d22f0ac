package byhand

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// The demo gets to its end, with one short round, and finds nothing that must not be: slipctl fails then.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	testenv.RequireFUSE(t)
	testenv.RequireLoop(t)
	testenv.RequireTool(t, "mkfs.ext4")
	if err := build(); err != nil {
		t.Fatal(err)
	}
	results := t.TempDir()
	demo := exec.CommandContext(t.Context(), filepath.Join(binDir, "slipctl"), "demo", "--bin-dir", binDir,
		"--rounds", "1", "--duration", "1s", "--results", results)
	out, err := demo.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"orders without stock movement", "site A takes over again", "orders that began later",
		"report.html"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demo does not print %q", want)
		}
	}
}
