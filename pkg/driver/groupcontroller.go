package driver

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// groupSnapshotIDPrefix makes a group snapshot's id recognisable in logs.
const groupSnapshotIDPrefix = "gsnap-"

// groupSizeKey, in a snapshot's parameters, is how many snapshots its group snapshot has. One that has fewer, or has some in
// state creating, was interrupted, and no call has answered with it. The key is not under ParameterPrefix, where it could be
// mistaken for a parameter.
const groupSizeKey = "driver.internal/group-size"

// groupControllerServer takes snapshots of several volumes at one instant. A group snapshot is nothing but its snapshots: their
// records name it.
type groupControllerServer struct {
	csi.UnimplementedGroupControllerServer
	d *Driver
}

func (s *groupControllerServer) GroupControllerGetCapabilities(context.Context, *csi.GroupControllerGetCapabilitiesRequest) (*csi.GroupControllerGetCapabilitiesResponse, error) {
	return &csi.GroupControllerGetCapabilitiesResponse{Capabilities: []*csi.GroupControllerServiceCapability{{
		Type: &csi.GroupControllerServiceCapability_Rpc{Rpc: &csi.GroupControllerServiceCapability_RPC{
			Type: csi.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// groupRequest is a validated CreateVolumeGroupSnapshotRequest.
type groupRequest struct {
	name    string
	sources []string // sorted
	params  parameter.Snapshot
	own     map[string]string
}

func parseGroupSnapshot(req *csi.CreateVolumeGroupSnapshotRequest) (r groupRequest, err error) {
	r = groupRequest{name: req.GetName(), sources: slices.Sorted(slices.Values(req.GetSourceVolumeIds())), own: parameter.Own(req.GetParameters())}
	switch {
	case r.name == "":
		return r, status.Error(codes.InvalidArgument, "group snapshot name is missing")
	case len(r.name) > maxNameBytes:
		return r, status.Errorf(codes.InvalidArgument, "group snapshot name has %d bytes, more than %d", len(r.name), maxNameBytes)
	case len(r.sources) == 0:
		return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: source volume ids are missing", r.name)
	case r.sources[0] == "":
		return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: one of its source volume ids is empty", r.name)
	}
	for i, id := range r.sources[1:] {
		if id == r.sources[i] {
			return r, status.Errorf(codes.InvalidArgument, "group snapshot %q: volume %s is named twice", r.name, id)
		}
	}
	r.params, err = parameter.ParseSnapshot(req.GetParameters())
	return r, err
}

// CreateVolumeGroupSnapshot takes snapshots of volumes of one consistency group at one ordinal, at a primary or a secondary.
// Volumes without a group are taken together only where their file systems may be frozen for it.
func (s *groupControllerServer) CreateVolumeGroupSnapshot(ctx context.Context, req *csi.CreateVolumeGroupSnapshotRequest) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	r, err := parseGroupSnapshot(req)
	if err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter("group snapshot name "+r.name, "CreateVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	members, err := s.d.groupMembers(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotName == r.name })
	if err != nil {
		return nil, err
	}
	if whole(members) {
		var taken []string
		for _, m := range members {
			taken = append(taken, m.SourceVolumeID)
		}
		if slices.Sort(taken); !slices.Equal(taken, r.sources) {
			return nil, status.Errorf(codes.AlreadyExists, "group snapshot %q exists (%s) and is of volumes %s, not of %s; choose another name",
				r.name, members[0].GroupSnapshotID, strings.Join(taken, ", "), strings.Join(r.sources, ", "))
		}
	} else if members, err = s.d.groupSnapshot(ctx, r, members); err != nil {
		return nil, err
	}
	snapshot, err := s.snapshot(members)
	if err != nil {
		return nil, err
	}
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: snapshot}, nil
}

// groupSnapshot takes a group snapshot anew; begun is what an interrupted call left of it.
func (d *Driver) groupSnapshot(ctx context.Context, r groupRequest, begun []*blockdev.SnapshotRecord) ([]*blockdev.SnapshotRecord, error) {
	for _, snap := range begun {
		if err := d.dropSnapshot(ctx, snap); err != nil {
			return nil, err
		}
	}
	var recs []*blockdev.VolumeRecord
	for _, id := range r.sources {
		done, err := d.guards.Enter(id, "CreateVolumeGroupSnapshot")
		if err != nil {
			return nil, err
		}
		defer done()
		rec, err := d.volume(id)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	if err := d.together(recs, r.params); err != nil {
		return nil, err
	}
	groupID := groupSnapshotIDPrefix + uuid.NewString()
	list, err := d.takeSnapshots(ctx, recs, r.params, func(s *blockdev.SnapshotRecord) {
		s.Name, s.GroupSnapshotName, s.GroupSnapshotID = r.name, r.name, groupID
		s.Parameters = map[string]string{groupSizeKey: strconv.Itoa(len(recs))}
		for key, value := range r.own {
			s.Parameters[key] = value
		}
	})
	if err != nil {
		return nil, err
	}
	for _, snap := range list[1:] {
		if snap.Cut != list[0].Cut {
			return nil, status.Errorf(codes.Internal, "group snapshot %q: snapshot %s is of ordinal %d, %s of %d: delete the group snapshot (%s), which is of no use",
				r.name, list[0].ID, list[0].Cut.Ordinal, snap.ID, snap.Cut.Ordinal, groupID)
		}
	}
	return list, nil
}

// together refuses volumes whose snapshots cannot be of one instant.
func (d *Driver) together(recs []*blockdev.VolumeRecord, params parameter.Snapshot) error {
	if len(recs) == 1 {
		return nil
	}
	for _, rec := range recs[1:] {
		if rec.Group != recs[0].Group {
			return status.Errorf(codes.FailedPrecondition, "volume %s is in %s, volume %s in %s: volumes are snapshotted together when they are in one consistency group "+
				"(slipctl group add, or parameter %s when they are created)", recs[0].ID, groupOrNone(recs[0].Group), rec.ID, groupOrNone(rec.Group), parameter.KeyConsistencyGroup)
		}
	}
	if recs[0].Group != "" {
		return nil
	}
	if !params.Freeze {
		return status.Errorf(codes.FailedPrecondition, "volumes %s and %s are in no consistency group, so their writes have no common order: put them into one "+
			"(slipctl group add), or give the group snapshot class %s: \"true\" to have their file systems frozen together", recs[0].ID, recs[1].ID, parameter.KeyFreeze)
	}
	for _, rec := range recs {
		where, err := d.inUse(rec)
		if err != nil {
			return err
		}
		if where == "" {
			continue
		}
		var entry *host.MountEntry
		if rec.Stage != nil && !rec.Stage.Block {
			if entry, err = d.mountOn(rec, rec.Stage.StagingPath); err != nil {
				return err
			}
		}
		if entry == nil {
			return status.Errorf(codes.FailedPrecondition, "volume %s is in use (%s) without a file system that could be frozen: put the volumes into one consistency group, "+
				"or unpublish and unstage it", rec.ID, where)
		}
	}
	return nil
}

func groupOrNone(group string) string {
	if group == "" {
		return "no group"
	}
	return "group " + group
}

// DeleteVolumeGroupSnapshot deletes all snapshots of a group snapshot.
func (s *groupControllerServer) DeleteVolumeGroupSnapshot(ctx context.Context, req *csi.DeleteVolumeGroupSnapshotRequest) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "group snapshot id is missing")
	}
	done, err := s.d.guards.Enter(id, "DeleteVolumeGroupSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	members, err := s.d.groupMembers(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == id })
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
			return nil, status.Errorf(codes.Aborted, "group snapshot %s: snapshot %s is being copied into volume %s, %s; call again when that is done", id, m.ID, reader.ID(), reader)
		}
	}
	for _, m := range members {
		if err := s.d.deleteSnapshot(ctx, m); err != nil {
			return nil, err
		}
	}
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

// matches compares the snapshots of a group snapshot with those that the CO names, if it names any: it has to name all that
// there are, and none that is another group snapshot's.
func (s *groupControllerServer) matches(id string, members []*blockdev.SnapshotRecord, named []string) error {
	if len(named) == 0 {
		return nil
	}
	for _, m := range members {
		if !slices.Contains(named, m.ID) {
			return status.Errorf(codes.InvalidArgument, "group snapshot %s has snapshot %s, which is not among the snapshot_ids", id, m.ID)
		}
	}
	for _, name := range named {
		rec, err := s.d.getSnapshot(name)
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
func (s *groupControllerServer) GetVolumeGroupSnapshot(_ context.Context, req *csi.GetVolumeGroupSnapshotRequest) (*csi.GetVolumeGroupSnapshotResponse, error) {
	id := req.GetGroupSnapshotId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "group snapshot id is missing")
	}
	members, err := s.d.groupMembers(func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == id })
	if err != nil {
		return nil, err
	}
	if !whole(members) {
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

// groupMembers returns the snapshots of group snapshots that is is true of, by id.
func (d *Driver) groupMembers(is func(*blockdev.SnapshotRecord) bool) ([]*blockdev.SnapshotRecord, error) {
	recs, err := d.snapshots()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(recs, func(rec *blockdev.SnapshotRecord) bool { return rec.GroupSnapshotID == "" || !is(rec) }), nil
}

// whole reports whether these are all the snapshots of a group snapshot that was taken.
func whole(members []*blockdev.SnapshotRecord) bool {
	if len(members) == 0 || members[0].Parameters[groupSizeKey] != strconv.Itoa(len(members)) {
		return false
	}
	return !slices.ContainsFunc(members, func(m *blockdev.SnapshotRecord) bool { return m.State == blockdev.SnapshotCreating })
}

func (s *groupControllerServer) snapshot(members []*blockdev.SnapshotRecord) (*csi.VolumeGroupSnapshot, error) {
	slices.SortFunc(members, func(a, b *blockdev.SnapshotRecord) int { return strings.Compare(a.ID, b.ID) })
	group := &csi.VolumeGroupSnapshot{GroupSnapshotId: members[0].GroupSnapshotID, ReadyToUse: true, CreationTime: timestamppb.New(takenAt(members[0]))}
	controller := &controllerServer{d: s.d}
	for _, m := range members {
		if err := snapshotFailure(m); err != nil {
			return nil, status.Errorf(status.Code(err), "group snapshot %s: %s", m.GroupSnapshotID, status.Convert(err).Message())
		}
		snapshot := controller.snapshot(m)
		group.Snapshots = append(group.Snapshots, snapshot)
		group.ReadyToUse = group.ReadyToUse && snapshot.GetReadyToUse()
	}
	return group, nil
}
