package workload

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets the test binary be the workload process too: StartProcess runs it with the argument "workload".
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "workload" {
		os.Exit(childMain(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func childMain(args []string) int {
	flags := map[string]string{}
	for i := 0; i+1 < len(args); i += 2 {
		flags[args[i]] = args[i+1]
	}
	number := func(name string) int64 {
		n, err := strconv.ParseInt(flags[name], 10, 64)
		if err != nil {
			panic(name + ": " + err.Error())
		}
		return n
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	err := Main(ctx, ProcessOptions{
		Kind:    Kind(flags["--kind"]),
		Dirs:    Dirs{Stock: flags["--stock"], Sales: flags["--sales"], Run: flags["--run"]},
		Clients: int(number("--clients")), Seed: uint64(number("--seed")), FirstID: number("--first-id"),
	}, os.Stdin, os.Stdout)
	if err != nil {
		os.Stderr.WriteString(err.Error())
		return 1
	}
	return 0
}
