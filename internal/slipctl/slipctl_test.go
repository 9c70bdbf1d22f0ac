package slipctl

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the expected output in testdata")

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"slipctl": func() { os.Exit(Main("test", os.Args[1:])) },
	})
}

// leakChecked looks for goroutines that the tests left.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			return 1
		}
	}
	return code
}

// TestScripts runs the scripts in testdata against a fake replicator of their own and a pool with two volumes.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata", UpdateScripts: *rewrite, RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			// Not in the work directory: a socket's path is short.
			dir, err := os.MkdirTemp("", "ctl")
			if err != nil {
				return err
			}
			env.Defer(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			stop, err := serveFake(filepath.Join(dir, "s"))
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Setenv("SLIPSTREAM_SIDECAR", "unix://"+filepath.Join(dir, "s"))
			env.Setenv("SHORT", dir)
			return makePool(filepath.Join(env.WorkDir, "pool"))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exit": expectExit},
	})
}

// expectExit is `exit STATUS slipctl ARGS...`: it runs the command and compares its exit status.
func expectExit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit STATUS COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		// testscript shows the status of a failed command only in the error's text.
		_, got, _ = strings.Cut(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s: %v", got, args[0], err)
	}
}

func makePool(dir string) error {
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoDriver)
	if err != nil {
		return err
	}
	for _, record := range []blockdev.VolumeRecord{
		{ID: "vol-1", Name: "pvc-1", SizeBytes: 1 << 20, Replicable: true, Group: "shop", State: blockdev.VolumeReady},
		{ID: "vol-2", Name: "pvc-2", SizeBytes: 2 << 20, State: blockdev.VolumeReady},
	} {
		if _, err := pool.Create(record); err != nil {
			return err
		}
	}
	return pool.Close()
}
