package snapshots

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

// A volume with a content source is created in state creating. It cannot be attached until it has its content. Then it
// becomes ready and joins its group:
//
//	from a snapshot   its image is cloned, or copied if the file system cannot clone or the volume is thick
//	from a volume     the driver takes a snapshot of its own, as CreateSnapshot does; its image becomes the volume's
//
// A copy runs in the background and continues after a restart. CreateVolume waits for it up to the caller's deadline
// and then returns Aborted. The CO calls again until it gets another answer: CSI has no ready_to_use for volumes.
//
// The file system of a copy has the UUID of its source and keeps it; XFS is always mounted with nouuid. The UUID of a
// file system can be changed only when it is clean, and a snapshot of a mounted one has a log that only a mount
// replays.

const (
	// contentWaitLimit is how long CreateVolume waits for a copy if the caller has more patience.
	contentWaitLimit = time.Minute
	// ContentWaitMargin is left of the caller's deadline to answer in.
	ContentWaitMargin = time.Second
	contentPoll       = 100 * time.Millisecond
)

// Content is what a volume is made from.
type Content struct {
	SizeBytes      int64
	BlockSizeBytes int64
	FsType         string
	Format         *blockdev.FormatRecord
}

// Content looks a source up. elsewhere: the CO says which nodes it has in mind, so a source that is not here may be on
// another one, and ResourceExhausted makes it try there.
func (d *Manager) Content(source *blockdev.ContentSource, elsewhere bool) (Content, error) {
	var c Content
	var err error
	if source.SnapshotID != "" {
		var rec *blockdev.SnapshotRecord
		if rec, err = d.store.Snapshot(source.SnapshotID); err == nil {
			c = contentOf(rec)
			err = store.SnapshotFailure(rec)
		}
		if err == nil && rec.State != blockdev.SnapshotReady {
			err = status.Errorf(codes.Aborted, "snapshot %s is not ready yet: %d of %s are copied; call again", rec.ID,
				rec.CopiedBytes, words.Count(rec.SizeBytes, "byte"))
		}
	} else {
		var rec *blockdev.VolumeRecord
		if rec, err = d.store.Volume(source.VolumeID); err == nil {
			c = Content{SizeBytes: rec.SizeBytes, BlockSizeBytes: rec.BlockSizeBytes, FsType: rec.FSType, Format: rec.Format}
			if rec.View != nil {
				err = status.Errorf(codes.FailedPrecondition, "volume %s shows view %s of group %s, and no volume is made from "+
					"it; copy its files, or take a snapshot of the group", rec.ID, rec.View.Name, rec.View.Group)
			}
		}
	}
	if status.Code(err) == codes.NotFound && elsewhere {
		err = status.Errorf(codes.ResourceExhausted, "%s on node %s; a volume can only be made where its source is",
			status.Convert(err).Message(), d.nodeID)
	}
	return c, err
}

func contentOf(rec *blockdev.SnapshotRecord) Content {
	return Content{SizeBytes: rec.SizeBytes, BlockSizeBytes: rec.BlockSizeBytes, FsType: rec.FSType, Format: rec.Format}
}

// Fill gives a volume in state creating its content, and makes it ready. Calls for the volume are guarded.
func (d *Manager) Fill(ctx context.Context, rec *blockdev.VolumeRecord) (err error) {
	ctx, cancel := context.WithTimeout(ctx, contentWaitLimit)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-ContentWaitMargin))
		defer cancel()
	}
	if rec.State == blockdev.VolumeCreating {
		if rec.Source.SnapshotID != "" {
			err = d.fillFromSnapshot(ctx, rec, rec.Source.SnapshotID)
		} else {
			err = d.fillFromVolume(ctx, rec)
		}
		if err != nil {
			return err
		}
	}
	return d.DropCloneSnapshot(ctx, rec.ID)
}

