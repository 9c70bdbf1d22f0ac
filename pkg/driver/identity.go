package driver

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// probeTimeout bounds how long a Probe waits for the sidecar; the livenessprobe container's own limit is one second.
const probeTimeout = 500 * time.Millisecond

type identityServer struct {
	csi.UnimplementedIdentityServer
	d *Driver
}

func (s *identityServer) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: plugin.Name, VendorVersion: s.d.opts.Version}, nil
}

func (s *identityServer) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	return plugin.PluginCapabilities(), nil
}

// Probe is true when the pool answers. The socket is there only after the start-up reconciliation, so nothing else has
// to be waited for.
//
// An absent replicator does not fail it. A failing Probe makes kubelet restart the driver, which cannot bring the
// replicator back, and plain volumes are fine without it; calls that need it say so themselves. It is logged.
func (s *identityServer) Probe(ctx context.Context, _ *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	if err := s.d.store.Pool.Check(); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "pool %s does not answer: %v; check the file system it is on",
			s.d.opts.PoolDir, err)
	}
	if s.d.sidecar != nil {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		if err := s.d.sidecar.Ready(ctx); err != nil {
			klog.V(2).InfoS("The replicator does not answer; replicable volumes cannot be staged or unstaged", "err", err)
		}
	}
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}
