package driver

import (
	"context"
	"errors"
	"io"
	"math"

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
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Run serves until ctx is done: the CSI services, those for the controller, and metrics. Stopping unmounts nothing and
// detaches nothing.
func (d *Driver) Run(ctx context.Context) error {
	listener, err := unixsocket.Listen(d.opts.Endpoint)
	if err != nil {
		return err
	}
	closers := []io.Closer{listener}
	fail := func(err error) error {
		for _, c := range closers {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	manager, registry := d.metricsManager()
	var port *controllerPort
	if d.opts.TCPAddress != "" {
		if port, err = d.openControllerPort(registry); err != nil {
			return fail(err)
		}
		closers = append(closers, port)
	}
	web, err := metricsserver.Listen(d.opts.Metrics)
	if err != nil {
		return fail(err)
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		server := grpc.NewServer(csiserver.Options(manager)...)
		d.Register(server)
		return csiserver.Serve(ctx, server, listener)
	})
	if port != nil {
		group.Go(func() error { return port.serve(ctx, manager) })
	}
	if web != nil {
		group.Go(func() error { return web.Serve(ctx, csiserver.Metrics(manager)) })
	}
	klog.InfoS("Serving", "driver", plugin.Name, "version", d.opts.Version, "node", d.opts.NodeID, "endpoint",
		d.opts.Endpoint,
		"tcpAddress", d.opts.TCPAddress, "pool", d.opts.PoolDir, "keeper", d.opts.KeeperSocket, "sidecar",
		d.opts.SidecarEndpoint)
	return group.Wait()
}

// Register adds the CSI services to a server.
func (d *Driver) Register(server grpc.ServiceRegistrar) {
	d.registerController(server)
	csi.RegisterNodeServer(server, &nodeServer{d: d})
}

// registerController adds the services that the controller routes to a node: all but Node, which is kubelet's.
func (d *Driver) registerController(server grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(server, &identityServer{d: d})
	csi.RegisterControllerServer(server, &controllerServer{d: d})
	csi.RegisterGroupControllerServer(server, &groupControllerServer{d: d})
	csi.RegisterSnapshotMetadataServer(server, &snapshotMetadataServer{d: d})
	d.addons.Register(server)
}

// metricsManager returns the standard metrics of a CSI plugin and the pool's, and the registry of the latter.
func (d *Driver) metricsManager() (metrics.CSIMetricsManager, prometheus.Registerer) {
	registry := d.registry()
	return metrics.NewCSIMetricsManagerForPlugin(plugin.Name).WithAdditionalRegistry(registry), registry
}

// Metrics are what a driver serves of its own, to be described and not to be collected: there is no driver behind them.
func Metrics() prometheus.Collector {
	registry := (*Driver)(nil).registry()
	newHandshakes(registry, nil)
	return registry
}

func (d *Driver) registry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("slipstream_pool_size_bytes", "Size of the file system that the pool is on.", func() float64 {
		total, _, err := d.store.Pool.Space()
		return valueOr(float64(total), err)
	})
	gauge("slipstream_pool_available_bytes", "Space for new thin volumes, after all promises of the pool.",
		func() float64 {
			available, _, err := d.space.Room(parameter.Volume{})
			return valueOr(float64(available), err)
		})
	gauge("slipstream_pool_volumes", "Volumes in the pool, including secondary copies.", func() float64 {
		recs, err := d.store.SharedVolumes()
		return valueOr(float64(len(recs)), err)
	})
	registry.MustRegister(newVolumeMetrics(d), newHealthMetrics(d))
	registry.MustRegister(tcplisten.Metrics()...)
	return registry
}

// valueOr is NaN where the value is not known: 0 would be a pool that is full.
func valueOr(value float64, err error) float64 {
	if err != nil {
		klog.ErrorS(err, "A metric cannot be read")
		return math.NaN()
	}
	return value
}
