package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// A volume with a content source is made in state creating, in which nobody attaches it, and gets its content before it becomes
// ready and before it joins a group:
//
//	from a snapshot   its image is cloned, or copied where the file system cannot, or where the volume is thick
//	from a volume     a snapshot of it is taken, as CreateSnapshot does, which is the driver's own; its image becomes the volume's
//
// A copy goes on in the background and over restarts. CreateVolume waits for it as long as the caller does, and then says
// Aborted, after which the CO calls again until there is another answer. CSI has no ready_to_use for volumes.
//
// The file system of a copy has the UUID of its origin. It keeps it, and XFS is always mounted with nouuid: to change the
// UUID the file system has to be clean, and a snapshot of a mounted one has a log that only a mount replays.

const (
	// contentWaitLimit is how long CreateVolume waits for a copy if the caller has more patience.
	contentWaitLimit = time.Minute
	// contentWaitMargin is left of the caller's deadline to answer in.
	contentWaitMargin = time.Second
	contentPoll       = 100 * time.Millisecond
)

// content is what a volume is made from.
type content struct {
	sizeBytes      int64
	blockSizeBytes int64
	fsType         string
	format         *blockdev.FormatRecord
}

// parseContentSource reads what a volume is to be made from; nil for nothing.
func parseContentSource(source *csi.VolumeContentSource) (*blockdev.ContentSource, error) {
	switch {
	case source == nil:
		return nil, nil
	case source.GetSnapshot().GetSnapshotId() != "":
		return &blockdev.ContentSource{SnapshotID: source.GetSnapshot().GetSnapshotId()}, nil
	case source.GetVolume().GetVolumeId() != "":
		return &blockdev.ContentSource{VolumeID: source.GetVolume().GetVolumeId()}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "volume content source has neither a snapshot's id nor a volume's")
}

// content looks a source up. elsewhere: the CO says which nodes it has in mind, so a source that is not here may be on another
// one, and ResourceExhausted makes it try there.
func (d *Driver) content(source *blockdev.ContentSource, elsewhere bool) (content, error) {
	var c content
	var err error
	if source.SnapshotID != "" {
		var rec *blockdev.SnapshotRecord
		if rec, err = d.getSnapshot(source.SnapshotID); err == nil {
			c = contentOf(rec)
			err = snapshotFailure(rec)
		}
		if err == nil && rec.State != blockdev.SnapshotReady {
			err = status.Errorf(codes.Aborted, "snapshot %s is not ready yet: %d of %d bytes are copied; call again", rec.ID, rec.CopiedBytes, rec.SizeBytes)
		}
	} else {
		var rec *blockdev.VolumeRecord
		if rec, err = d.volume(source.VolumeID); err == nil {
			c = content{sizeBytes: rec.SizeBytes, blockSizeBytes: rec.BlockSizeBytes, fsType: rec.FSType, format: rec.Format}
		}
	}
	if status.Code(err) == codes.NotFound && elsewhere {
		err = status.Errorf(codes.ResourceExhausted, "%s on node %s; a volume can only be made where its source is", status.Convert(err).Message(), d.opts.NodeID)
	}
	return c, err
}

func contentOf(rec *blockdev.SnapshotRecord) content {
	return content{sizeBytes: rec.SizeBytes, blockSizeBytes: rec.BlockSizeBytes, fsType: rec.FSType, format: rec.Format}
}

// check compares a source with what is asked for, and chooses the size and the file system.
func (c content) check(r *createRequest) (err error) {
	// As rounded up: see leastRequest.
	if required := r.capacity.GetRequiredBytes(); required > 0 && r.sizeBytes < c.sizeBytes {
		return status.Errorf(codes.OutOfRange, "volume %q: %d bytes are asked for, its source has %d: a volume is not smaller than its source", r.name, required, c.sizeBytes)
	}
	capacity := &csi.CapacityRange{RequiredBytes: max(r.capacity.GetRequiredBytes(), c.sizeBytes), LimitBytes: r.capacity.GetLimitBytes()}
	if limit := capacity.GetLimitBytes(); limit > 0 && limit < c.sizeBytes {
		return status.Errorf(codes.OutOfRange, "volume %q: limit_bytes is %d, its source has %d bytes", r.name, limit, c.sizeBytes)
	}
	if r.sizeBytes, err = capability.SizeFor(capacity, r.least); err != nil {
		return err
	}
	has := fsTypeOf(c.fsType, c.format)
	switch {
	case r.block || has == "":
	case has == capability.Raw:
		return status.Errorf(codes.InvalidArgument, "volume %q: its source is a raw block volume, and is not formatted: ask for a raw block volume", r.name)
	case r.fsType != "" && r.fsType != has:
		return status.Errorf(codes.InvalidArgument, "volume %q: its source has %s, %s is asked for: a copy has the file system of its source", r.name, has, r.fsType)
	}
	if r.fsType == "" && has != capability.Raw {
		r.fsType = has
	}
	return nil
}

