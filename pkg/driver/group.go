package driver

import (
	"context"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// sameCreation reports, as AlreadyExists, mutable parameters that a volume was not made with. What it was made with stays in force until
// ControllerModifyVolume changes it, from when on a creation cannot be compared with it.
func sameCreation(rec *blockdev.VolumeRecord, r createRequest) error {
	if rec.Parameters[parameter.NoteModified] != "" {
		return nil
	}
	made, err := parameter.MadeWith(rec)
	if err != nil {
		return err
	}
	if made.Settings() != r.effective.Settings() {
		return status.Errorf(codes.AlreadyExists, "volume %q exists (%s) and was made with other mutable parameters: %v, now %v; "+
			"repeat the call with those and change the volume then (ControllerModifyVolume), or choose another name", r.name, rec.ID, rec.MutableParameters, r.mutable)
	}
	return nil
}

// joinGroup puts a volume into the group its parameters name, creating the group where there is none. It can be repeated
// after any failure.
func (d *Driver) joinGroup(ctx context.Context, rec *blockdev.VolumeRecord, p parameter.Volume) error {
	name := p.GroupName(rec.ID)
	if name == "" {
		return nil
	}
	if err := d.needSidecar(ctx); err != nil {
		return err
	}
	group, err := d.sidecar.Group(ctx, name)
	if err != nil {
		return err
	}
	owned, err := d.createdByDriver(name)
	if err != nil {
		return err
	}
	if (group == nil || owned) && !slices.Contains(parameter.CreatedGroups(rec), name) {
		// Noted before the group is made: a note without a group does no harm, a group without a note is never deleted.
		if err := d.update(rec, "update", func(r *blockdev.VolumeRecord) {
			parameter.NoteCreatedGroup(r, name)
		}); err != nil {
			return err
		}
	}
	if group == nil {
		err = d.sidecar.CreateGroup(ctx, p.CreateGroup(name))
	} else {
		err = parameter.CheckGroup(group, p)
	}
	if err != nil {
		return err
	}
	return d.sidecar.AddVolume(ctx, name, rec.ID)
}

// createdByDriver reports whether any volume carries the note that the driver created the group.
func (d *Driver) createdByDriver(group string) (bool, error) {
	recs, err := d.records()
	if err != nil {
		return false, err
	}
	for _, rec := range recs {
		if slices.Contains(parameter.CreatedGroups(rec), group) {
			return true, nil
		}
	}
	return false, nil
}

// leaveGroup takes a volume out of every group that it may be in or on its way into, as AddVolume may have happened without an
// answer, and deletes those that the driver created and whose last volume this was.
func (d *Driver) leaveGroup(ctx context.Context, rec *blockdev.VolumeRecord) error {
	_, awaited, err := parameter.Joining(rec)
	if err != nil {
		return err
	}
	created := parameter.CreatedGroups(rec)
	groups := append([]string{rec.Group, rec.MoveTo, awaited}, created...)
	slices.Sort(groups)
	for _, group := range slices.Compact(groups) {
		if group == "" {
			continue
		}
		if err := d.needSidecar(ctx); err != nil {
			return err
		}
		if err := d.sidecar.RemoveVolume(ctx, group, rec.ID); err != nil {
			return err
		}
		if !slices.Contains(created, group) {
			continue
		}
		if err := d.deleteIfEmpty(ctx, group, rec.ID); err != nil {
			return err
		}
	}
	return nil
}

// destroy removes a volume that is not in use, image, record and all. It can be repeated after any failure.
func (d *Driver) destroy(ctx context.Context, rec *blockdev.VolumeRecord) error {
	if rec.Source != nil {
		d.tasks.StopCopy(rec.ID)
		if err := d.dropCloneSnapshot(ctx, rec.ID); err != nil {
			return err
		}
	}
	if rec.Replicable {
		if err := d.leaveGroup(ctx, rec); err != nil {
			return err
		}
	}
	if err := d.publications.Forget(rec.ID); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	if err := d.pool.Delete(rec.ID); err != nil && status.Code(poolError("delete", rec.ID, err)) != codes.NotFound {
		return poolError("delete", rec.ID, err)
	}
	return nil
}