// fillFromSnapshot clones the image of a snapshot, or waits for a copy of it.
func (d *Manager) fillFromSnapshot(ctx context.Context, rec *blockdev.VolumeRecord, snapshotID string) error {
	running := d.tasks.Copy(rec.ID)
	if running == nil {
		var err error
		if running, err = d.beginFill(rec, snapshotID); running == nil || err != nil {
			return err
		}
	}
	select {
	case <-running.Done():
	case <-ctx.Done():
		return status.Errorf(codes.Aborted, "volume %q (%s) is being made from snapshot %s, %s; call again", rec.Name, rec.ID,
			snapshotID, running)
	}
	if errors.Is(running.Err(), context.Canceled) {
		return status.Errorf(codes.Aborted,
			"volume %q (%s): the driver stops; the copy goes on with the next one, call again", rec.Name, rec.ID)
	}
	if running.Err() != nil {
		return store.VolumeError("copy the content of", rec.ID, running.Err())
	}
	now, err := d.store.Volume(rec.ID)
	if err == nil {
		*rec = *now
	}
	return err
}

// beginFill clones, or begins a copy and returns it.
func (d *Manager) beginFill(rec *blockdev.VolumeRecord, snapshotID string) (*work.Copy, error) {
	done, err := d.guards.Enter(snapshotID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()
	snap, err := d.store.Snapshot(snapshotID)
	if err != nil {
		return nil, err
	}
	if err := store.SnapshotFailure(snap); err != nil {
		return nil, err
	}
	if snap.State != blockdev.SnapshotReady {
		return nil, status.Errorf(codes.Aborted, "snapshot %s is not ready yet; call again", snap.ID)
	}
	source, err := d.store.Pool.SnapshotImagePath(snap.ID)
	if err != nil {
		return nil, store.SnapshotError("find", snap.ID, err)
	}
	target, err := d.store.Pool.ImagePath(rec.ID)
	if err != nil {
		return nil, store.VolumeError("find the image of", rec.ID, err)
	}
	if !rec.Thick && rec.CopiedBytes == 0 { // to try to clone throws away what is copied
		err = blockdev.CloneImage(d.fs, source, target, snap.SizeBytes, rec.SizeBytes)
		if err == nil {
			return nil, d.filled(rec, contentOf(snap))
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return nil, store.VolumeError("clone the content of", rec.ID, err)
		}
	}
	return d.tasks.StartCopy(rec.ID, snap.ID, snap.SizeBytes, func(ctx context.Context, i *work.Copy) error {
		i.SetCopied(rec.CopiedBytes)
		run := blockdev.ImageCopy{FS: d.fs, Source: source, Target: target, SourceBytes: snap.SizeBytes,
			TargetBytes: rec.SizeBytes, Thick: rec.Thick, CopiedBytes: rec.CopiedBytes,
			Progress: func(copiedBytes int64) error {
				_, err := d.store.Pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
					r.CopiedBytes = copiedBytes
					return nil
				})
				i.SetCopied(copiedBytes)
				return err
			}}
		err := run.Run(ctx)
		i.DoneReading()
		if err != nil {
			return err
		}
		filled := rec.Clone()
		return d.filled(filled, contentOf(snap))
	}), nil
}

// filled makes a volume ready whose content is complete and durable.
func (d *Manager) filled(rec *blockdev.VolumeRecord, c Content) error {
	return d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.State, r.CopiedBytes, r.Format = blockdev.VolumeReady, 0, c.Format
		r.GrowFileSystem = r.SizeBytes > c.SizeBytes && c.Format != nil && c.Format.FSType != capability.Raw
	})
}

// extend makes an image as large as its volume, durably.
func (d *Manager) extend(path string, sizeBytes int64) error {
	image, err := blockdev.OpenImage(d.fs, path)
	if err != nil {
		return err
	}
	err = image.Grow(sizeBytes)
	if cerr := image.Close(); err == nil {
		err = cerr
	}
	return err
}

// ResumeFills goes on with the copies that the last process was at. Those that fail do so again when the CO asks for
// the volume.
func (d *Manager) ResumeFills(recs []*blockdev.VolumeRecord) {
	for _, rec := range recs {
		if rec.State != blockdev.VolumeCreating || rec.Source == nil || rec.CopiedBytes == 0 {
			continue
		}
		id := rec.Source.SnapshotID
		if id == "" && !rec.Thick {
			continue // there is nothing to copy: the image is moved
		}
		if id == "" {
			snap, err := d.CloneSnapshot(rec.ID)
			if err != nil || snap == nil {
				continue
			}
			id = snap.ID
		}
		if _, err := d.beginFill(rec, id); err != nil {
			klog.ErrorS(err, "A volume's copy cannot go on; the next call for it says why", "volume", rec.ID, "snapshot", id)
		}
	}
}
