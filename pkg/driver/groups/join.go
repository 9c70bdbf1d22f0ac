package groups

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
)

// joinAttempts is how often a join begins anew because others made or deleted the group meanwhile.
const joinAttempts = 3

// Join puts a volume into the group its parameters name, creating the group if needed, with one call of the
// replicator. It can be repeated after any failure.
//
// That the driver creates a group is noted in the volume's record before: a note without a group does no harm, a group
// without a note is never deleted. Whether it creates one is seen in the pool, where every group has a record. If
// someone else has created the group since, the replicator changes nothing and says so, and the note is removed.
func (d *Manager) Join(ctx context.Context, rec *blockdev.VolumeRecord, p parameter.Volume) error {
	name := p.GroupName(rec.ID)
	if name == "" {
		return nil
	}
	if d.sidecar == nil {
		return replicator.ErrNone
	}
	request := &sidecarpb.JoinGroupRequest{Group: name, VolumeId: rec.ID, Settings: p.AskedSettings()}
	if rec.Claim != nil && !p.SharedGroup {
		request.Namespace = rec.Claim.Namespace
	}
	exists := rec.Group == name
	for range joinAttempts {
		if !exists {
			var err error
			if exists, err = d.store.HasGroup(name); err != nil {
				return err
			}
		}
		// After the look at the groups: the note is older than the group.
		owned, err := d.createdByDriver(name)
		if err != nil {
			return err
		}
		request.OnlyNew = !exists && !owned
		request.Create = request.OnlyNew || owned
		if request.Create && !slices.Contains(parameter.CreatedGroups(rec), name) {
			if err := d.note(rec, name, parameter.NoteCreatedGroup); err != nil {
				return err
			}
		}
		unfit, err := d.sidecar.JoinGroup(ctx, request)
		switch {
		case err != nil || unfit == nil:
			return err
		case !request.OnlyNew:
			return explainUnfit(unfit, rec, p)
		}
		if err := d.note(rec, name, parameter.ForgetCreatedGroup); err != nil {
			return err
		}
		exists = true
	}
	return status.Errorf(codes.Aborted, "volume %s: its group %s is made or deleted at the same time; call again", rec.ID,
		name)
}

// note changes the notes of a volume about a group, durably.
func (d *Manager) note(rec *blockdev.VolumeRecord, group string, change func(*blockdev.VolumeRecord, string)) error {
	return d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) { change(r, group) })
}

// explainUnfit is the error of a volume whose parameters do not fit the group that is there.
func explainUnfit(group *sidecarpb.GroupStatus, rec *blockdev.VolumeRecord, p parameter.Volume) error {
	if rec.Group != group.GetName() {
		if err := parameter.CheckNamespace(group, rec.Claim, p.SharedGroup); err != nil {
			return err
		}
	}
	if err := parameter.CheckGroup(group, p); err != nil {
		return err
	}
	return status.Errorf(codes.Aborted, "volume %s did not fit its group %s, which has changed since; call again", rec.ID,
		group.GetName())
}

// createdByDriver reports whether any volume carries the note that the driver created the group.
func (d *Manager) createdByDriver(group string) (bool, error) {
	recs, err := d.store.SharedVolumes()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(recs, func(rec *blockdev.VolumeRecord) bool {
		return slices.Contains(parameter.CreatedGroups(rec), group)
	}), nil
}
