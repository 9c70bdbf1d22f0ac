package snapshots

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// snapshotIDPrefix makes a snapshot id recognisable in logs.
const snapshotIDPrefix = "snap-"

// Request is a validated CreateSnapshotRequest.
type Request struct {
	Name   string
	Source string
	Params parameter.Snapshot
	Own    map[string]string // the parameters under ParameterPrefix, as given
}

// Take takes a snapshot anew; begun is what an interrupted call left of it, or nil.
func (d *Manager) Take(ctx context.Context, r Request,
	begun *blockdev.SnapshotRecord) (*blockdev.SnapshotRecord, error) {
	rec, done, err := d.beginTake(ctx, r.Source, "CreateSnapshot", begun)
	if err != nil {
		return nil, err
	}
	defer done()
	list, err := d.takeSnapshots(ctx, []*blockdev.VolumeRecord{rec}, r.Params, "", func(s *blockdev.SnapshotRecord) {
		s.Name, s.Parameters = r.Name, r.Own
	})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// beginTake enters a volume that a snapshot is taken of, removes what an interrupted call left of the snapshot (nil for
// nothing), and returns the volume's record. The caller calls done at the end of its work on the volume.
func (d *Manager) beginTake(ctx context.Context, volumeID, operation string,
	begun *blockdev.SnapshotRecord) (rec *blockdev.VolumeRecord, done func(), err error) {
	done, err = d.guards.Enter(volumeID, operation)
	if err != nil {
		return nil, nil, err
	}
	if begun != nil {
		err = d.dropSnapshot(ctx, begun)
	}
	if err == nil {
		rec, err = d.store.Volume(volumeID)
	}
	if err != nil {
		done()
		return nil, nil, err
	}
	return rec, done, nil
}
