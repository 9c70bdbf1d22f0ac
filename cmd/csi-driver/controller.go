package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

// controllerFlags are those of the controller mode.
type controllerFlags struct {
	nodes       string
	nodeService string
	kubeconfig  string
	retired     listFlag
}

// listFlag may be repeated.
type listFlag []string

func (l *listFlag) String() string { return strings.Join(*l, ",") }

func (l *listFlag) Set(value string) error {
	if value == "" {
		return errors.New("a name is missing")
	}
	*l = append(*l, value)
	return nil
}

func (c *controllerFlags) add(flags *flag.FlagSet) {
	flags.StringVar(&c.nodes, "nodes", "", "controller: the nodes as name=host:port,..., where they do not come from Kubernetes")
	flags.StringVar(&c.nodeService, "node-service", "", "controller: namespace/name of the headless service over the node pods; its port for the controller is the one named csi, or the only one")
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "controller: file that says how to reach the API server; without it, as a pod does")
	flags.Var(&c.retired, "retired-node", "controller: name of a node that is gone for good: its volumes and snapshots count as deleted when they are deleted, and its names as free; may be repeated")
}

// given returns a flag of the controller mode that was given, or "".
func (c *controllerFlags) given(flags *flag.FlagSet) (name string) {
	flags.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "nodes", "node-service", "kubeconfig", "retired-node":
			name = f.Name
		}
	})
	return name
}

// forNodes are the flags that mean nothing to a controller.
var forNodes = map[string]bool{"node-id": true, "pool": true, "sidecar": true, "shim-dir": true, "keeper-socket": true, "host-root": true,
	"reserve": true, "overcommit-ratio": true, "tcp-address": true}

func (c *controllerFlags) run(flags *flag.FlagSet, node driver.Options) error {
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
	source, err := c.source()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := router.New(router.Options{Endpoint: node.Endpoint, Source: source, Retired: c.retired, TLSDir: node.TLSDir,
		MetricsAddr: node.MetricsAddr, Version: node.Version})
	if err != nil {
		return err
	}
	err = r.Run(ctx)
	return errors.Join(err, r.Close())
}

func (c *controllerFlags) source() (router.Source, error) {
	switch {
	case (c.nodes == "") == (c.nodeService == ""):
		return nil, errors.New("one of --node-service and --nodes has to say which nodes there are; see --help")
	case c.nodes != "":
		source, err := router.ParseStatic(c.nodes)
		if err != nil {
			return nil, fmt.Errorf("--nodes: %w", err)
		}
		return source, nil
	}
	// Without a file this is the pod's own service account.
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("--node-service: how to reach the API server: %w", err)
	}
	source, err := router.NewKubernetes(config, c.nodeService)
	if err != nil {
		return nil, fmt.Errorf("--node-service: %w", err)
	}
	return source, nil
}
