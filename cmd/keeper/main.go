// The keeper holds the descriptors of the replicator's shims, so that volumes live on while the replicator is killed or
// replaced, and starts the writeback of their files. What it is and is not is in package keeper; it does nothing else,
// so that there is hardly ever a reason to restart it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unversioned"

func main() { os.Exit(progflags.Main("keeper", run)) }

// closeTimeout bounds waiting for files whose server is away. The end of the process closes them, too.
const closeTimeout = 2 * time.Second

func run(args []string) error {
	descriptors.Raise()
	flags := progflags.New("keeper", "It holds the descriptors of the replicator's volumes while the replicator is away.",
		version)
	socket := flags.String("socket", "", "Unix socket to listen on (required)")
	interval := flags.Duration("writeback-interval", time.Second,
		"longest time until an unflushed write to a volume with order: flush becomes visible to replication; a shorter "+
			"time merges fewer writes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
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
