// Command shop runs the application of package workload in a pod, and checks what a failover left of it:
//
//	shop run --stock DIR --sales DIR      place orders until SIGTERM; the acknowledgements go to standard output
//	shop check --stock DIR --sales DIR    compare the databases with the acknowledgements on standard input
//
// check prints what it found as JSON and fails unless the two databases are as they were at one instant.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/workload"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want run or check")
	}
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	o := workload.ProcessOptions{Kind: workload.SQLite, Clients: 1}
	flags.StringVar(&o.Dirs.Stock, "stock", "", "`directory` of the stock database (required)")
	flags.StringVar(&o.Dirs.Sales, "sales", "", "`directory` of the sales database (required)")
	flags.Uint64Var(&o.Seed, "seed", 1, "of the orders")
	flags.Int64Var(&o.FirstID, "first-id", 1, "`number` of the first order")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if o.Dirs.Stock == "" || o.Dirs.Sales == "" {
		return errors.New("want --stock and --sales")
	}
	o.Dirs.Run = os.TempDir()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args[0] {
	case "run":
		// Its standard input never ends: only the signal does.
		forever, end := io.Pipe()
		defer end.Close()
		return workload.Main(ctx, o, forever, os.Stdout)
	case "check":
		return check(ctx, o, os.Stdin, os.Stdout)
	}
	return fmt.Errorf("%q: want run or check", args[0])
}

func check(ctx context.Context, o workload.ProcessOptions, acks io.Reader, out io.Writer) error {
	var all []workload.Ack
	if err := workload.ReadAcks(acks, func(a workload.Ack) { all = append(all, a) }); err != nil {
		return err
	}
	result, err := workload.Check(ctx, o.Kind, o.Dirs, all, time.Now())
	if err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(result); err != nil {
		return err
	}
	return result.OneInstant(o.Clients)
}
