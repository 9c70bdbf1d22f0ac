// Command operator replicates the claims of namespaces, and carries out actions on groups: see package operator. Here
// are its flags.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	_ "time/tzdata" // the zones of schedules, which an image need not have

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/operator"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unversioned"

func main() { os.Exit(progflags.Main("operator", run)) }

func run(args []string) error {
	descriptors.Raise()
	var known nodes.Flags
	var metrics metricsserver.Options
	var opts operator.Options
	set := progflags.New("operator", "It replicates the claims of namespaces with the label slipstream.dev/replicate-to, "+
		"and carries out GroupActions.", version)
	flags := set.FlagSet
	known.Add(flags, "csi", "", "what it held counts as gone")
	tlsDir := flags.String("tls-dir", "", "`directory` with the controller's ca.crt, tls.crt and tls.key; read again "+
		"when they change (required)")
	flags.StringVar(&opts.LeaseNamespace, "lease-namespace", "", "`namespace` of the Lease that elects the leader; "+
		"without it this operator works alone")
	flags.StringVar(&opts.HealthAddress, "health-addr", ":9817", "`address` of /healthz and /readyz")
	metrics.Add(flags)
	if err := set.Parse(args); err != nil {
		return err
	}
	if *tlsDir == "" {
		return errors.New("--tls-dir is missing: the operator shows the nodes the certificate of the controller")
	}
	source, err := known.Source()
	if err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", known.Kubeconfig)
	if err != nil {
		return fmt.Errorf("how to reach the API server: %w", err)
	}
	opts.Config = config
	engine, err := router.NewReplicators(source, known.Retired, *tlsDir)
	if err != nil {
		return err
	}
	defer engine.Close()
	opts.Engine = engine
	mgr, err := operator.NewManager(opts)
	if err != nil {
		return err
	}
	own := prometheus.NewRegistry()
	own.MustRegister(engine.Metrics(), &operator.Metrics{Reader: mgr.GetClient(), Leader: mgr.Elected()})
	web, err := metricsserver.Listen(metrics)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	klog.InfoS("Operator starts", "version", version, "leaseNamespace", opts.LeaseNamespace)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return engine.Follow(ctx) })
	group.Go(func() error { return mgr.Start(ctx) })
	if web != nil {
		// The library's registry has the metrics of the runtime and the process.
		handler := promhttp.HandlerFor(prometheus.Gatherers{ctrlmetrics.Registry, own}, promhttp.HandlerOpts{})
		group.Go(func() error { return web.Serve(ctx, handler) })
	}
	return group.Wait()
}
