package router

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// nodeServer is not a Node service: nothing is mounted where the router is. The resizer asks the driver beside it
// whether nodes can grow volumes, and ends if it gets no answer.
type nodeServer struct {
	csi.UnimplementedNodeServer
}

func (nodeServer) NodeGetCapabilities(context.Context,
	*csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	return plugin.NodeCapabilities(), nil
}
