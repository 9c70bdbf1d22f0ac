package snapshots

import (
	"context"
	"strconv"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// groupSnapshotIDPrefix makes a group snapshot's id recognisable in logs.
const groupSnapshotIDPrefix = "gsnap-"

// GroupRequest is a validated CreateVolumeGroupSnapshotRequest.
type GroupRequest struct {
	Name    string
	Sources []string // sorted
	Params  parameter.Snapshot
	Own     map[string]string
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
	if err := d.together(recs, r.Params); err != nil {
		return nil, err
	}
	groupID := groupSnapshotIDPrefix + uuid.NewString()
	list, err := d.takeSnapshots(ctx, recs, r.Params, func(s *blockdev.SnapshotRecord) {
		s.Name, s.GroupSnapshotName, s.GroupSnapshotID = r.Name, r.Name, groupID
		s.Parameters = map[string]string{store.NoteGroupSize: strconv.Itoa(len(recs))}
		for key, value := range r.Own {
			s.Parameters[key] = value
		}
	})
	if err != nil {
		return nil, err
	}
	for _, snap := range list[1:] {
		if snap.Cut != list[0].Cut {
			return nil, status.Errorf(codes.Internal, "group snapshot %q: snapshot %s is of ordinal %d, %s of %d: delete the "+
				"group snapshot (%s), which is of no use",
				r.Name, list[0].ID, list[0].Cut.Ordinal, snap.ID, snap.Cut.Ordinal, groupID)
		}
	}
	return list, nil
}

// together refuses volumes whose snapshots cannot be of one instant.
func (d *Manager) together(recs []*blockdev.VolumeRecord, params parameter.Snapshot) error {
	if len(recs) == 1 {
		return nil
	}
	for _, rec := range recs[1:] {
		if rec.Group != recs[0].Group {
			return status.Errorf(codes.FailedPrecondition, "volume %s is in %s, volume %s in %s: volumes are snapshotted "+
				"together when they are in one consistency group "+
				"(slipctl group add, or parameter %s when they are created)", recs[0].ID, groupOrNone(recs[0].Group), rec.ID,
				groupOrNone(rec.Group), parameter.KeyConsistencyGroup)
		}
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

func groupOrNone(group string) string {
	if group == "" {
		return "no group"
	}
	return "group " + group
}
