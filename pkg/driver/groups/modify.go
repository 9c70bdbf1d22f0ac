package groups

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// modification is a mutation of one volume, once it is known to be possible.
type modification struct {
	parameter.Mutation
	rec *blockdev.VolumeRecord
	// target is the group that the volume is to be in; empty for none. group is its status, nil while there is none.
	target string
	group  *sidecarpb.GroupStatus
}

func (d *Manager) Modify(ctx context.Context, rec *blockdev.VolumeRecord, m parameter.Mutation) error {
	mod, err := d.planModification(ctx, rec, m)
	if err != nil {
		return err
	}
	if err := d.noteModification(mod); err != nil {
		return err
	}
	if mod.Has(parameter.KeyOrder, parameter.KeyIOBytes, parameter.KeyIOPS) {
		if err := d.sidecar.ModifyVolume(ctx, mod.modifyVolume()); err != nil {
			return err
		}
	}
	if mod.target == "" {
		// On its way from one to another it is taken out of the one, and does not go on.
		if group := cmp.Or(mod.rec.Group, mod.rec.MoveTo); group != "" {
			err = d.sidecar.RemoveVolume(ctx, group, rec.ID)
		}
	} else {
		err = d.moveInto(ctx, mod)
	}
	if err != nil {
		return err
	}
	return d.dropCreatedGroups(ctx, rec.ID, mod.target)
}

// planModification refuses what cannot be done, with nothing changed.
func (d *Manager) planModification(ctx context.Context, rec *blockdev.VolumeRecord,
	m parameter.Mutation) (*modification, error) {
	refuse := func(code codes.Code, format string, args ...any) (*modification, error) {
		return nil, status.Errorf(code, "volume %s "+format, append([]any{rec.ID}, args...)...)
	}
	switch {
	case rec.Secondary && rec.Group != "":
		return refuse(codes.FailedPrecondition, "is a secondary copy: change it at the primary site, or promote its group "+
			"here first (slipctl group promote %s)", rec.Group)
	case rec.Secondary:
		return refuse(codes.FailedPrecondition, "is a copy that its primary has let go: put it into a group here first")
	case rec.State != blockdev.VolumeReady:
		return refuse(codes.Aborted, "is in state %s; call again when it is ready", rec.State)
	case !rec.Replicable && m.Replication == parameter.ReplicationOff && len(m.Given) == 1:
		return &modification{Mutation: m, rec: rec}, nil // as it is
	case !rec.Replicable:
		return refuse(codes.InvalidArgument, "was created without %s, so none of these can be changed: %s",
			parameter.KeyReplicable, strings.Join(slices.Sorted(maps.Keys(m.Given)), ", "))
	case m.Has(parameter.KeyOrder) && blockdev.Order(m.Order) != rec.Order && rec.Stage != nil:
		return refuse(codes.FailedPrecondition, "is staged, and its order decides how it is attached: unstage it first "+
			"(stop its pods), then change %s", parameter.KeyOrder)
	}
	if err := d.sidecar.Need(ctx); err != nil {
		return nil, err
	}
	target, err := d.targetGroup(ctx, rec, m)
	if err != nil {
		return nil, err
	}
	mod := &modification{Mutation: m, rec: rec, target: target}
	if rec.Group != "" && rec.Group != target {
		if _, err := d.group(ctx, rec, rec.Group); err != nil { // the volume is to leave it
			return nil, err
		}
	}
	if target == "" {
		return mod, nil
	}
	if mod.group, err = d.group(ctx, rec, target); err != nil || mod.group == nil {
		return mod, err
	}
	g := mod.group
	switch {
	case g.GetRole() != sidecarpb.Role_ROLE_PRIMARY:
		return refuse(codes.FailedPrecondition, "is to be in group %s, which is %s here: promote it first (slipctl group "+
			"promote %s)", target, g.GetRole().Word(), target)
	case rec.Group != target && m.Has(parameter.KeyRemote) && m.Remote != g.GetPeer():
		return refuse(codes.FailedPrecondition, "is to join group %s, which replicates to %q, not to %q: change the group "+
			"first (slipctl group set %s --remote %s), or name another one",
			target, g.GetPeer(), m.Remote, target, m.Remote)
	case rec.Group != target && rec.MoveTo != target:
		// A class that names no group brings the volume back to the one that its own class named.
		shared := m.SharedGroup
		if m.Group == "" {
			shared = parameter.CreationOf(rec)[parameter.KeySharedGroup] == "true"
		}
		return mod, parameter.CheckNamespace(g, rec.Claim, shared)
	}
	return mod, nil
}

