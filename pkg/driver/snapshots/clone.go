package snapshots

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// fillFromVolume takes a snapshot of the source and makes its image the volume's.
func (d *Manager) fillFromVolume(ctx context.Context, rec *blockdev.VolumeRecord) error {
	snap, err := d.CloneSnapshot(rec.ID)
	if err != nil {
		return err
	}
	if snap == nil || snap.State == blockdev.SnapshotCreating || snap.State == blockdev.SnapshotFailed {
		if snap, err = d.takeCloneSnapshot(ctx, rec, snap); err != nil {
			return err
		}
	}
	for snap.State == blockdev.SnapshotCopying {
		var copied <-chan struct{} // never, where the replicator copies
		if running := d.tasks.Copy(snap.ID); running != nil {
			copied = running.Done()
		}
		select {
		case <-copied:
		case <-ctx.Done():
			return status.Errorf(codes.Aborted, "volume %q (%s) is being made from volume %s, %d of %s are copied; "+
				"call again",
				rec.Name, rec.ID, snap.SourceVolumeID, snap.CopiedBytes, words.Count(snap.SizeBytes, "byte"))
		case <-time.After(contentPoll):
		}
		if snap, err = d.store.Snapshot(snap.ID); err != nil {
			return err
		}
	}
	if err := store.SnapshotFailure(snap); err != nil {
		return err
	}
	if rec.Thick {
		return d.fillFromSnapshot(ctx, rec, snap.ID)
	}
	return d.moveImage(rec, snap)
}

// takeCloneSnapshot takes the snapshot that becomes a volume's content; begun is what is left of an earlier one, or
// nil.
func (d *Manager) takeCloneSnapshot(ctx context.Context, rec *blockdev.VolumeRecord,
	begun *blockdev.SnapshotRecord) (*blockdev.SnapshotRecord, error) {
	source, done, err := d.beginTake(ctx, rec.Source.VolumeID, "CreateVolume", begun)
	if err != nil {
		return nil, err
	}
	defer done()
	if source.SizeBytes > rec.SizeBytes {
		return nil, status.Errorf(codes.OutOfRange, "volume %q: its source %s has grown to %s, more than its %d",
			rec.Name, source.ID, words.Count(source.SizeBytes, "byte"), rec.SizeBytes)
	}
	list, err := d.takeSnapshots(ctx, []*blockdev.VolumeRecord{source}, parameter.Snapshot{}, "",
		func(s *blockdev.SnapshotRecord) {
			s.Name, s.Parameters = "clone "+rec.Name, map[string]string{store.NoteClone: rec.ID}
		})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// moveImage makes the image of the driver's own snapshot a volume's. An earlier call may have done it in part.
func (d *Manager) moveImage(rec *blockdev.VolumeRecord, snap *blockdev.SnapshotRecord) error {
	source, err := d.store.Pool.SnapshotImagePath(snap.ID)
	if err != nil {
		return store.SnapshotError("find", snap.ID, err)
	}
	target, err := d.store.Pool.ImagePath(rec.ID)
	if err != nil {
		return store.VolumeError("find the image of", rec.ID, err)
	}
	moving := rec.CopiedBytes > 0 // by an earlier call, which may have come to the rename
	if err := d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.CopiedBytes = snap.SizeBytes
	}); err != nil {
		return err
	}
	err = d.fs.Rename(source, target)
	if moving && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = d.fs.SyncDir(filepath.Dir(target))
	}
	if err == nil {
		err = d.extend(target, rec.SizeBytes)
	}
	if err != nil {
		return store.VolumeError("move the content of", rec.ID, err)
	}
	return d.filled(rec, contentOf(snap))
}

// CloneSnapshot returns the driver's own snapshot for a volume, or nil.
func (d *Manager) CloneSnapshot(volumeID string) (*blockdev.SnapshotRecord, error) {
	recs, err := d.store.Snapshots()
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Parameters[store.NoteClone] == volumeID {
			return rec, nil
		}
	}
	return nil, nil
}

// DropCloneSnapshot removes the driver's own snapshot for a volume that needs it no more.
func (d *Manager) DropCloneSnapshot(ctx context.Context, volumeID string) error {
	snap, err := d.CloneSnapshot(volumeID)
	if err != nil || snap == nil {
		return err
	}
	return d.dropSnapshot(ctx, snap)
}
