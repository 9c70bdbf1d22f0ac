package router

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

type identityServer struct {
	csi.UnimplementedIdentityServer
	r *Router
}

func (s *identityServer) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: plugin.Name, VendorVersion: s.r.opts.Version}, nil
}

func (s *identityServer) GetPluginCapabilities(context.Context,
	*csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	return plugin.PluginCapabilities(), nil
}

// Probe is ready as soon as the nodes are known. That nodes are silent does not fail it: a restart of the controller
// would not bring them back, and the others have to be served.
func (s *identityServer) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	_, err := s.r.nodes.all()
	return &csi.ProbeResponse{Ready: wrapperspb.Bool(err == nil)}, nil
}
