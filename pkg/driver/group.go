package driver

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

// sameCreation returns the parameters that a volume was made with, none for one that was modified since. It reports, as
// AlreadyExists, mutable parameters that the volume was not made with. What it was made with
// stays in force until ControllerModifyVolume changes it, from when on a creation cannot be compared with it.
func sameCreation(rec *blockdev.VolumeRecord, r createRequest) (parameter.Volume, error) {
	if rec.Parameters[parameter.NoteModified] != "" {
		return parameter.Volume{}, nil
	}
	made, err := parameter.MadeWith(rec)
	if err != nil {
		return made, err
	}
	if made.Settings() != r.effective.Settings() {
		return made, status.Errorf(codes.AlreadyExists, "volume %q exists (%s) and was made with other mutable "+
			"parameters: %v, now %v; repeat the call with those and change the volume then (ControllerModifyVolume), "+
			"or choose another name", r.name, rec.ID, rec.MutableParameters, r.mutable)
	}
	return made, nil
}

// destroy removes a volume that is not in use, image, record and all. It can be repeated after any failure.
func (d *Driver) destroy(ctx context.Context, rec *blockdev.VolumeRecord) error {
	if rec.Source != nil && rec.View == nil {
		d.tasks.StopCopy(rec.ID)
		if err := d.snapshots.DropCloneSnapshot(ctx, rec.ID); err != nil {
			return err
		}
	}
	if rec.Replicable {
		if err := d.groups.Leave(ctx, rec); err != nil {
			return err
		}
	}
	if err := d.attachments.Publications.Forget(rec.ID); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	if err := d.store.Pool.Delete(rec.ID); err != nil && status.Code(store.VolumeError("delete", rec.ID,
		err)) != codes.NotFound {
		return store.VolumeError("delete", rec.ID, err)
	}
	return nil
}
