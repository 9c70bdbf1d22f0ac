package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// stopTimeout is how long calls that are running get to end when the driver is told to stop. Those that do not are
// interrupted, which is the same as a crash for them and as harmless.
const stopTimeout = 10 * time.Second

// Run serves until ctx is done: the CSI services and metrics. Stopping unmounts nothing and detaches nothing.
func (d *Driver) Run(ctx context.Context) error {
	listener, err := listenUnix(d.opts.Endpoint)
	if err != nil {
		return err
	}
	var web net.Listener
	if d.opts.MetricsAddr != "" {
		if web, err = net.Listen("tcp", d.opts.MetricsAddr); err != nil {
			return errors.Join(fmt.Errorf("metrics: %w", err), listener.Close())
		}
	}

	manager := d.metricsManager()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.serveCSI(ctx, listener, manager) })
	if web != nil {
		group.Go(func() error { return serveMetrics(ctx, web, manager) })
	}
	klog.InfoS("Serving", "driver", Name, "version", d.opts.Version, "node", d.opts.NodeID, "endpoint", d.opts.Endpoint,
		"pool", d.opts.PoolDir, "keeper", d.opts.KeeperSocket, "sidecar", d.opts.SidecarEndpoint)
	return group.Wait()
}

// Register adds the CSI services to a server.
func (d *Driver) Register(server grpc.ServiceRegistrar) {
	csi.RegisterIdentityServer(server, &identityServer{d: d})
	csi.RegisterControllerServer(server, &controllerServer{d: d})
	csi.RegisterNodeServer(server, &nodeServer{d: d})
}

func (d *Driver) serveCSI(ctx context.Context, listener net.Listener, manager metrics.CSIMetricsManager) error {
	server := grpc.NewServer(grpc.ChainUnaryInterceptor(measureCalls(manager), logCalls))
	d.Register(server)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		timer := time.AfterFunc(stopTimeout, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	}()
	if err := server.Serve(listener); err != nil {
		return fmt.Errorf("serve CSI: %w", err)
	}
	<-stopped
	return nil
}

// listenUnix listens on a Unix socket given as unix:///path, unix:path or a path. The socket of a driver that was killed is
// replaced; one that somebody listens on is an error.
func listenUnix(endpoint string) (net.Listener, error) {
	path := strings.TrimPrefix(strings.TrimPrefix(endpoint, "unix:"), "//")
	if path == "" || strings.Contains(path, "://") {
		return nil, fmt.Errorf("endpoint %q is not a Unix socket: want unix:///path", endpoint)
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("endpoint %s: another process listens there; stop it first", path)
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("endpoint: %w", err)
	case info.Mode()&os.ModeSocket == 0:
		return nil, fmt.Errorf("endpoint %s exists and is not a socket; remove it or choose another", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("endpoint: %w", err)
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("endpoint: %w", err)
	}
	return listener, nil
}

// logCalls logs each call with its request, response or error, secrets stripped. Kubelet and the sidecars ask some questions every few
// seconds; those are logged two levels lower.
func logCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	level := klog.Level(2)
	switch info.FullMethod {
	case csi.Identity_Probe_FullMethodName, csi.Identity_GetPluginInfo_FullMethodName, csi.Identity_GetPluginCapabilities_FullMethodName,
		csi.Controller_ControllerGetCapabilities_FullMethodName, csi.Controller_GetCapacity_FullMethodName,
		csi.Node_NodeGetCapabilities_FullMethodName, csi.Node_NodeGetVolumeStats_FullMethodName:
		level += 2
	}
	logger := klog.V(level)
	logger.InfoS("Call", "method", info.FullMethod, "request", protosanitizer.StripSecrets(req))
	response, err := handler(ctx, req)
	switch {
	case err == nil:
		logger.InfoS("Done", "method", info.FullMethod, "response", protosanitizer.StripSecrets(response))
	case status.Code(err) == codes.Aborted || status.Code(err) == codes.NotFound:
		logger.InfoS("Refused", "method", info.FullMethod, "code", status.Code(err), "reason", status.Convert(err).Message())
	default:
		klog.ErrorS(err, "Failed", "method", info.FullMethod, "request", protosanitizer.StripSecrets(req))
	}
	return response, err
}

func measureCalls(manager metrics.CSIMetricsManager) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		start := time.Now()
		response, err := handler(ctx, req)
		manager.RecordMetrics(info.FullMethod, err, time.Since(start))
		return response, err
	}
}

// metricsManager returns the standard metrics of a CSI plugin and the pool's.
func (d *Driver) metricsManager() metrics.CSIMetricsManager {
	registry := prometheus.NewRegistry()
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("slipstream_pool_size_bytes", "Size of the file system that the pool is on.", func() float64 {
		total, _, err := d.pool.Capacity()
		return valueOr(float64(total), err)
	})
	gauge("slipstream_pool_available_bytes", "What new volumes can have of the pool.", func() float64 {
		available, err := d.availableBytes()
		return valueOr(float64(available), err)
	})
	gauge("slipstream_pool_volumes", "Volumes in the pool, secondary copies included.", func() float64 {
		recs, err := d.records()
		return valueOr(float64(len(recs)), err)
	})
	return metrics.NewCSIMetricsManagerForPlugin(Name).WithAdditionalRegistry(registry)
}

// valueOr is NaN where the value is not known: 0 would be a pool that is full.
func valueOr(value float64, err error) float64 {
	if err != nil {
		klog.ErrorS(err, "A metric cannot be read")
		return math.NaN()
	}
	return value
}

func serveMetrics(ctx context.Context, listener net.Listener, manager metrics.CSIMetricsManager) error {
	mux := http.NewServeMux()
	manager.RegisterToServer(mux, "/metrics")
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