// fill gives a volume in state creating its content, and makes it ready. Calls for the volume are guarded.
func (d *Driver) fill(ctx context.Context, rec *blockdev.VolumeRecord) (err error) {
	ctx, cancel := context.WithTimeout(ctx, contentWaitLimit)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-contentWaitMargin))
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
	return d.dropCloneSnapshot(ctx, rec.ID)
}

// fillFromSnapshot clones the image of a snapshot, or waits for a copy of it.
func (d *Driver) fillFromSnapshot(ctx context.Context, rec *blockdev.VolumeRecord, snapshotID string) error {
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
		return status.Errorf(codes.Aborted, "volume %q (%s) is being made from snapshot %s, %s; call again", rec.Name, rec.ID, snapshotID, running)
	}
	if errors.Is(running.Err(), context.Canceled) {
		return status.Errorf(codes.Aborted, "volume %q (%s): the driver stops; the copy goes on with the next one, call again", rec.Name, rec.ID)
	}
	if running.Err() != nil {
		return poolError("copy the content of", rec.ID, running.Err())
	}
	now, err := d.volume(rec.ID)
	if err == nil {
		*rec = *now
	}
	return err
}

// beginFill clones, or begins a copy and returns it.
func (d *Driver) beginFill(rec *blockdev.VolumeRecord, snapshotID string) (*work.Copy, error) {
	done, err := d.guards.Enter(snapshotID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()
	snap, err := d.getSnapshot(snapshotID)
	if err != nil {
		return nil, err
	}
	if err := snapshotFailure(snap); err != nil {
		return nil, err
	}
	if snap.State != blockdev.SnapshotReady {
		return nil, status.Errorf(codes.Aborted, "snapshot %s is not ready yet; call again", snap.ID)
	}
	source, err := d.pool.SnapshotImagePath(snap.ID)
	if err != nil {
		return nil, snapshotError("find", snap.ID, err)
	}
	target, err := d.pool.ImagePath(rec.ID)
	if err != nil {
		return nil, poolError("find the image of", rec.ID, err)
	}
	if !rec.Thick && rec.CopiedBytes == 0 { // to try to clone throws away what is copied
		err = blockdev.CloneImage(d.FS, source, target, snap.SizeBytes, rec.SizeBytes)
		if err == nil {
			return nil, d.filled(rec, contentOf(snap))
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return nil, poolError("clone the content of", rec.ID, err)
		}
	}
	return d.tasks.StartCopy(rec.ID, snap.ID, snap.SizeBytes, func(ctx context.Context, i *work.Copy) error {
		i.SetCopied(rec.CopiedBytes)
		run := blockdev.ImageCopy{FS: d.FS, Source: source, Target: target, SourceBytes: snap.SizeBytes, TargetBytes: rec.SizeBytes, Thick: rec.Thick, CopiedBytes: rec.CopiedBytes,
			Progress: func(copiedBytes int64) error {
				_, err := d.pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
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
func (d *Driver) filled(rec *blockdev.VolumeRecord, c content) error {
	return d.update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.State, r.CopiedBytes, r.Format = blockdev.VolumeReady, 0, c.format
		r.GrowFileSystem = r.SizeBytes > c.sizeBytes && c.format != nil && c.format.FSType != capability.Raw
	})
}

// fillFromVolume takes a snapshot of the source and makes its image the volume's.
func (d *Driver) fillFromVolume(ctx context.Context, rec *blockdev.VolumeRecord) error {
	snap, err := d.cloneSnapshot(rec.ID)
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
			return status.Errorf(codes.Aborted, "volume %q (%s) is being made from volume %s, %d of %d bytes are copied; call again",
				rec.Name, rec.ID, snap.SourceVolumeID, snap.CopiedBytes, snap.SizeBytes)
		case <-time.After(contentPoll):
		}
		if snap, err = d.getSnapshot(snap.ID); err != nil {
			return err
		}
	}
	if err := snapshotFailure(snap); err != nil {
		return err
	}
	if rec.Thick {
		return d.fillFromSnapshot(ctx, rec, snap.ID)
	}
	return d.moveImage(rec, snap)
}

// takeCloneSnapshot takes the snapshot that becomes a volume's content; begun is what is left of an earlier one, or nil.
func (d *Driver) takeCloneSnapshot(ctx context.Context, rec *blockdev.VolumeRecord, begun *blockdev.SnapshotRecord) (*blockdev.SnapshotRecord, error) {
	done, err := d.guards.Enter(rec.Source.VolumeID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()
	if begun != nil {
		if err := d.dropSnapshot(ctx, begun); err != nil {
			return nil, err
		}
	}
	source, err := d.volume(rec.Source.VolumeID)
	if err != nil {
		return nil, err
	}
	if source.SizeBytes > rec.SizeBytes {
		return nil, status.Errorf(codes.OutOfRange, "volume %q: its source %s has grown to %d bytes, more than its %d", rec.Name, source.ID, source.SizeBytes, rec.SizeBytes)
	}
	list, err := d.takeSnapshots(ctx, []*blockdev.VolumeRecord{source}, parameter.Snapshot{}, func(s *blockdev.SnapshotRecord) {
		s.Name, s.Parameters = "clone "+rec.Name, map[string]string{cloneSnapshotKey: rec.ID}
	})
	if err != nil {
		return nil, err
	}
	return list[0], nil
}

// moveImage makes the image of the driver's own snapshot a volume's. An earlier call may have done it in part.
func (d *Driver) moveImage(rec *blockdev.VolumeRecord, snap *blockdev.SnapshotRecord) error {
	source, err := d.pool.SnapshotImagePath(snap.ID)
	if err != nil {
		return snapshotError("find", snap.ID, err)
	}
	target, err := d.pool.ImagePath(rec.ID)
	if err != nil {
		return poolError("find the image of", rec.ID, err)
	}
	moving := rec.CopiedBytes > 0 // by an earlier call, which may have come to the rename
	if err := d.update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.CopiedBytes = snap.SizeBytes
	}); err != nil {
		return err
	}
	err = d.FS.Rename(source, target)
	if moving && errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = d.FS.SyncDir(filepath.Dir(target))
	}
	if err == nil {
		err = d.extend(target, rec.SizeBytes)
	}
	if err != nil {
		return poolError("move the content of", rec.ID, err)
	}
	return d.filled(rec, contentOf(snap))
}

