package groups

import (
	"context"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// dropCreatedGroups deletes the groups that the driver made for the volume and that it has left, unless others are in
// them.
func (d *Manager) dropCreatedGroups(ctx context.Context, id, except string) error {
	rec, err := d.store.Volume(id)
	if err != nil {
		return err
	}
	for _, name := range parameter.CreatedGroups(rec) {
		if name == except {
			continue
		}
		if err := d.deleteIfEmpty(ctx, name, rec); err != nil {
			return err
		}
		if err := d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) {
			parameter.ForgetCreatedGroup(r, name)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (d *Manager) deleteIfEmpty(ctx context.Context, group string, rec *blockdev.VolumeRecord) error {
	left, err := d.group(ctx, rec, group)
	if err != nil || left == nil || len(left.GetVolumes()) > 0 {
		return err
	}
	klog.InfoS("Deleting the group with its last volume", "group", group, "volume", rec.ID)
	return d.sidecar.DeleteGroup(ctx, group)
}

// Follows reports whether a volume is a copy that its group keeps for another site: the group is secondary here, or was
// demoted for its peer to take over. Such a volume is not taken out of its group here. A group that cannot be opened is
// FailedPrecondition.
func (d *Manager) Follows(ctx context.Context, rec *blockdev.VolumeRecord) (bool, error) {
	if rec.Group == "" || rec.Secondary || d.sidecar == nil {
		return rec.Group != "" && rec.Secondary, nil
	}
	if err := d.sidecar.Need(ctx); err != nil {
		return false, err
	}
	group, err := d.group(ctx, rec, rec.Group)
	return group.GetState() == sidecarpb.GroupState_GROUP_STATE_DEMOTED, err
}

// Leave takes a volume out of every group that it may be in or on its way into, as AddVolume may have happened
// without an answer, and deletes those that the driver created and whose last volume this was.
func (d *Manager) Leave(ctx context.Context, rec *blockdev.VolumeRecord) error {
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
		if err := d.sidecar.Need(ctx); err != nil {
			return err
		}
		if err := d.sidecar.RemoveVolume(ctx, group, rec.ID); err != nil {
			return err
		}
		if !slices.Contains(created, group) {
			continue
		}
		if err := d.deleteIfEmpty(ctx, group, rec); err != nil {
			return err
		}
	}
	return nil
}
