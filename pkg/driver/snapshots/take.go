package snapshots

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
)

// originFile, in a snapshot's directory, is a clone of a thick volume's image that the snapshot is copied from. A
// snapshot that went on sharing blocks with a thick volume would take the volume's reservation: a block that two files
// share has to be allocated anew before one of them writes it.
const originFile = "origin"

// takeSnapshots takes snapshots of volumes that are all in one consistency group, or all in none, or in groups that
// are shards of one and are kept at the epoch at. Calls for the volumes are guarded. setup puts into each record what
// the caller wants in it. After an error nothing is left of them, or they stay in state creating, which hides them,
// for the repetition of the call.
func (d *Manager) takeSnapshots(ctx context.Context, recs []*blockdev.VolumeRecord, params parameter.Snapshot,
	at string, setup func(*blockdev.SnapshotRecord)) (list []*blockdev.SnapshotRecord, err error) {
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), attach.UndoTimeout)
		defer cancel()
		for _, snap := range list {
			if derr := d.dropSnapshot(ctx, snap); derr != nil {
				klog.ErrorS(derr, "What is left of a failed snapshot goes when it is asked for again", "snapshot", snap.ID)
			}
		}
	}()
	wanted := make([]blockdev.SnapshotRecord, len(recs))
	for i, rec := range recs {
		if rec.View != nil {
			return list, status.Errorf(codes.FailedPrecondition, "volume %s shows view %s of group %s: there are no snapshots "+
				"of it; open another view of the group at the same point", rec.ID, rec.View.Name, rec.View.Group)
		}
		if rec.State != blockdev.VolumeReady {
			return list, status.Errorf(codes.Unavailable, "volume %s is %s: a snapshot can be taken when it is %s; call again",
				rec.ID, rec.State, blockdev.VolumeReady)
		}
		snap := blockdev.SnapshotRecord{
			ID: snapshotIDPrefix + uuid.NewString(), SourceVolumeID: rec.ID, SizeBytes: rec.SizeBytes,
			BlockSizeBytes: rec.BlockSizeBytes,
			FSType:         rec.FSType, Format: rec.Format, Thick: rec.Thick, Replicable: rec.Replicable, Order: rec.Order,
		}
		snap.Cut.Group = rec.Group // the replicator completes it
		setup(&snap)
		wanted[i] = snap
	}
	if list, err = d.space.CreateSnapshots(wanted); err != nil {
		return list, err
	}
	if recs[0].Group != "" {
		return list, d.takeCuts(ctx, recs, list, at)
	}
	return list, d.takePlain(ctx, recs, list, params)
}

// takeCuts has the replicator take snapshots of the volumes of each group at one ordinal, or at an epoch. It leaves
// list with their records.
func (d *Manager) takeCuts(ctx context.Context, recs []*blockdev.VolumeRecord, list []*blockdev.SnapshotRecord,
	at string) error {
	if err := d.sidecar.Need(ctx); err != nil {
		return err
	}
	targets := map[string]map[string]string{} // by group
	for i, snap := range list {
		if targets[recs[i].Group] == nil {
			targets[recs[i].Group] = map[string]string{}
		}
		targets[recs[i].Group][snap.ID] = snap.SourceVolumeID
	}
	for _, group := range slices.Sorted(maps.Keys(targets)) {
		if err := d.sidecar.CutGroup(ctx, group, at, targets[group]); err != nil {
			return err
		}
	}
	for i, snap := range list {
		taken, err := d.store.Snapshot(snap.ID)
		if err != nil {
			return err
		}
		*snap = *taken
		// On a secondary the format record comes with the group's order, at any time. If it arrives during the cut, its
		// side of the cut is unknown. It comes once in a volume's life.
		now, err := d.store.Volume(recs[i].ID)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(now.Format, recs[i].Format) {
			return status.Errorf(codes.Aborted, "volume %s was formatted while its snapshot was taken; call again", now.ID)
		}
	}
	return nil
}

// takePlain takes snapshots of volumes in no group: each at an instant of its own, unless they are frozen together. It
// leaves list with their records.
func (d *Manager) takePlain(ctx context.Context, recs []*blockdev.VolumeRecord, list []*blockdev.SnapshotRecord,
	params parameter.Snapshot) error {
	f := d.attachments.NotFrozen()
	if params.Freeze {
		var err error
		if f, err = d.attachments.Freeze(ctx, recs, list); err != nil {
			return err
		}
	}
	images := make([]plainImage, len(recs))
	var err error
	for i, rec := range recs {
		if images[i], err = d.takeImage(ctx, rec, list[i], f.Any()); err != nil {
			break
		}
	}
	if terr := f.Thaw(); err == nil && terr != nil {
		err = status.Errorf(codes.FailedPrecondition,
			"snapshot %q: %v: what was taken is not of one instant and is dropped. "+
				"A copy of a mounted volume has to be done in %v: put the pool on a file system that can share blocks (xfs with "+
				"reflink), "+
				"put the volume into a consistency group, or take the snapshot while it is not mounted", list[0].Name, terr,
			attach.FreezeLimit)
	}
	if err != nil {
		return err
	}
	for i, image := range images {
		taken, err := d.store.Pool.UpdateSnapshot(list[i].ID, func(r *blockdev.SnapshotRecord) error {
			r.Method, r.State = image.method, blockdev.SnapshotCopying
			if image.complete {
				r.State, r.CopiedBytes = blockdev.SnapshotReady, r.SizeBytes
			}
			return nil
		})
		if err != nil {
			return store.SnapshotError("update", list[i].ID, err)
		}
		*list[i] = *taken
		if !image.complete {
			if err := d.copySnapshot(taken); err != nil {
				return err
			}
		}
	}
	return nil
}

