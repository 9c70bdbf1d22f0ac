package snapshots

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// snapshotIDPrefix makes a snapshot id recognisable in logs.
const snapshotIDPrefix = "snap-"

// snapshotRequest is a validated CreateSnapshotRequest.
type Request struct {
	Name   string
	Source string
	Params parameter.Snapshot
	Own    map[string]string // the parameters under ParameterPrefix, as given
}

// snapshot takes a snapshot anew; begun is what an interrupted call left of it, or nil.
func (d *Manager) Take(ctx context.Context, r Request,
	begun *blockdev.SnapshotRecord) (*blockdev.SnapshotRecord, error) {
	done, err := d.guards.Enter(r.Source, "CreateSnapshot")
	if err != nil {
		return nil, err
	}
	defer done()
	if begun != nil {
		if err := d.dropSnapshot(ctx, begun); err != nil {
			return nil, err
		}
	}
	rec, err := d.store.Volume(r.Source)
	if err != nil {
		return nil, err
	}
	list, err := d.takeSnapshots(ctx, []*blockdev.VolumeRecord{rec}, r.Params, func(s *blockdev.SnapshotRecord) {
		s.Name, s.Parameters = r.Name, r.Own
	})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}
