// Command faulty calls the go command for a build with the deliberate faults of package bug:
//
//	go run ./hack/faulty test -run TestCatches ./test/oracle
//	go run ./hack/faulty run ./test/oracle --bug swap-records
//
// SLIPSTREAM_BUG names the fault of a program or test that has no flag for it. The exit status is 1 when the go command
// fails.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/bug/inject"
)

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: go run ./hack/faulty build|test|run|vet ARGS")
	}
	dir, err := os.MkdirTemp("", "slipstream-faults-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	flags, err := inject.Flags(dir)
	if err != nil {
		return err
	}
	cmd := exec.Command("go", slices.Concat(args[:1], flags, args[1:])...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "faulty:", err)
		os.Exit(1)
	}
}
