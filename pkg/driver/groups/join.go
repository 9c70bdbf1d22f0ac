package groups

import (
	"context"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// Join puts a volume into the group its parameters name, creating the group if needed. It can be
// repeated after any failure.
func (d *Manager) Join(ctx context.Context, rec *blockdev.VolumeRecord, p parameter.Volume) error {
	name := p.GroupName(rec.ID)
	if name == "" {
		return nil
	}
	if err := d.sidecar.Need(ctx); err != nil {
		return err
	}
	group, err := d.sidecar.Group(ctx, name)
	if err != nil {
		return err
	}
	if group != nil && rec.Group != name {
		if err := parameter.CheckNamespace(group, rec.Claim, p.SharedGroup); err != nil {
			return err
		}
	}
	owned, err := d.createdByDriver(name)
	if err != nil {
		return err
	}
	if (group == nil || owned) && !slices.Contains(parameter.CreatedGroups(rec), name) {
		// Noted before the group is made: a note without a group does no harm, a group without a note is never deleted.
		if err := d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) {
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
func (d *Manager) createdByDriver(group string) (bool, error) {
	recs, err := d.store.SharedVolumes()
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
