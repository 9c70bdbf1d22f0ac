// Package router is the CSI driver's controller mode: the Controller services of a whole cluster, over nodes that each
// run the driver (package driver) for their own volumes.
//
// The nodes are the truth. The router keeps nothing: for each call it asks the nodes which of them holds the volume,
// snapshot, name or group (Locate, pkg/api/locatepb), and hands the call on to that node, in CSI. So it may be killed
// between any two steps, and may run more than once at a time.
//
// A new volume's node is chosen here: among the nodes that the request's topology allows, the source's node for a copy,
// the group's node for a member of a consistency group; see create.go. That two routers do not create one name on two
// nodes is the work of leases on the nodes (package lease).
//
// A node that does not answer is silent. A call that could concern a silent node fails with Unavailable; it does not
// act as if the node held nothing. A node that is gone for good is named by Options.Retired: then its silence means
// that it holds nothing.
//
// It is not a scheduler, and does not move volumes. It writes nothing to disk.
//
// # Concurrency
//
// All services may be called concurrently. Creations of one name exclude each other (Aborted); creations in one
// consistency group wait for each other.
package router

import (
	"context"
	"errors"
	"net"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/csiserver"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// Options configure a Router.
type Options struct {
	// Endpoint is where the CSI services listen for the sidecars: unix:///path or a path.
	Endpoint string
	// AddonsEndpoint is where the csi-addons services listen for its sidecar; empty for nowhere.
	AddonsEndpoint string
	// Source says which nodes there are.
	Source nodes.Source
	// Retired are nodes that are gone for good: no call waits for them, and no volume is made on them. What was on them is
	// reported as deleted when it is deleted.
	Retired []string
	// TLSDir has ca.crt, tls.crt and tls.key; the certificate is for tlsfiles.ControllerName.
	TLSDir string
	// Metrics is where Prometheus metrics are served, and to whom.
	Metrics metricsserver.Options
	// Version of the program.
	Version string
}

// Router serves the Controller services. Make it with New, and close it.
type Router struct {
	opts  Options
	tls   *tlsfiles.Source
	nodes *nodeSet
	locks *locks
	meter *meter
}

// New reads the certificates. Nodes are looked for by Run.
func New(opts Options) (*Router, error) {
	if opts.Source == nil {
		return nil, errors.New("the router is told of no nodes: give --nodes or --node-service")
	}
	if opts.TLSDir == "" {
		return nil, errors.New("the router needs a directory with certificates, as the nodes do: give --tls-dir")
	}
	source, err := tlsfiles.OpenDir(opts.TLSDir)
	if err != nil {
		return nil, err
	}
	r := &Router{opts: opts, tls: source, locks: newLocks(), meter: newMeter(source)}
	r.nodes = newNodeSet(source, opts.Retired, r.meter)
	r.meter.registry.MustRegister(r.nodes)
	return r, nil
}

// Close ends the connections to the nodes.
func (r *Router) Close() error { return errors.Join(r.nodes.Close(), r.tls.Close()) }

// Run follows the nodes and serves until ctx is done.
func (r *Router) Run(ctx context.Context) error {
	listener, err := unixsocket.Listen(r.opts.Endpoint)
	if err != nil {
		return err
	}
	var addons net.Listener
	if r.opts.AddonsEndpoint != "" {
		if addons, err = unixsocket.Listen(r.opts.AddonsEndpoint); err != nil {
			return errors.Join(err, listener.Close())
		}
	}
	web, err := metricsserver.Listen(r.opts.Metrics)
	if err != nil {
		err = errors.Join(err, listener.Close())
		if addons != nil {
			err = errors.Join(err, addons.Close())
		}
		return err
	}
	manager := metrics.NewCSIMetricsManagerForPlugin(plugin.Name).WithAdditionalRegistry(r.meter.registry)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.Follow(ctx) })
	group.Go(func() error {
		server := grpc.NewServer(csiserver.Options(manager)...)
		r.Register(server)
		return csiserver.Serve(ctx, server, listener)
	})
	if addons != nil {
		group.Go(func() error {
			server := grpc.NewServer(csiserver.Options(manager)...)
			r.RegisterAddons(server)
			return csiserver.Serve(ctx, server, addons)
		})
	}
	if web != nil {
		group.Go(func() error { return web.Serve(ctx, csiserver.Metrics(manager)) })
	}
	klog.InfoS("Serving as controller", "driver", plugin.Name, "version", r.opts.Version, "endpoint", r.opts.Endpoint,
		"csiAddons", r.opts.AddonsEndpoint, "retired", r.opts.Retired)
	return group.Wait()
}

// Follow keeps the nodes as the source says until ctx is done.
func (r *Router) Follow(ctx context.Context) error { return r.opts.Source.Follow(ctx, r.nodes.update) }

// Register adds the CSI services to a server.
func (r *Router) Register(server grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(server, &identityServer{r: r})
	csi.RegisterControllerServer(server, &controllerServer{r: r})
	csi.RegisterSnapshotMetadataServer(server, &metadataServer{r: r})
	csi.RegisterNodeServer(server, nodeServer{})
	if servesGroups() {
		csi.RegisterGroupControllerServer(server, &groupServer{r: r})
	}
}

// meter has the router's own metrics.
type meter struct {
	registry   *prometheus.Registry
	handshakes *prometheus.CounterVec
	silent     *prometheus.CounterVec
}

func newMeter(source *tlsfiles.Source) *meter {
	m := &meter{
		registry: prometheus.NewRegistry(),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_controller_handshakes_total",
			Help: "TLS handshakes with nodes, by result: ok, certificate (one side refused the other's), failed.",
		}, []string{"node", "result"}),
		silent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_controller_unanswered_total",
			Help: "Calls that a node did not answer, by node and gRPC status code.",
		}, []string{"node", "code"}),
	}
	m.registry.MustRegister(append(tcplisten.Metrics(), m.handshakes, m.silent,
		metricsserver.CertificateExpiry(source.NotAfter))...)
	return m
}

// Metrics are what a controller serves of its own, to be described and not to be collected: there is no controller
// behind them.
func Metrics() prometheus.Collector {
	m := newMeter(nil)
	m.registry.MustRegister(&nodeSet{})
	return m.registry
}