// CheckMutable refuses mutable parameters that the volume does not have at present, as a ControllerModifyVolume with
// them would change it.
func (d *Manager) CheckMutable(ctx context.Context, rec *blockdev.VolumeRecord, params map[string]string) error {
	m, err := parameter.ParseMutation(params)
	if err != nil {
		return err
	}
	differs := func(key string, have any) error {
		return status.Errorf(codes.InvalidArgument, "volume %s has %s %v, not %s", rec.ID, key, have, m.Given[key])
	}
	switch {
	case m.Replication == parameter.ReplicationOff && rec.Group != "":
		return differs(parameter.KeyReplication, parameter.ReplicationOn)
	case m.Replication == parameter.ReplicationOn && rec.Group == "":
		return differs(parameter.KeyReplication, parameter.ReplicationOff)
	case m.Has(parameter.KeyConsistencyGroup) && m.Group != rec.Group:
		return differs(parameter.KeyConsistencyGroup, strconv.Quote(rec.Group))
	case m.Has(parameter.KeyOrder) && blockdev.Order(m.Order) != rec.Order:
		return differs(parameter.KeyOrder, rec.Order)
	case m.Has(parameter.KeyIOBytes) && m.IOBytesPerSecond != rec.IOBytesPerSecond:
		return differs(parameter.KeyIOBytes, rec.IOBytesPerSecond)
	case m.Has(parameter.KeyIOPS) && m.IOPS != rec.IOPS:
		return differs(parameter.KeyIOPS, rec.IOPS)
	case !m.Has(parameter.GroupKeys...):
		return nil
	case rec.Group == "":
		return status.Errorf(codes.InvalidArgument, "volume %s is in no group that %s could be of", rec.ID,
			strings.Join(parameter.GroupKeys, ", "))
	}
	group, err := d.group(ctx, rec, rec.Group)
	switch {
	case err != nil:
		return err
	case group == nil:
		return status.Errorf(codes.FailedPrecondition, "volume %s: its group %s is being deleted; see slipctl group list",
			rec.ID, rec.Group)
	case m.Has(parameter.KeyRPOTarget) && m.RPOTargetMillis == 0 && group.GetRpoTargetSeconds() != 0:
		return differs(parameter.KeyRPOTarget, group.GetRpoTargetSeconds())
	case m.Has(parameter.KeyHistory) && m.HistoryMillis == 0 && group.GetHistoryTargetSeconds() != 0:
		return differs(parameter.KeyHistory, group.GetHistoryTargetSeconds())
	case m.Has(parameter.KeyReplicationRate) && m.ShipBytesPerSecond == 0 && group.GetShipBytesPerSecond() != 0:
		return differs(parameter.KeyReplicationRate, group.GetShipBytesPerSecond())
	case m.Has(parameter.KeyRateSchedule) && m.ShipSchedule == "" && group.GetShipSchedule() != "":
		return differs(parameter.KeyRateSchedule, group.GetShipSchedule())
	case m.Has(parameter.KeyKeepTails) && m.TailsMost == 0 && group.GetTailsMost() != 0:
		return differs(parameter.KeyKeepTails, group.GetTailsMost())
	case m.Has(parameter.KeyKeepTailsFor) && m.TailsMillis == 0 && group.GetTailsMillis() != 0:
		return differs(parameter.KeyKeepTailsFor, time.Duration(group.GetTailsMillis())*time.Millisecond)
	}
	return parameter.CheckGroup(group, m.Volume)
}

