package router

import (
	"context"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// servesGroups reports whether the driver has group snapshots.
func servesGroups() bool {
	return slices.ContainsFunc(plugin.PluginCapabilities().GetCapabilities(), func(c *csi.PluginCapability) bool {
		return c.GetService().GetType() == csi.PluginCapability_Service_GROUP_CONTROLLER_SERVICE
	})
}

// groupServer routes group snapshots. Those of a group over several nodes have a part on each; see group_nodes.go.
type groupServer struct {
	csi.UnimplementedGroupControllerServer
	r *Router
}

func (s *groupServer) GroupControllerGetCapabilities(context.Context,
	*csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

func (s *groupServer) CreateVolumeGroupSnapshot(ctx context.Context,
	req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	switch {
	case req.GetName() == "":
		return nil, status.Error(codes.InvalidArgument, "group snapshot name is missing")
	case len(req.GetSourceVolumeIds()) == 0:
		return nil, status.Errorf(codes.InvalidArgument, "group snapshot %q: source volume ids are missing", req.GetName())
	}
	all, err := s.r.askSnapshot(ctx, locatepb.Key_GROUP_SNAPSHOT_NAME, req.GetName(), req.GetSourceVolumeIds())
	if err != nil {
		return nil, err
	}
	parts, err := parts(all, req)
	if err != nil {
		return nil, err
	}
	if parts != nil {
		return s.createOverNodes(ctx, req, parts)
	}
	at, err := all.placeSnapshot(req.GetName(), "group snapshot name", req.GetSourceVolumeIds())
	if err != nil {
		return nil, err
	}
	return at.groups.CreateVolumeGroupSnapshot(ctx, req)
}

func (s *groupServer) DeleteVolumeGroupSnapshot(ctx context.Context,
	req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	if plugin.GroupSnapshotSize(req.GetGroupSnapshotId()) > 0 {
		return s.deleteOverNodes(ctx, req)
	}
	return route(ctx, s.r, locatepb.Key_GROUP_SNAPSHOT_ID, req.GetGroupSnapshotId(), req,
		func(n *node, ctx context.Context,
			req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
			return n.groups.DeleteVolumeGroupSnapshot(ctx, req)
		}, deleted(&csi.DeleteVolumeGroupSnapshotResponse{}))
}

func (s *groupServer) GetVolumeGroupSnapshot(ctx context.Context,
	req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	if plugin.GroupSnapshotSize(req.GetGroupSnapshotId()) > 0 {
		return s.getOverNodes(ctx, req)
	}
	return route(ctx, s.r, locatepb.Key_GROUP_SNAPSHOT_ID, req.GetGroupSnapshotId(), req,
		func(n *node, ctx context.Context,
			req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
			return n.groups.GetVolumeGroupSnapshot(ctx, req)
		}, notFound)
}
