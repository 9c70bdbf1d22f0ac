package snapshots

import (
	"context"
	"slices"
	"strconv"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// GroupRequest is a validated CreateVolumeGroupSnapshotRequest.
type GroupRequest struct {
	Name    string
	Sources []string // sorted
	Params  parameter.Snapshot
	Own     map[string]string
	// Part is set if other nodes have the other volumes.
	Part *plugin.GroupPart
}

// TakeGroup takes a group snapshot anew; begun is what an interrupted call left of it.
func (d *Manager) TakeGroup(ctx context.Context, r GroupRequest,
	begun []*blockdev.SnapshotRecord) ([]*blockdev.SnapshotRecord, error) {
	for _, snap := range begun {
		if err := d.dropSnapshot(ctx, snap); err != nil {
			return nil, err
		}
	}
	var recs []*blockdev.VolumeRecord
	for _, id := range r.Sources {
		done, err := d.guards.Enter(id, "CreateVolumeGroupSnapshot")
		if err != nil {
			return nil, err
		}
		defer done()
		rec, err := d.store.Volume(id)
		if err != nil {
			return nil, err
		}
		recs = append(recs, rec)
	}
	at, release, err := d.fix(ctx, r, recs)
	if err != nil {
		return nil, err
	}
	defer release()
	groupID := plugin.GroupSnapshotPrefix + uuid.NewString()
	if r.Part != nil {
		groupID = r.Part.ID
	}
	list, err := d.takeSnapshots(ctx, recs, r.Params, at, func(s *blockdev.SnapshotRecord) {
		s.Name, s.GroupSnapshotName, s.GroupSnapshotID = r.Name, r.Name, groupID
		s.Parameters = map[string]string{store.NoteGroupSize: strconv.Itoa(len(recs))}
		for key, value := range r.Own {
			s.Parameters[key] = value
		}
	})
	if err != nil {
		return nil, err
	}
	for _, snap := range list {
		if snap.Cut.Epoch != at || at == "" && snap.Cut != list[0].Cut {
			return nil, status.Errorf(codes.Internal, "group snapshot %q: snapshot %s is of ordinal %d and epoch %q, %s of %d "+
				"and %q: delete the group snapshot (%s), which is of no use", r.Name, list[0].ID, list[0].Cut.Ordinal, at, snap.ID,
				snap.Cut.Ordinal, snap.Cut.Epoch, groupID)
		}
	}
	return list, nil
}

// fix returns the epoch at which the volumes are snapshotted together; empty if they are in one group on this node
// alone, or in none. release ends what was done for it.
func (d *Manager) fix(ctx context.Context, r GroupRequest, recs []*blockdev.VolumeRecord) (at string, release func(),
	err error) {
	release = func() {}
	if r.Part != nil {
		return r.Part.Epoch, release, d.inGroups(recs)
	}
	if !slices.ContainsFunc(recs, func(rec *blockdev.VolumeRecord) bool { return rec.Group != recs[0].Group }) {
		return "", release, d.together(recs, r.Params)
	}
	if err := d.inGroups(recs); err != nil {
		return "", release, err
	}
	// Several copies of one group over several nodes may be on one node.
	if err := d.sidecar.Need(ctx); err != nil {
		return "", release, err
	}
	at, holder, err := d.sidecar.FixGroup(ctx, recs[0].ID)
	if err != nil {
		i := slices.IndexFunc(recs, func(rec *blockdev.VolumeRecord) bool { return rec.Group != recs[0].Group })
		return "", release, status.Errorf(status.Code(err), "volume %s is in group %s, volume %s in group %s: volumes are "+
			"snapshotted together when they are in one consistency group (slipctl group add, or parameter %s when they are "+
			"made), or in groups that are shards of one over several nodes: %s", recs[0].ID, recs[0].Group, recs[i].ID,
			recs[i].Group, parameter.KeyConsistencyGroup, status.Convert(err).Message())
	}
	return at, func() { d.sidecar.ReleaseGroup(context.WithoutCancel(ctx), recs[0].ID, holder) }, nil
}

// inGroups refuses volumes of which one is in no consistency group.
func (d *Manager) inGroups(recs []*blockdev.VolumeRecord) error {
	for _, rec := range recs {
		if rec.Group == "" {
			return status.Errorf(codes.FailedPrecondition, "volume %s is in no group, and others are: volumes are snapshotted "+
				"together when they are in one consistency group (slipctl group add, or parameter %s when they are made), or in "+
				"groups that are shards of one over several nodes", rec.ID, parameter.KeyConsistencyGroup)
		}
	}
	return nil
}

// together refuses volumes of one group, or of none, whose snapshots cannot be of one instant.
func (d *Manager) together(recs []*blockdev.VolumeRecord, params parameter.Snapshot) error {
	if len(recs) == 1 {
		return nil
	}
	if recs[0].Group != "" {
		return nil
	}
	if !params.Freeze {
		return status.Errorf(codes.FailedPrecondition, "volumes %s and %s are in no consistency group, so their writes "+
			"have no common order: put them into one "+
			"(slipctl group add), or give the group snapshot class %s: \"true\" to have their file systems frozen together",
			recs[0].ID, recs[1].ID, parameter.KeyFreeze)
	}
	for _, rec := range recs {
		where, err := d.attachments.InUse(rec)
		if err != nil {
			return err
		}
		if where == "" {
			continue
		}
		var entry *host.MountEntry
		if rec.Stage != nil && !rec.Stage.Block {
			if entry, err = d.attachments.MountOn(rec, rec.Stage.StagingPath); err != nil {
				return err
			}
		}
		if entry == nil {
			return status.Errorf(codes.FailedPrecondition, "volume %s is in use (%s) without a file system that could be "+
				"frozen: put the volumes into one consistency group, "+
				"or unpublish and unstage it", rec.ID, where)
		}
	}
	return nil
}
