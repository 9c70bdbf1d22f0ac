package driver

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// createdGroupKey, in a volume's parameters, names the group that this driver created for the volume or for another one that
// carries the same note. A group that a person made stays when its last volume goes; one that a StorageClass made
// goes with it. The key is not under ParameterPrefix, where it could be mistaken for a parameter.
const createdGroupKey = "driver.internal/created-group"

// groupName is the group that parameters put a volume in; empty for none.
func (p volumeParameters) groupName(volumeID string) string {
	switch {
	case p.Group != "":
		return p.Group
	case p.Remote != "":
		return volumeID
	}
	return ""
}

// joinGroup puts a volume into the group its parameters name, creating the group where there is none. It can be repeated
// after any failure.
func (d *Driver) joinGroup(ctx context.Context, rec *blockdev.VolumeRecord, p volumeParameters) error {
	name := p.groupName(rec.ID)
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
	if (group == nil || owned) && rec.Parameters[createdGroupKey] == "" {
		// Noted before the group is made: a note without a group does no harm, a group without a note is never deleted.
		updated, err := d.pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
			if r.Parameters == nil {
				r.Parameters = map[string]string{}
			}
			r.Parameters[createdGroupKey] = name
			return nil
		})
		if err != nil {
			return poolError("update", rec.ID, err)
		}
		*rec = *updated
	}
	if group == nil {
		err = d.sidecar.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{
			Name: name, Remote: p.Remote, JournalSizeBytes: p.JournalSizeBytes, JournalFull: p.journalFull(),
		})
	} else {
		err = contradiction(group, p)
	}
	if err != nil {
		return err
	}
	return d.sidecar.AddVolume(ctx, name, rec.ID)
}

func (p volumeParameters) journalFull() sidecarpb.JournalFull {
	if p.JournalFull == JournalFullStall {
		return sidecarpb.JournalFull_JOURNAL_FULL_STALL
	}
	return sidecarpb.JournalFull_JOURNAL_FULL_TRACK
}

// contradiction reports parameters that are given and say something else than the existing group. What is not given is the
// group's own affair: a class may name a group that a person configured.
func contradiction(group *sidecarpb.GroupStatus, p volumeParameters) error {
	differs := func(key string, want, have any) error {
		return status.Errorf(codes.InvalidArgument,
			"consistency group %q has %s %v, parameter %s says %v: all volumes of a group must agree", group.GetName(), key[len(ParameterPrefix):], have, key, want)
	}
	switch {
	case p.Remote != "" && p.Remote != group.GetPeer():
		return differs(ParamRemote, p.Remote, group.GetPeer())
	case p.JournalSizeBytes != 0 && p.JournalSizeBytes != group.GetJournalSizeBytes():
		return differs(ParamJournalSize, p.JournalSizeBytes, group.GetJournalSizeBytes())
	case p.JournalFull != "" && p.journalFull() != group.GetJournalFull():
		return differs(ParamJournalFull, p.journalFull(), group.GetJournalFull())
	}
	return nil
}

// createdByDriver reports whether any volume carries the note that the driver created the group.
func (d *Driver) createdByDriver(group string) (bool, error) {
	recs, err := d.records()
	if err != nil {
		return false, err
	}
	for _, rec := range recs {
		if rec.Parameters[createdGroupKey] == group {
			return true, nil
		}
	}
	return false, nil
}

// leaveGroup takes a volume out of its group, and deletes the group when the driver created it and this was its last volume.
func (d *Driver) leaveGroup(ctx context.Context, rec *blockdev.VolumeRecord) error {
	group := rec.Group
	if group == "" {
		// The volume may be on its way into a group: AddVolume may have happened without an answer.
		p, err := parseParameters(ownParameters(rec))
		if err != nil {
			return status.Errorf(codes.Internal, "volume %s: parameters in its record: %s", rec.ID, status.Convert(err).Message())
		}
		group = p.groupName(rec.ID)
	}
	if group == "" {
		return nil
	}
	if err := d.needSidecar(ctx); err != nil {
		return err
	}
	if err := d.sidecar.RemoveVolume(ctx, group, rec.ID); err != nil {
		return err
	}
	if rec.Parameters[createdGroupKey] != group {
		return nil
	}
	left, err := d.sidecar.Group(ctx, group)
	if err != nil || left == nil || len(left.GetVolumes()) > 0 {
		return err
	}
	klog.InfoS("Deleting the group with its last volume", "group", group, "volume", rec.ID)
	return d.sidecar.DeleteGroup(ctx, group)
}

// destroy removes a volume that is not in use, image, record and all. It can be repeated after any failure.
func (d *Driver) destroy(ctx context.Context, rec *blockdev.VolumeRecord) error {
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