// plainImage is how far a snapshot's image is when its instant is fixed.
type plainImage struct {
	method   blockdev.SnapshotMethod
	complete bool // else it has to be copied
}

// takeImage fixes what a snapshot holds.
func (d *Manager) takeImage(ctx context.Context, rec *blockdev.VolumeRecord, snap *blockdev.SnapshotRecord,
	isFrozen bool) (plainImage, error) {
	source, err := d.store.Pool.ImagePath(rec.ID)
	if err != nil {
		return plainImage{}, store.VolumeError("find the image of", rec.ID, err)
	}
	dir, err := d.store.Pool.SnapshotDir(snap.ID)
	if err != nil {
		return plainImage{}, store.SnapshotError("find", snap.ID, err)
	}
	target := filepath.Join(dir, blockdev.ImageFile)
	clone := target
	if rec.Thick {
		clone = filepath.Join(dir, originFile)
	}
	err = blockdev.CloneImage(d.fs, source, clone, snap.SizeBytes, snap.SizeBytes)
	switch {
	case err == nil && rec.Thick:
		return plainImage{method: blockdev.MethodCopy}, nil
	case err == nil:
		return plainImage{method: blockdev.MethodReflink, complete: true}, nil
	case !errors.Is(err, errors.ErrUnsupported):
		return plainImage{}, store.SnapshotError("clone the image for", snap.ID, err)
	}
	if err := d.fs.Remove(clone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return plainImage{}, store.SnapshotError("copy the image for", snap.ID, err)
	}
	where, err := d.attachments.InUse(rec)
	if err != nil {
		return plainImage{}, err
	}
	if where != "" && !isFrozen {
		return plainImage{}, status.Errorf(codes.FailedPrecondition, "volume %s is in use (%s), and the pool's file "+
			"system cannot share blocks between files, so the volume "+
			"would change while it is copied: unpublish and unstage it, or give the snapshot class %s: \"true\" (for a "+
			"mounted file system), "+
			"or put the volume into a consistency group, or the pool on xfs with reflink", rec.ID, where, parameter.KeyFreeze)
	}
	if where == "" {
		return plainImage{method: blockdev.MethodCopy}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, attach.FreezeLimit)
	defer cancel()
	run := blockdev.ImageCopy{FS: d.fs, Source: source, Target: target, SourceBytes: snap.SizeBytes,
		TargetBytes: snap.SizeBytes}
	if err := run.Run(ctx); err != nil && ctx.Err() == nil {
		return plainImage{}, store.SnapshotError("copy the frozen volume for", snap.ID, err)
	}
	if ctx.Err() != nil {
		return plainImage{}, status.Errorf(codes.FailedPrecondition, "snapshot %q: volume %s could not be copied in the "+
			"time that it may be frozen: "+
			"take the snapshot while it is not mounted, put the volume into a consistency group, or the pool on xfs with "+
			"reflink", snap.Name, rec.ID)
	}
	return plainImage{method: blockdev.MethodCopy, complete: true}, nil
}

// DeleteSnapshot deletes a snapshot that the caller has guarded, unless a volume is being made from it.
func (d *Manager) DeleteSnapshot(ctx context.Context, rec *blockdev.SnapshotRecord) error {
	if reader := d.tasks.CopyReading(rec.ID); reader != nil {
		return status.Errorf(codes.Aborted, "snapshot %s is being copied into volume %s, %s; call again when that is done",
			rec.ID, reader.ID(), reader)
	}
	return d.dropSnapshot(ctx, rec)
}

// dropSnapshot removes a snapshot and all that is known about it. It can be repeated after any failure.
func (d *Manager) dropSnapshot(ctx context.Context, rec *blockdev.SnapshotRecord) error {
	d.tasks.StopCopy(rec.ID)
	if err := d.attachments.ThawLeftOver(rec.ID); err != nil {
		return err
	}
	if cutByGroup(rec) {
		if err := d.sidecar.Need(ctx); err != nil {
			return err
		}
		if err := d.sidecar.ReleaseCut(ctx, rec.ID); err != nil {
			return err
		}
		if err := changes.Unlink(d.fs, d.store.Pool, rec.ID); err != nil {
			return store.SnapshotError("keep what changed since", rec.ID, err)
		}
	}
	if err := d.store.Pool.DeleteSnapshot(rec.ID); err != nil {
		return store.SnapshotError("delete", rec.ID, err)
	}
	return nil
}

// cutByGroup reports whether a group may know of a snapshot.
func cutByGroup(rec *blockdev.SnapshotRecord) bool {
	return rec.Cut.Group != "" || rec.Cut.GroupID != ""
}