// targetGroup is the group that the volume is in after the change; empty for none.
func (d *Manager) targetGroup(ctx context.Context, rec *blockdev.VolumeRecord, m parameter.Mutation) (string, error) {
	switch {
	case m.Replication == parameter.ReplicationOff:
		return "", nil
	case m.Group != "":
		return m.Group, nil
	case rec.MoveTo != "":
		return rec.MoveTo, nil
	case rec.Group != "":
		return rec.Group, nil
	case m.Remote != "":
		return rec.ID, nil
	}
	for _, key := range parameter.GroupKeys {
		if m.Has(key) {
			return "", status.Errorf(codes.FailedPrecondition, "volume %s is in no group that %s could be of: give %s or %s "+
				"as well", rec.ID, key, parameter.KeyConsistencyGroup, parameter.KeyRemote)
		}
	}
	if m.Replication != parameter.ReplicationOn {
		return "", nil
	}
	// Where it was before, or would have been.
	left := rec.Parameters[parameter.NoteLeftGroup]
	if left != "" {
		if g, err := d.group(ctx, rec, left); g != nil || err != nil {
			return left, err
		}
	}
	p, err := parameter.ParseRecorded(rec, parameter.CreationOf(rec))
	if err != nil {
		return "", err
	}
	if name := p.GroupName(rec.ID); name != "" {
		return name, nil
	}
	if left != "" {
		return "", status.Errorf(codes.FailedPrecondition, "volume %s was in group %s, which is no more: give %s or %s to "+
			"say where it is replicated", rec.ID, left, parameter.KeyConsistencyGroup, parameter.KeyRemote)
	}
	return "", status.Errorf(codes.FailedPrecondition, "volume %s was created without a group: give %s or %s to say "+
		"where it is replicated", rec.ID, parameter.KeyConsistencyGroup, parameter.KeyRemote)
}

// noteModification makes durable, before anything is done, that the volume was modified and which group the driver
// makes for it: a note without a group does no harm, a group without a note is never deleted.
func (d *Manager) noteModification(mod *modification) error {
	created := ""
	if mod.target != "" {
		owned := mod.group == nil
		if !owned {
			var err error
			if owned, err = d.createdByDriver(mod.target); err != nil {
				return err
			}
		}
		if owned {
			created = mod.target
		}
	}
	return d.store.Update(mod.rec, "update", func(r *blockdev.VolumeRecord) {
		if r.Parameters == nil {
			r.Parameters = map[string]string{}
		}
		r.Parameters[parameter.NoteModified] = "true"
		if left := cmp.Or(r.Group, r.MoveTo); mod.target == "" && left != "" {
			r.Parameters[parameter.NoteLeftGroup] = left
		}
		parameter.NoteCreatedGroup(r, created)
	})
}

// moveInto makes the group as it is asked for, and the volume its member.
func (d *Manager) moveInto(ctx context.Context, mod *modification) error {
	if mod.group == nil {
		// One that replication is switched on for again is made as it was at first, where nothing else is asked for.
		p, err := parameter.Parse(parameter.Overlay(parameter.CreationOf(mod.rec), mod.Given))
		if err != nil {
			return err
		}
		if err := d.sidecar.CreateGroup(ctx, p.CreateGroup(mod.target)); err != nil {
			return err
		}
	} else if mod.Has(parameter.GroupKeys...) {
		if err := d.sidecar.ModifyGroup(ctx, mod.modifyGroup()); err != nil {
			return err
		}
	}
	return d.sidecar.MoveVolume(ctx, mod.target, mod.rec.ID)
}

func (mod *modification) modifyVolume() *sidecarpb.ModifyVolumeRequest {
	r := &sidecarpb.ModifyVolumeRequest{VolumeId: mod.rec.ID}
	p := &mod.Volume
	if mod.Has(parameter.KeyOrder) {
		r.Order = &p.Order
	}
	if mod.Has(parameter.KeyIOBytes) {
		r.IoBytesPerSecond = &p.IOBytesPerSecond
	}
	if mod.Has(parameter.KeyIOPS) {
		r.Iops = &p.IOPS
	}
	return r
}

func (mod *modification) modifyGroup() *sidecarpb.ModifyGroupRequest {
	given := func(key string) bool { return mod.Has(key) }
	return &sidecarpb.ModifyGroupRequest{Name: mod.target, Settings: mod.GroupSettings(given)}
}
