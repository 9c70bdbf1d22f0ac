package csiaddons

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// GroupPrefix is the beginning of the names of the groups that CreateVolumeGroup makes. The name travels to the peer,
// so both sites see that csi-addons decides about the members of the group.
const GroupPrefix = "csi-addons-"

// maxGroupNameBytes is the limit of a group's name.
const maxGroupNameBytes = 128

// groupServer is the volume group service.
type groupServer struct {
	groups.UnimplementedControllerServer
	n *Node
}

// GroupName is the name of the consistency group that CreateVolumeGroup makes for a name of the controller.
func GroupName(name string) (string, error) {
	full := GroupPrefix + name
	if err := untrusted.CheckName("volume group name", name); err != nil {
		return "", status.Error(codes.InvalidArgument, err.Error())
	}
	if len(full) > maxGroupNameBytes {
		return "", status.Errorf(codes.InvalidArgument, "volume group name %.80q has %s, the limit is %d", name,
			words.Count(len(name), "character"), maxGroupNameBytes-len(GroupPrefix))
	}
	return full, nil
}

// CreateVolumeGroup makes a group of volumes. A group that has exactly these volumes is returned as it is, also if
// something else made it: that is how the objects of csi-addons at the other site find the copy, and how a group of a
// StorageClass is used.
func (s *groupServer) CreateVolumeGroup(ctx context.Context,
	req *groups.CreateVolumeGroupRequest) (*groups.CreateVolumeGroupResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name, err := GroupName(req.GetName())
	if err != nil {
		return nil, err
	}
	want, err := settings(req.GetParameters())
	if err != nil {
		return nil, err
	}
	if len(req.GetVolumeIds()) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "volume group %s: name at least one volume; a group is made where "+
			"its volumes are", req.GetName())
	}
	leave, err := s.n.enter("volume group", name)
	if err != nil {
		return nil, err
	}
	defer leave()
	g, err := s.n.createGroup(ctx, name, req.GetVolumeIds(), want)
	if err != nil {
		return nil, err
	}
	return &groups.CreateVolumeGroupResponse{VolumeGroup: s.n.describe(g)}, nil
}

func (n *Node) createGroup(ctx context.Context, name string, ids []string,
	want parameter.Mutation) (*sidecarpb.GroupStatus, error) {
	all, err := n.groups(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		if sameVolumes(g, ids) {
			return g, usable(g)
		}
	}
	if i := slices.IndexFunc(all, func(g *sidecarpb.GroupStatus) bool { return g.GetName() == name }); i >= 0 {
		// An earlier call may have been cut short. What it added is a part of what is wanted.
		g := all[i]
		if err := usable(g); err != nil {
			return nil, err
		}
		for _, id := range members(g) {
			if !slices.Contains(ids, id) {
				return nil, status.Errorf(codes.AlreadyExists, "volume group %s exists with volume %s, which is not among those "+
					"that it is to have", name, id)
			}
		}
		if g.GetRole() != sidecarpb.Role_ROLE_PRIMARY {
			return nil, status.Errorf(codes.Aborted, "volume group %s is a copy of %s, which decides about its volumes; wait "+
				"until it has them all", name, g.GetPeer())
		}
	}
	if err := n.checkMembers(name, ids); err != nil {
		return nil, err
	}
	client, err := n.replicator()
	if err != nil {
		return nil, err
	}
	// The peer, and what needs one, is set when replication is enabled.
	_, err = client.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{Name: name,
		Settings: want.GroupSettings(func(key string) bool { return key == parameter.KeyJournalSize && want.Has(key) })})
	if err != nil && status.Code(err) != codes.AlreadyExists { // with other settings, which replication gave it since
		return nil, failure(err)
	}
	if err := n.setMembers(ctx, name, nil, ids); err != nil {
		return nil, err
	}
	all, err = n.groups(ctx, name)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// checkMembers says which volume cannot be put into a group.
func (n *Node) checkMembers(group string, ids []string) error {
	for _, id := range ids {
		rec, err := n.volume(id)
		switch {
		case err != nil:
			return err
		case !rec.Replicable:
			return status.Errorf(codes.InvalidArgument, "volume %s is not replicable; it was created without %s", id,
				parameter.KeyReplicable)
		case rec.Group != "" && rec.Group != group:
			return status.Errorf(codes.FailedPrecondition, "volume %s is in group %s already, and a volume is in one group at "+
				"most", id, rec.Group)
		}
	}
	return nil
}

// setMembers adds and removes volumes until the group has what it is to have.
func (n *Node) setMembers(ctx context.Context, group string, have, want []string) error {
	client, err := n.replicator()
	if err != nil {
		return err
	}
	for _, id := range want {
		if slices.Contains(have, id) {
			continue
		}
		if _, err := client.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: id}); err != nil {
			return failure(err)
		}
	}
	for _, id := range have {
		if slices.Contains(want, id) {
			continue
		}
		if _, err := client.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: group, VolumeId: id}); err != nil {
			return failure(err)
		}
	}
	return nil
}

// ModifyVolumeGroupMembership makes the group have exactly the volumes of the request. The controller calls it again
// and again with the same list, at both sites.
func (s *groupServer) ModifyVolumeGroupMembership(ctx context.Context,
	req *groups.ModifyVolumeGroupMembershipRequest) (*groups.ModifyVolumeGroupMembershipResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	g, leave, err := s.begin(ctx, req.GetVolumeGroupId())
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := s.n.modifyGroup(ctx, g, req.GetVolumeIds()); err != nil {
		return nil, err
	}
	all, err := s.n.groups(ctx, g.GetName())
	if err != nil {
		return nil, err
	}
	return &groups.ModifyVolumeGroupMembershipResponse{VolumeGroup: s.n.describe(all[0])}, nil
}

