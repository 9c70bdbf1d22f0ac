// Package csiserver is what every CSI server of the project does around its services: the log, the
// standard metrics, and an end that lets calls finish.
//
// It knows nothing of what the services do. Serve may run several times in one process; everything here is safe for
// concurrent use.
package csiserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/kubernetes-csi/csi-lib-utils/protosanitizer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// StopTimeout is how long calls that are running get to end when a server is told to stop. Those that do not are
// interrupted, which is the same as a crash for them and as harmless.
const StopTimeout = 10 * time.Second

// Options returns what a server needs to measure and log its calls. Further interceptors run inside these.
func Options(manager metrics.CSIMetricsManager, inner ...grpc.UnaryServerInterceptor) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(append([]grpc.UnaryServerInterceptor{measureCalls(manager), logCalls}, inner...)...),
		grpc.ChainStreamInterceptor(observeStreams(manager)),
	}
}

// Serve serves until ctx is done, and then lets running calls end within StopTimeout. It closes listener.
func Serve(ctx context.Context, server *grpc.Server, listener net.Listener) error {
	stopped := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer close(stopped)
		<-ctx.Done()
		timer := time.AfterFunc(StopTimeout, server.Stop)
		defer timer.Stop()
		server.GracefulStop()
	}()
	err := server.Serve(listener)
	cancel()
	<-stopped
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve CSI on %s: %w", listener.Addr(), err)
	}
	return nil
}

// Metrics returns the handler of what a manager has measured.
func Metrics(manager metrics.CSIMetricsManager) http.Handler {
	mux := http.NewServeMux()
	manager.RegisterToServer(mux, "/")
	return mux
}

// logCalls logs each call with its request, response or error, secrets stripped. Kubelet and the sidecars ask some
// questions every few seconds; those are logged two levels lower.
func logCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	level := klog.Level(2)
	switch info.FullMethod {
	case csi.Identity_Probe_FullMethodName, csi.Identity_GetPluginInfo_FullMethodName,
		csi.Identity_GetPluginCapabilities_FullMethodName,
		csi.Controller_ControllerGetCapabilities_FullMethodName, csi.Controller_GetCapacity_FullMethodName,
		csi.Controller_ControllerGetVolumeHealth_FullMethodName, csi.Controller_ControllerListVolumeHealth_FullMethodName,
		csi.Node_NodeGetVolumeHealth_FullMethodName, csi.Node_NodeGetStorageHealth_FullMethodName,
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

// observeStreams measures and logs calls that answer with a stream. What they are about is in their errors.
func observeStreams(manager metrics.CSIMetricsManager) grpc.StreamServerInterceptor {
	return func(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		start := time.Now()
		err := handler(server, stream)
		manager.RecordMetrics(info.FullMethod, err, time.Since(start))
		if err != nil {
			klog.ErrorS(err, "Failed", "method", info.FullMethod, "took", time.Since(start))
		} else {
			klog.V(2).InfoS("Done", "method", info.FullMethod, "took", time.Since(start))
		}
		return err
	}
}
