// Command shop runs the application of package workload in a pod, and checks what a failover left of it:
//
//	shop run --stock DIR --sales DIR       place orders until SIGTERM; the acknowledgements go to standard output
//	shop check --stock DIR --sales DIR     compare the databases with the acknowledgements on standard input
//
// With its databases on two nodes it is two pods:
//
//	shop stock --stock DIR --listen ADDRESS
//	shop run --stock-at ADDRESS --sales DIR
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
	"net"
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
		return errors.New("want run, stock or check")
	}
	flags := flag.NewFlagSet("shop", flag.ContinueOnError)
	o := workload.ProcessOptions{Kind: workload.SQLite, Clients: 1}
	flags.StringVar(&o.Dirs.Stock, "stock", "", "`directory` of the stock database (required)")
	flags.StringVar(&o.Dirs.Sales, "sales", "", "`directory` of the sales database (required)")
	flags.Uint64Var(&o.Seed, "seed", 1, "of the orders")
	flags.Int64Var(&o.FirstID, "first-id", 1, "`number` of the first order")
	listen := flags.String("listen", "", "`address` where the stock takes movements")
	stockAt := flags.String("stock-at", "", "`address` of the stock, in place of its directory")
	cuts := flags.Int("cuts", 1, "`number` of runs that were cut off, each with at most one order under way")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if (o.Dirs.Stock == "") == (*stockAt == "") || (o.Dirs.Sales == "") == (*listen == "") {
		return errors.New("want --stock or --stock-at, and --sales or --listen")
	}
	o.Dirs.Run = os.TempDir()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	switch args[0] {
	case "stock":
		lis, err := net.Listen("tcp", *listen)
		if err != nil {
			return err
		}
		return workload.ServeStock(ctx, o.Dirs.Stock, lis)
	case "run":
		if *stockAt != "" {
			return runApart(ctx, o, *stockAt)
		}
		// Its standard input never ends: only the signal does.
		forever, end := io.Pipe()
		defer end.Close()
		return workload.Main(ctx, o, forever, os.Stdout)
	case "check":
		return check(ctx, o, *cuts, os.Stdin, os.Stdout)
	}
	return fmt.Errorf("%q: want run, stock or check", args[0])
}

// runApart places orders at a shop whose stock is at an address.
func runApart(ctx context.Context, o workload.ProcessOptions, stock string) error {
	shop, err := workload.OpenSales(ctx, o.Dirs.Sales, stock)
	if err != nil {
		return err
	}
	err = workload.Run(ctx, shop, workload.RunOptions{Clients: 1, Seed: o.Seed, FirstID: o.FirstID, Log: os.Stdout})
	return errors.Join(err, shop.Close())
}

func check(ctx context.Context, o workload.ProcessOptions, cuts int, acks io.Reader, out io.Writer) error {
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
	return result.OneInstant(cuts * o.Clients)
}
