// Command csi-driver is the CSI driver csi.slipstream.dev: for one node (package driver), or with --mode=controller for
// a cluster, over the drivers of its nodes (package router). With --mode=credentials it makes what the two know each
// other by (package credentials). Here are its flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
)

// version is set by the linker: -X main.version=v1.2.3.
var version string

func main() { os.Exit(progflags.Main("csi-driver", run)) }

// The modes.
const (
	modeNode        = "node"
	modeController  = "controller"
	modeCredentials = "credentials"
)

func run(args []string) error {
	descriptors.Raise()
	opts := driver.Options{Version: versionString()}
	set := progflags.New("csi-driver", "The CSI driver csi.slipstream.dev of a node, or with --mode=controller of a "+
		"cluster.", opts.Version)
	flags := set.FlagSet
	mode := flags.String("mode", modeNode, "node: serve the pool of this node; controller: serve the pools of all "+
		"nodes by calling the nodes; credentials: make the certificates of nodes and controller, then exit")
	var known nodes.Flags
	known.Add(flags, "csi", "controller: ", retirement)
	var secrets credentialFlags
	secrets.add(flags)
	flags.StringVar(&opts.Endpoint, "endpoint", "unix:///csi/csi.sock", "socket of the CSI services")
	addonsEndpoint := flags.String("csi-addons-endpoint", "", "controller: socket of the csi-addons services, for its "+
		"sidecar (default none)")
	flags.StringVar(&opts.NodeID, "node-id", "", "name of this node (required)")
	flags.StringVar(&opts.PoolDir, "pool", "", "directory of the volumes; created if missing (required)")
	flags.StringVar(&opts.JournalDir, "journal-dir", "",
		"directory of the groups and their journals, on a separate disk; the same as the replicator's (default in the pool)")
	flags.StringVar(&opts.StateDir, "state-dir", blockdev.DefaultStateDir, "directory on another disk than the pool, "+
		"with the record that the pool exists; an unmounted pool is not made again; the same as the replicator's")
	flags.StringVar(&opts.SidecarEndpoint, "sidecar", "",
		"socket of the replicator, as unix:///path; without it replicable volumes are refused")
	flags.StringVar(&opts.ShimDir, "shim-dir", "", "directory where the replicator serves volumes (default <pool>/shim)")
	flags.StringVar(&opts.KeeperSocket, "keeper-socket", "", "socket of the keeper (default <pool>/keeper.sock)")
	flags.StringVar(&opts.HostRoot, "host-root", "", "in a container: the node's root directory in its own mount "+
		"namespace, as /proc/1/root with hostPID")
	opts.Capacity.Reserve = space.DefaultReserve
	flags.Var(&opts.Capacity.Reserve, "reserve", "part of the pool's file system that is never promised to volumes: "+
		"bytes, as 10Gi, or a percentage")
	flags.Float64Var(&opts.Capacity.OvercommitRatio, "overcommit-ratio", 1, "factor by which thin volumes may "+
		"exceed the space of the pool; above 1 the pool can fill up before they do")
	flags.StringVar(&opts.TCPAddress, "tcp-address", "", "host:port for the controller, with mutual TLS (default none)")
	flags.StringVar(&opts.TLSDir, "tls-dir", "", "directory with ca.crt, tls.crt and tls.key, for --tcp-address and "+
		"--mode=controller; read again when they change")
	opts.Metrics.Add(flags)
	if err := set.Parse(args); err != nil {
		return err
	}
	switch {
	case *mode == modeCredentials:
		return runCredentials(flags, &secrets)
	case secrets.misplaced(flags, false) != "":
		return fmt.Errorf("--%s is for --mode=%s only", secrets.misplaced(flags, false), modeCredentials)
	case *mode == modeController:
		return runController(flags, &known, opts, *addonsEndpoint)
	case *mode != modeNode:
		return fmt.Errorf("--mode is %q: it can be %s, %s or %s", *mode, modeNode, modeController, modeCredentials)
	case *addonsEndpoint != "":
		return fmt.Errorf("--csi-addons-endpoint is for --mode=%s only", modeController)
	case nodes.Given(flags) != "":
		return fmt.Errorf("--%s is for --mode=%s only", nodes.Given(flags), modeController)
	case opts.NodeID == "":
		return errors.New("--node-id is missing; see --help")
	case opts.PoolDir == "":
		return errors.New("--pool is missing; see --help")
	case opts.TCPAddress != "" && opts.TLSDir == "":
		return errors.New("--tcp-address needs --tls-dir: any caller that reaches the port could delete volumes; slipctl " +
			"site secrets makes certificates")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	d, err := driver.New(ctx, opts)
	if err != nil {
		return err
	}
	err = d.Run(ctx)
	return errors.Join(err, d.Close())
}

// versionString is what the linker set, or what the Go tool knows.
func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
