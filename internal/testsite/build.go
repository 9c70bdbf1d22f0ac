package testsite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Build builds the programs of a site into a directory, for a test that must not run what an earlier build left. It
// is called with the working directory anywhere in the module.
func Build(ctx context.Context, binDir string, flags ...string) error {
	const module = "github.com/slipstream-storage/slipstream"
	args := append([]string{"build", "-o", binDir + "/"}, flags...)
	for _, program := range Programs {
		args = append(args, module+"/cmd/"+program)
	}
	build := exec.CommandContext(ctx, "go", args...)
	// As make build does; with cgo the replicator cannot set its memory protection in all threads.
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
