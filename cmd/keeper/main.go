// The keeper holds the descriptors of the replicator's shims, so that volumes live on while the replicator is killed or
// replaced, and starts the writeback of their files. What it is and is not is in package keeper; it does nothing else,
// so that there is hardly ever a reason to restart it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unversioned"

func main() {
	err := run(os.Args[1:])
	klog.Flush()
	if err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "keeper:", err)
		}
		os.Exit(1)
	}
}

// closeTimeout bounds waiting for files whose server is away. The end of the process closes them, too.
const closeTimeout = 2 * time.Second

func run(args []string) error {
	descriptors.Raise()
	flags := flag.NewFlagSet("keeper", flag.ContinueOnError)
	socket := flags.String("socket", "", "Unix socket to listen on (required)")
	interval := flags.Duration("writeback-interval", time.Second,
		"longest time until an unflushed write to a volume with order: flush becomes visible to replication; a shorter "+
			"time merges fewer writes")
	showVersion := flags.Bool("version", false, "print the version and exit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case *showVersion:
		fmt.Println(version)
		return nil
	case flags.NArg() > 0:
		return fmt.Errorf("unexpected argument %q; see --help", flags.Arg(0))
	case *socket == "":
		return errors.New("--socket is missing; see --help")
	case *interval <= 0:
		return fmt.Errorf("--writeback-interval %v: want more than nothing", *interval)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := unixsocket.Listen(*socket)
	if err != nil {
		return err
	}
	writeback := keeper.NewWriteback(*interval)
	server := keeper.NewServer(writeback)
	klog.InfoS("Keeper is ready", "version", version, "socket", *socket)
	err = server.Serve(ctx, listener)
	if held := server.Names(); len(held) > 0 {
		klog.InfoS("Stopping: the replicator has to live until the next keeper is there", "held", held)
	}
	closeCtx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return errors.Join(err, writeback.Close(closeCtx), server.Close())
}
