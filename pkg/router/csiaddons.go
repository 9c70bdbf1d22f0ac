package router

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	identity "github.com/slipstream-storage/slipstream/pkg/api/addonidentitypb"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/csiaddons"
)

// RegisterAddons adds the csi-addons services to a server: each call goes to the node of its volume or group. What they
// do there, and what their codes mean, says package csiaddons.
func (r *Router) RegisterAddons(server grpc.ServiceRegistrar) {
	identity.RegisterIdentityServer(server, &csiaddons.Identity{Version: r.opts.Version})
	replication.RegisterControllerServer(server, &replicationServer{r: r})
	groups.RegisterControllerServer(server, &volumeGroupServer{r: r})
}

// ofAddons turns what the router itself says into what csi-addons may hear: FailedPrecondition would force a promotion,
// and is said by nodes only.
func ofAddons(err error) error {
	if status.Code(err) != codes.FailedPrecondition {
		return err
	}
	return status.Error(codes.Aborted, status.Convert(err).Message())
}

// addonsNode returns the node that has a volume or group, or NotFound.
func (r *Router) addonsNode(ctx context.Context, kind locatepb.Key_Kind, id, what string) (*node, error) {
	what = what + " " + fmt.Sprintf("%.80q", id)
	if id == "" {
		return nil, status.Errorf(codes.InvalidArgument, "%s id is missing", what)
	}
	at, err := r.locate(ctx, kind, id, what)
	if err != nil {
		return nil, ofAddons(err)
	}
	if at == nil {
		return notFound[*node](what)
	}
	return at, nil
}

// replicationServer is the replication service.
type replicationServer struct {
	replication.UnimplementedControllerServer
	r *Router
}

// sourced is a request about a volume or a group.
type sourced interface {
	GetReplicationSource() *replication.ReplicationSource
}

// replicate hands a call on to the node of its source.
func replicate[Request sourced, Response any](ctx context.Context, r *Router, req Request,
	call func(replication.ControllerClient, context.Context, Request, ...grpc.CallOption) (Response, error)) (Response,
	error) {
	var none Response
	var at *node
	var err error
	switch source := req.GetReplicationSource(); {
	case source.GetVolume() != nil:
		at, err = r.addonsNode(ctx, locatepb.Key_VOLUME_ID, source.GetVolume().GetVolumeId(), "volume")
	case source.GetVolumegroup() != nil:
		at, err = r.addonsNode(ctx, locatepb.Key_CONSISTENCY_GROUP_ID, source.GetVolumegroup().GetVolumeGroupId(),
			"volume group")
	default:
		err = status.Error(codes.InvalidArgument, "replication_source names neither a volume nor a volume group")
	}
	if err != nil {
		return none, err
	}
	return call(at.replication, ctx, req)
}

func (s *replicationServer) EnableVolumeReplication(ctx context.Context,
	req *replication.EnableVolumeReplicationRequest) (*replication.EnableVolumeReplicationResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.EnableVolumeReplication)
}

func (s *replicationServer) DisableVolumeReplication(ctx context.Context,
	req *replication.DisableVolumeReplicationRequest) (*replication.DisableVolumeReplicationResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.DisableVolumeReplication)
}

func (s *replicationServer) PromoteVolume(ctx context.Context,
	req *replication.PromoteVolumeRequest) (*replication.PromoteVolumeResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.PromoteVolume)
}

func (s *replicationServer) DemoteVolume(ctx context.Context,
	req *replication.DemoteVolumeRequest) (*replication.DemoteVolumeResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.DemoteVolume)
}

func (s *replicationServer) ResyncVolume(ctx context.Context,
	req *replication.ResyncVolumeRequest) (*replication.ResyncVolumeResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.ResyncVolume)
}

func (s *replicationServer) GetVolumeReplicationInfo(ctx context.Context,
	req *replication.GetVolumeReplicationInfoRequest) (*replication.GetVolumeReplicationInfoResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.GetVolumeReplicationInfo)
}

func (s *replicationServer) GetReplicationDestinationInfo(ctx context.Context,
	req *replication.GetReplicationDestinationInfoRequest) (*replication.GetReplicationDestinationInfoResponse, error) {
	return replicate(ctx, s.r, req, replication.ControllerClient.GetReplicationDestinationInfo)
}

// volumeGroupServer is the volume group service.
type volumeGroupServer struct {
	groups.UnimplementedControllerServer
	r *Router
}

// CreateVolumeGroup goes to the node that has all the volumes. It also fixes the node, so two routers cannot make one
// group on two nodes.
func (s *volumeGroupServer) CreateVolumeGroup(ctx context.Context,
	req *groups.CreateVolumeGroupRequest) (*groups.CreateVolumeGroupResponse, error) {
	name, err := csiaddons.GroupName(req.GetName())
	if err != nil {
		return nil, err
	}
	at, err := s.r.nodeOfAll(ctx, key(locatepb.Key_CONSISTENCY_GROUP, name), name, req.GetVolumeIds())
	if err != nil {
		return nil, err
	}
	return at.volumeGroups.CreateVolumeGroup(ctx, req)
}

