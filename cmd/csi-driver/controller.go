package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

// retirement is what --retired-node means to the controller.
const retirement = "deletion of its volumes and snapshots succeeds, and their names are free"

// forNodes are the flags that mean nothing to a controller.
var forNodes = map[string]bool{"node-id": true, "pool": true, "sidecar": true, "shim-dir": true, "keeper-socket": true,
	"host-root": true,
	"reserve":   true, "overcommit-ratio": true, "tcp-address": true}

func runController(flags *flag.FlagSet, known *nodes.Flags, node driver.Options, addonsEndpoint string) error {
	var misplaced string
	flags.Visit(func(f *flag.Flag) {
		if forNodes[f.Name] {
			misplaced = f.Name
		}
	})
	if misplaced != "" {
		return fmt.Errorf("--%s is for --mode=%s only", misplaced, modeNode)
	}
	if node.TLSDir == "" {
		return errors.New("--tls-dir is missing: the controller shows the nodes a certificate; slipctl site secrets makes it")
	}
	source, err := known.Source()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := router.New(router.Options{Endpoint: node.Endpoint, AddonsEndpoint: addonsEndpoint, Source: source,
		Retired: known.Retired, TLSDir: node.TLSDir,
		Metrics: node.Metrics, Version: node.Version})
	if err != nil {
		return err
	}
	err = r.Run(ctx)
	return errors.Join(err, r.Close())
}