func (n *Node) modifyGroup(ctx context.Context, g *sidecarpb.GroupStatus, ids []string) error {
	if sameVolumes(g, ids) {
		return nil
	}
	own := strings.HasPrefix(g.GetName(), GroupPrefix)
	writable := g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED
	switch {
	case len(ids) == 0 && (!own || !writable):
		return nil // it is about to be deleted, which does nothing either
	case !writable:
		return status.Errorf(codes.Aborted, "group %s is not primary here; %s decides about its volumes", g.GetName(),
			g.GetPeer())
	case !own:
		return status.Errorf(codes.InvalidArgument, "group %s was not made by CreateVolumeGroup, and has the volumes %s; "+
			"its members are changed where it was made (StorageClass, ConsistencyGroup or slipctl group)", g.GetName(),
			strings.Join(members(g), ", "))
	}
	if err := n.checkMembers(g.GetName(), ids); err != nil {
		return err
	}
	return n.setMembers(ctx, g.GetName(), members(g), ids)
}

// DeleteVolumeGroup deletes an empty group. Its volumes stay in any case.
func (s *groupServer) DeleteVolumeGroup(ctx context.Context,
	req *groups.DeleteVolumeGroupRequest) (*groups.DeleteVolumeGroupResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	g, leave, err := s.begin(ctx, req.GetVolumeGroupId())
	if status.Code(err) == codes.NotFound {
		return &groups.DeleteVolumeGroupResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	defer leave()
	writable := g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED
	switch {
	case !writable, !strings.HasPrefix(g.GetName(), GroupPrefix):
		return &groups.DeleteVolumeGroupResponse{}, nil
	case len(g.GetVolumes()) > 0:
		return nil, status.Errorf(codes.FailedPrecondition, "group %s has the volumes %s; remove them first", g.GetName(),
			strings.Join(members(g), ", "))
	}
	client, err := s.n.replicator()
	if err != nil {
		return nil, err
	}
	if _, err := client.DeleteGroup(ctx, &sidecarpb.DeleteGroupRequest{Name: g.GetName()}); err != nil {
		return nil, failure(err)
	}
	return &groups.DeleteVolumeGroupResponse{}, nil
}

// ControllerGetVolumeGroup returns one group.
func (s *groupServer) ControllerGetVolumeGroup(ctx context.Context,
	req *groups.ControllerGetVolumeGroupRequest) (*groups.ControllerGetVolumeGroupResponse, error) {
	if req.GetVolumeGroupId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume_group_id is missing")
	}
	g, err := s.n.groupByID(ctx, req.GetVolumeGroupId())
	if err != nil {
		return nil, err
	}
	return &groups.ControllerGetVolumeGroupResponse{VolumeGroup: s.n.describe(g)}, nil
}

// ListVolumeGroups returns the groups of this node by id.
func (s *groupServer) ListVolumeGroups(ctx context.Context,
	req *groups.ListVolumeGroupsRequest) (*groups.ListVolumeGroupsResponse, error) {
	after, ok := strings.CutPrefix(req.GetStartingToken(), plugin.ListTokenPrefix)
	switch {
	case req.GetStartingToken() != "" && !ok:
		return nil, status.Errorf(codes.Aborted, "starting_token %.80q is not one of this driver", req.GetStartingToken())
	case req.GetMaxEntries() < 0:
		return nil, status.Errorf(codes.InvalidArgument, "max_entries %d is negative", req.GetMaxEntries())
	}
	all, err := s.n.groups(ctx, "")
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b *sidecarpb.GroupStatus) int { return strings.Compare(a.GetGroupId(), b.GetGroupId()) })
	response := &groups.ListVolumeGroupsResponse{}
	for _, g := range all {
		if g.GetGroupId() <= after {
			continue // one that cannot be opened has no id
		}
		if n := len(response.Entries); req.GetMaxEntries() > 0 && n == int(req.GetMaxEntries()) {
			response.NextToken = plugin.ListTokenAfter(response.Entries[n-1].GetVolumeGroup().GetVolumeGroupId())
			break
		}
		response.Entries = append(response.Entries, &groups.ListVolumeGroupsResponse_Entry{VolumeGroup: s.n.describe(g)})
	}
	return response, nil
}

func (s *groupServer) begin(ctx context.Context, id string) (*sidecarpb.GroupStatus, func(), error) {
	if id == "" {
		return nil, nil, status.Error(codes.InvalidArgument, "volume_group_id is missing")
	}
	g, err := s.n.groupByID(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	leave, err := s.n.enter("group", id)
	return g, leave, err
}

func (n *Node) describe(g *sidecarpb.GroupStatus) *groups.VolumeGroup {
	group := &groups.VolumeGroup{VolumeGroupId: g.GetGroupId(),
		VolumeGroupContext: map[string]string{parameter.KeyConsistencyGroup: g.GetName()}}
	for _, v := range g.GetVolumes() {
		group.Volumes = append(group.Volumes, &csi.Volume{VolumeId: v.GetVolumeId(), CapacityBytes: v.GetSizeBytes(),
			AccessibleTopology: []*csi.Topology{{Segments: map[string]string{plugin.TopologyKey: n.Driver.NodeID()}}}})
	}
	return group
}

func members(g *sidecarpb.GroupStatus) []string {
	var ids []string
	for _, v := range g.GetVolumes() {
		ids = append(ids, v.GetVolumeId())
	}
	return ids
}

// sameVolumes reports whether a group has these volumes and no others.
func sameVolumes(g *sidecarpb.GroupStatus, ids []string) bool {
	want := slices.Compact(slices.Sorted(slices.Values(ids)))
	return slices.Equal(slices.Sorted(slices.Values(members(g))), want)
}
