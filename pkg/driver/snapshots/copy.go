package snapshots

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

// errSourceChanged is the failure of a copy whose source may have been written to while it was copied.
var errSourceChanged = errors.New("its volume went into a consistency group while it was copied; take it again")

// copySnapshot copies a snapshot's image in the background, from where its record says that it was.
func (d *Manager) copySnapshot(rec *blockdev.SnapshotRecord) error {
	source, path, err := d.copySource(rec)
	if err != nil {
		return err
	}
	d.tasks.StartCopy(rec.ID, source, rec.SizeBytes, func(ctx context.Context, i *work.Copy) error {
		err := d.runSnapshotCopy(ctx, i, rec, path)
		if err == nil || ctx.Err() != nil {
			return err
		}
		klog.ErrorS(err, "Copying a snapshot failed", "snapshot", rec.ID, "volume", rec.SourceVolumeID)
		return errors.Join(err, d.failSnapshot(rec.ID, err))
	})
	return nil
}

// copySource returns the file that a snapshot is copied from, and the volume whose image it is; none for a clone of its
// own.
func (d *Manager) copySource(rec *blockdev.SnapshotRecord) (volumeID, path string, err error) {
	dir, err := d.store.Pool.SnapshotDir(rec.ID)
	if err != nil {
		return "", "", store.SnapshotError("copy", rec.ID, err)
	}
	origin := filepath.Join(dir, originFile)
	switch _, err := d.fs.Stat(origin); {
	case err == nil:
		return "", origin, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", "", store.SnapshotError("copy", rec.ID, err)
	}
	path, err = d.store.Pool.ImagePath(rec.SourceVolumeID)
	if err != nil {
		return "", "", store.SnapshotError("copy", rec.ID, err)
	}
	return rec.SourceVolumeID, path, nil
}

func (d *Manager) runSnapshotCopy(ctx context.Context, i *work.Copy, rec *blockdev.SnapshotRecord,
	source string) error {
	target, err := d.store.Pool.SnapshotImagePath(rec.ID)
	if err != nil {
		return err
	}
	i.SetCopied(rec.CopiedBytes)
	run := blockdev.ImageCopy{
		FS: d.fs, Source: source, Target: target, SourceBytes: rec.SizeBytes, TargetBytes: rec.SizeBytes,
		CopiedBytes: rec.CopiedBytes,
		Progress: func(copiedBytes int64) error {
			if copiedBytes >= rec.SizeBytes {
				return nil // the end is noted with the state
			}
			_, err := d.store.Pool.UpdateSnapshot(rec.ID, func(r *blockdev.SnapshotRecord) error {
				r.CopiedBytes = copiedBytes
				return nil
			})
			i.SetCopied(copiedBytes)
			return err
		},
	}
	err = run.Run(ctx)
	i.DoneReading()
	if err != nil {
		return err
	}
	if i.Source() != "" {
		// It cannot be staged meanwhile. But if it is a copy in a secondary group, that group writes to it.
		volume, err := d.store.Pool.Get(rec.SourceVolumeID)
		if err != nil {
			return err
		}
		if volume.Group != "" {
			return errSourceChanged
		}
	}
	_, err = d.store.Pool.UpdateSnapshot(rec.ID, func(r *blockdev.SnapshotRecord) error {
		r.State, r.CopiedBytes = blockdev.SnapshotReady, r.SizeBytes
		return nil
	})
	if err != nil {
		return err
	}
	i.SetCopied(rec.SizeBytes)
	klog.InfoS("Snapshot copied", "snapshot", rec.ID, "volume", rec.SourceVolumeID, "bytes", rec.SizeBytes)
	if i.Source() != "" {
		return nil
	}
	if err := d.fs.Remove(source); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "What a snapshot was copied from stays until the next start", "snapshot", rec.ID)
	}
	return nil
}

// failSnapshot gives a snapshot's space back, and then says so: on a full disk the space is needed for that.
func (d *Manager) failSnapshot(id string, why error) error {
	dir, err := d.store.Pool.SnapshotDir(id)
	if err != nil {
		return err
	}
	for _, name := range []string{blockdev.ImageFile, originFile} {
		if err := d.fs.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			klog.ErrorS(err, "The image of a failed snapshot takes space until the snapshot is deleted", "snapshot", id)
		}
	}
	_, err = d.store.Pool.UpdateSnapshot(id, func(r *blockdev.SnapshotRecord) error {
		r.State, r.CopiedBytes, r.FailReason = blockdev.SnapshotFailed, 0, why.Error()
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // deleted meanwhile
	}
	return err
}

// ReconcileSnapshots goes on with what the last process was at: frozen file systems are thawed, snapshots that were
// never answered removed, and copies resumed. Snapshots that a group takes or copies are the replicator's.
func (d *Manager) ReconcileSnapshots(ctx context.Context) error {
	recs, err := d.store.Snapshots()
	if err != nil {
		return err
	}
	interrupted := map[string]bool{} // group snapshots
	for _, rec := range recs {
		if rec.State == blockdev.SnapshotCreating && !cutByGroup(rec) && rec.GroupSnapshotID != "" {
			interrupted[rec.GroupSnapshotID] = true
		}
	}
	// Those that say that a group snapshot was interrupted go last, should this be interrupted too.
	slices.SortStableFunc(recs, func(a, b *blockdev.SnapshotRecord) int {
		return boolInt(a.State == blockdev.SnapshotCreating) - boolInt(b.State == blockdev.SnapshotCreating)
	})
	for _, rec := range recs {
		if err := d.attachments.ThawLeftOver(rec.ID); err != nil {
			klog.ErrorS(err, "A file system may be left frozen; see fsfreeze(8)", "volume", rec.SourceVolumeID, "snapshot",
				rec.ID)
			continue
		}
		switch {
		case cutByGroup(rec):
			// One that was being taken is found by the repetition of the call, which asks the group.
		case rec.State == blockdev.SnapshotCreating || interrupted[rec.GroupSnapshotID]:
			if err := d.dropSnapshot(ctx, rec); err != nil {
				klog.ErrorS(err, "An interrupted snapshot cannot be removed; the next start tries again", "snapshot", rec.ID,
					"volume", rec.SourceVolumeID)
				continue
			}
			klog.InfoS("Removed an interrupted snapshot", "snapshot", rec.ID, "volume", rec.SourceVolumeID)
		case rec.State == blockdev.SnapshotCopying:
			if err := d.copySnapshot(rec); err != nil {
				klog.ErrorS(err, "A snapshot's copy cannot go on; the next start tries again", "snapshot", rec.ID)
			}
		case rec.Thick:
			if dir, err := d.store.Pool.SnapshotDir(rec.ID); err == nil {
				_ = d.fs.Remove(filepath.Join(dir, originFile)) // it may not be there; it is looked for again at the next start
			}
		}
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}