func (s *volumeGroupServer) ModifyVolumeGroupMembership(ctx context.Context,
	req *groups.ModifyVolumeGroupMembershipRequest) (*groups.ModifyVolumeGroupMembershipResponse, error) {
	id := req.GetVolumeGroupId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume group id is missing")
	}
	at, err := s.r.nodeOfAll(ctx, key(locatepb.Key_CONSISTENCY_GROUP_ID, id), id, req.GetVolumeIds())
	if err != nil {
		return nil, err
	}
	return at.volumeGroups.ModifyVolumeGroupMembership(ctx, req)
}

// nodeOfAll returns the node of a group and of volumes that are to be in it. The group need not exist if it is looked
// for by name.
func (r *Router) nodeOfAll(ctx context.Context, group *locatepb.Key, name string, volumes []string) (*node, error) {
	keys := []*locatepb.Key{group}
	for _, id := range volumes {
		if id == "" {
			return nil, status.Errorf(codes.InvalidArgument, "volume group %.80q: a volume id is empty", name)
		}
		keys = append(keys, key(locatepb.Key_VOLUME_ID, id))
	}
	all, err := r.ask(ctx, "", keys...)
	if err != nil {
		return nil, err
	}
	var at *node
	for i := range keys {
		what := fmt.Sprintf("volume group %.80q", name)
		if i > 0 {
			what = "volume " + fmt.Sprintf("%.80q", volumes[i-1])
		}
		h, err := all.only(i, what)
		if err != nil {
			return nil, ofAddons(err)
		}
		switch {
		case h == nil:
			if err := all.silence(what, anyNode); err != nil {
				return nil, err
			}
			if i == 0 && group.GetKind() == locatepb.Key_CONSISTENCY_GROUP {
				continue
			}
			return notFound[*node](what)
		case at != nil && at != h.node:
			return nil, status.Errorf(codes.FailedPrecondition, "volume group %.80q: %s is on node %s, the rest on node %s: a "+
				"group's volumes must be on one node", name, what, h.node.name, at.name)
		}
		at = h.node
	}
	if at == nil {
		return nil, status.Errorf(codes.InvalidArgument, "volume group %.80q: name at least one volume; a group is made "+
			"where its volumes are", name)
	}
	return at, nil
}

func (s *volumeGroupServer) DeleteVolumeGroup(ctx context.Context,
	req *groups.DeleteVolumeGroupRequest) (*groups.DeleteVolumeGroupResponse, error) {
	at, err := s.r.addonsNode(ctx, locatepb.Key_CONSISTENCY_GROUP_ID, req.GetVolumeGroupId(), "volume group")
	if status.Code(err) == codes.NotFound {
		return &groups.DeleteVolumeGroupResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	return at.volumeGroups.DeleteVolumeGroup(ctx, req)
}

func (s *volumeGroupServer) ControllerGetVolumeGroup(ctx context.Context,
	req *groups.ControllerGetVolumeGroupRequest) (*groups.ControllerGetVolumeGroupResponse, error) {
	at, err := s.r.addonsNode(ctx, locatepb.Key_CONSISTENCY_GROUP_ID, req.GetVolumeGroupId(), "volume group")
	if err != nil {
		return nil, err
	}
	return at.volumeGroups.ControllerGetVolumeGroup(ctx, req)
}

func (s *volumeGroupServer) ListVolumeGroups(ctx context.Context,
	req *groups.ListVolumeGroupsRequest) (*groups.ListVolumeGroupsResponse, error) {
	if err := checkLimit(req.GetMaxEntries()); err != nil {
		return nil, err
	}
	entries, next, err := merge(ctx, s.r, req.GetMaxEntries(),
		func(e *groups.ListVolumeGroupsResponse_Entry) string { return e.GetVolumeGroup().GetVolumeGroupId() },
		func(ctx context.Context, n *node) (page[*groups.ListVolumeGroupsResponse_Entry], error) {
			response, err := n.volumeGroups.ListVolumeGroups(ctx, req)
			return page[*groups.ListVolumeGroupsResponse_Entry]{response.GetEntries(), response.GetNextToken() != ""}, err
		})
	if err != nil {
		return nil, err
	}
	return &groups.ListVolumeGroupsResponse{Entries: entries, NextToken: next}, nil
}

// isAddons reports whether a method is one of csi-addons.
func isAddons(method string) bool {
	return strings.HasPrefix(method, "/"+replication.Controller_ServiceDesc.ServiceName+"/") ||
		strings.HasPrefix(method, "/"+groups.Controller_ServiceDesc.ServiceName+"/")
}

// withoutAddons turns the answer of a node whose driver has no csi-addons services into Unavailable. It keeps the
// answer of one that has the service and not the call.
func (n *node) withoutAddons(err error) error {
	if !strings.HasPrefix(status.Convert(err).Message(), "unknown service") {
		return err
	}
	return status.Errorf(codes.Unavailable, "node %s: %s; the node runs an older version of the driver", n.name,
		status.Convert(err).Message())
}