// extend makes an image as large as its volume, durably.
func (d *Driver) extend(path string, sizeBytes int64) error {
	image, err := blockdev.OpenImage(d.FS, path)
	if err != nil {
		return err
	}
	err = image.Grow(sizeBytes)
	if cerr := image.Close(); err == nil {
		err = cerr
	}
	return err
}

// cloneSnapshot returns the driver's own snapshot for a volume, or nil.
func (d *Driver) cloneSnapshot(volumeID string) (*blockdev.SnapshotRecord, error) {
	recs, err := d.snapshots()
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Parameters[cloneSnapshotKey] == volumeID {
			return rec, nil
		}
	}
	return nil, nil
}

// dropCloneSnapshot removes the driver's own snapshot for a volume that needs it no more.
func (d *Driver) dropCloneSnapshot(ctx context.Context, volumeID string) error {
	snap, err := d.cloneSnapshot(volumeID)
	if err != nil || snap == nil {
		return err
	}
	return d.dropSnapshot(ctx, snap)
}

// resumeFills goes on with the copies that the last process was at. Those that fail do so again when the CO asks for the
// volume.
func (d *Driver) resumeFills(recs []*blockdev.VolumeRecord) {
	for _, rec := range recs {
		if rec.State != blockdev.VolumeCreating || rec.Source == nil || rec.CopiedBytes == 0 {
			continue
		}
		id := rec.Source.SnapshotID
		if id == "" && !rec.Thick {
			continue // there is nothing to copy: the image is moved
		}
		if id == "" {
			snap, err := d.cloneSnapshot(rec.ID)
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

// contentSource is the source as the CO named it.
func contentSource(s *blockdev.ContentSource) *csi.VolumeContentSource {
	switch {
	case s == nil:
		return nil
	case s.SnapshotID != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.SnapshotID}}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: s.VolumeID}}}
}

// describe is a source in words, for messages.
func describe(s *blockdev.ContentSource) string {
	switch {
	case s == nil:
		return "nothing"
	case s.SnapshotID != "":
		return fmt.Sprintf("snapshot %s", s.SnapshotID)
	}
	return fmt.Sprintf("volume %s", s.VolumeID)
}
