package driver

import (
	"context"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/snapshots"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// groupControllerServer takes snapshots of several volumes at one instant. A group snapshot is nothing but its
// snapshots: their records name it.
type groupControllerServer struct {
	csi.UnimplementedGroupControllerServer
	d *Driver
}

func (s *groupControllerServer) GroupControllerGetCapabilities(context.Context,
	*csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

func parseGroupSnapshot(req *csi.CreateVolumeGroupSnapshotRequest) (r snapshots.GroupRequest, err error) {
	r = snapshots.GroupRequest{Name: req.GetName(), Sources: slices.Sorted(slices.Values(req.GetSourceVolumeIds())),
		Own: parameter.Own(req.GetParameters())}
	switch {
	case r.Name == "":
		return r, status.Error(codes.InvalidArgument, "group snapshot name is missing")
	case len(r.Name) > maxNameBytes:
		return r, status.Errorf(codes.InvalidArgument, "group snapshot name has %s, more than %d",
			words.Count(len(r.Name), "byte"), maxNameBytes)
	case len(r.Sources) == 0:
		return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: source volume ids are missing", r.Name)
	case r.Sources[0] == "":
		return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: one of its source volume ids is empty", r.Name)
	}
	for i, id := range r.Sources[1:] {
		if id == r.Sources[i] {
			return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: volume %s is named twice", r.Name, id)
		}
	}
	r.Params, err = parameter.ParseSnapshot(req.GetParameters())
	return r, err
}

// CreateVolumeGroupSnapshot takes snapshots of volumes of one consistency group at one ordinal, at a primary or a
// secondary. Volumes without a group are taken together only where their file systems may be frozen for it.
func (s *groupControllerServer) CreateVolumeGroupSnapshot(ctx context.Context,
	req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	r, err := parseGroupSnapshot(req)
	if err != nil {
		return nil, err
	}
	if r.Part, err = groupPart(ctx); err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter("group snapshot name "+r.Name, "CreateVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	members, err := s.d.store.GroupMembers(func(rec *blockdev.SnapshotRecord) bool {
		return rec.GroupSnapshotName == r.Name
	})
	if err != nil {
		return nil, err
	}
	if store.Whole(members) {
		var taken []string
		for _, m := range members {
			taken = append(taken, m.SourceVolumeID)
		}
		if slices.Sort(taken); !slices.Equal(taken, r.Sources) {
			return nil, status.Errorf(codes.AlreadyExists, "group snapshot %q exists (%s) and is of volumes %s, not of %s; "+
				"choose another name",
				r.Name, members[0].GroupSnapshotID, strings.Join(taken, ", "), strings.Join(r.Sources, ", "))
		}
	} else if r.Part != nil && *r.Part == (plugin.GroupPart{}) {
		return nil, status.Errorf(codes.NotFound, "group snapshot %q: no whole part of it is on this node", r.Name)
	} else if members, err = s.d.snapshots.TakeGroup(ctx, r, members); err != nil {
		return nil, err
	}
	snapshot, err := s.snapshot(members)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: snapshot}, nil
}

// groupPart is what the controller says of the other nodes; nil if there are none.
func groupPart(ctx context.Context) (*plugin.GroupPart, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	given := md.Get(plugin.GroupPartMetadata)
	if len(given) == 0 {
		return nil, nil
	}
	p, err := plugin.ParseGroupPart(given[0])
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &p, nil
}

// DeleteVolumeGroupSnapshot deletes all snapshots of a group snapshot.
func (s *groupControllerServer) DeleteVolumeGroupSnapshot(ctx context.Context,
	req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "group snapshot id is missing")
	}
	done, err := s.d.guards.Enter(id, "DeleteVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	members, err := s.d.store.GroupMembers(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == id })
	if err != nil {
		return nil, err
	}
	// Some of those that the CO knows may have gone in an earlier call that was interrupted.
	if err := s.matches(id, members, req.GetSnapshotIds()); err != nil {
		return nil, err
	}
	for _, m := range members {
		doneMember, err := s.d.guards.Enter(m.ID, "DeleteVolumeGroupSnapshot")
		if err != nil {
			return nil, err
		}
		defer doneMember()
		if reader := s.d.tasks.CopyReading(m.ID); reader != nil {
			return nil, status.Errorf(codes.Aborted, "group snapshot %s: snapshot %s is being copied into volume %s, %s; "+
				"call again when that is done", id, m.ID, reader.ID(), reader)
		}
	}
	for _, m := range members {
		if err := s.d.snapshots.DeleteSnapshot(ctx, m); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// matches compares the snapshots of a group snapshot with those that the CO names, if it names any: it has to name all
// that there are, and none that is another group snapshot's.
func (s *groupControllerServer) matches(id string, members []*blockdev.SnapshotRecord, named []string) error {
	if len(named) == 0 {
		return nil
	}
	for _, m := range members {
		if !slices.Contains(named, m.ID) {
			return status.Errorf(codes.InvalidArgument, "group snapshot %s has snapshot %s, which is not among the snapshot_ids",
				id, m.ID)
		}
	}
	for _, name := range named {
		rec, err := s.d.store.Snapshot(name)
		if status.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			return err
		}
		if rec.GroupSnapshotID != id {
			return status.Errorf(codes.InvalidArgument, "snapshot %s is not of group snapshot %s", name, id)
		}
	}
	return nil
}

// GetVolumeGroupSnapshot returns a group snapshot, or NotFound; for one of which a snapshot failed the error says why.
func (s *groupControllerServer) GetVolumeGroupSnapshot(_ context.Context,
	req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "group snapshot id is missing")
	}
	members, err := s.d.store.GroupMembers(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == id })
	if err != nil {
		return nil, err
	}
	if !store.Whole(members) {
		return nil, status.Errorf(codes.NotFound, "group snapshot %q: not in the pool, or not all of it", id)
	}
	if err := s.matches(id, members, req.GetSnapshotIds()); err != nil {
		return nil, err
	}
	snapshot, err := s.snapshot(members)
	if err != nil {
		return nil, err
	}
	return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: snapshot}, nil
}

func (s *groupControllerServer) snapshot(members []*blockdev.SnapshotRecord) (*csi.VolumeGroupSnapshot, error) {
	slices.SortFunc(members, func(a, b *blockdev.SnapshotRecord) int { return strings.Compare(a.ID, b.ID) })
	group := &csi.VolumeGroupSnapshot{GroupSnapshotId: members[0].GroupSnapshotID, ReadyToUse: true,
		CreationTime: timestamppb.New(store.TakenAt(members[0]))}
	controller := &controllerServer{d: s.d}
	for _, m := range members {
		if err := store.SnapshotFailure(m); err != nil {
			return nil, status.Errorf(status.Code(err), "group snapshot %s: %s", m.GroupSnapshotID,
				status.Convert(err).Message())
		}
		snapshot := controller.snapshot(m)
		group.Snapshots = append(group.Snapshots, snapshot)
		group.ReadyToUse = group.ReadyToUse && snapshot.GetReadyToUse()
	}
	return group, nil
}
