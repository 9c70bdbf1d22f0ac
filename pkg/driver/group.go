package driver

import (
	"context"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// groupName is the group that parameters put a volume in; empty for none.
func (p volumeParameters) groupName(volumeID string) string {
	switch {
	case p.Group != "":
		return p.Group
	case p.Remote != "" || p.groupTemplate != "":
		return volumeID
	}
	return ""
}

// ConsistencyGroup returns the group that a CreateVolume's parameters name, those of its StorageClass with the mutable ones over them,
// or "": the volume is in none, or in one of its own (see ParamRemote). Errors are those of CreateVolume.
func ConsistencyGroup(req *csi.CreateVolumeRequest) (string, error) {
	p, err := parseCreation(req)
	return p.effective.Group, err
}

// creationParameters are the parameters of a CreateVolume.
type creationParameters struct {
	given     map[string]string // of the class, with the group's name in place of its template
	class     volumeParameters
	effective volumeParameters // with the mutable parameters over them
}

func parseCreation(req *csi.CreateVolumeRequest) (p creationParameters, err error) {
	if p.given, err = expandParameters(req.GetParameters()); err != nil {
		return p, err
	}
	if p.class, err = parseParameters(p.given); err != nil {
		return p, err
	}
	if _, err = parseMutation(req.GetMutableParameters()); err != nil {
		return p, err
	}
	p.effective, err = parseParameters(overlay(p.given, req.GetMutableParameters()))
	return p, err
}

// sameCreation reports, as AlreadyExists, mutable parameters that a volume was not made with. What it was made with stays in force until
// ControllerModifyVolume changes it, from when on a creation cannot be compared with it.
func sameCreation(rec *blockdev.VolumeRecord, r createRequest) error {
	if rec.Parameters[modifiedKey] != "" {
		return nil
	}
	made, err := madeWith(rec)
	if err != nil {
		return err
	}
	if made.settings() != r.effective.settings() {
		return status.Errorf(codes.AlreadyExists, "volume %q exists (%s) and was made with other mutable parameters: %v, now %v; "+
			"repeat the call with those and change the volume then (ControllerModifyVolume), or choose another name", r.name, rec.ID, rec.MutableParameters, r.mutable)
	}
	return nil
}

// madeWith returns the parameters that a volume was made with, of its class and the mutable ones over them.
func madeWith(rec *blockdev.VolumeRecord) (volumeParameters, error) {
	return parseRecorded(rec, overlay(ownParameters(rec), rec.MutableParameters))
}

// parseRecorded parses parameters that a volume's record has. What cannot be read there is nobody's argument, so Internal.
func parseRecorded(rec *blockdev.VolumeRecord, parameters map[string]string) (volumeParameters, error) {
	p, err := parseParameters(parameters)
	if err != nil {
		err = status.Errorf(codes.Internal, "volume %s: parameters in its record: %s", rec.ID, status.Convert(err).Message())
	}
	return p, err
}

// joining returns the parameters by which a volume's creation puts it into a group, and that group's name: empty where it is to be in none, is in
// one, or was modified since.
func joining(rec *blockdev.VolumeRecord) (volumeParameters, string, error) {
	if rec.Group != "" || rec.Secondary || !rec.Replicable || rec.Parameters[modifiedKey] != "" {
		return volumeParameters{}, "", nil
	}
	p, err := madeWith(rec)
	return p, p.groupName(rec.ID), err
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
	if (group == nil || owned) && !slices.Contains(createdGroups(rec), name) {
		// Noted before the group is made: a note without a group does no harm, a group without a note is never deleted.
		if err := d.update(rec, "update", func(r *blockdev.VolumeRecord) {
			noteCreatedGroup(r, name)
		}); err != nil {
			return err
		}
	}
	if group == nil {
		err = d.sidecar.CreateGroup(ctx, p.createGroup(name))
	} else {
		err = contradiction(group, p)
	}
	if err != nil {
		return err
	}
	return d.sidecar.AddVolume(ctx, name, rec.ID)
}

// createGroup asks for a group as the parameters have it.
func (p volumeParameters) createGroup(name string) *sidecarpb.CreateGroupRequest {
	return &sidecarpb.CreateGroupRequest{Name: name, Settings: p.groupSettings(func(string) bool { return true })}
}

// groupSettings returns the settings of a group whose parameters given accepts.
func (p volumeParameters) groupSettings(given func(key string) bool) *sidecarpb.GroupSettings {
	s := &sidecarpb.GroupSettings{}
	if given(ParamRemote) {
		s.Remote = &p.Remote
	}
	if given(ParamJournalSize) {
		s.JournalSizeBytes = &p.JournalSizeBytes
	}
	if given(ParamJournalFull) {
		s.JournalFull = new(p.journalFull())
	}
	if given(ParamRPOTarget) {
		s.RpoTargetMillis = &p.RPOTargetMillis
	}
	if given(ParamReplicationRate) {
		s.ShipBytesPerSecond = &p.ShipBytesPerSecond
	}
	return s
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
	case p.RPOTargetMillis != 0 && float64(p.RPOTargetMillis)/1e3 != group.GetRpoTargetSeconds():
		return differs(ParamRPOTarget, time.Duration(p.RPOTargetMillis)*time.Millisecond, time.Duration(group.GetRpoTargetSeconds()*float64(time.Second)))
	case p.ShipBytesPerSecond != 0 && p.ShipBytesPerSecond != group.GetShipBytesPerSecond():
		return differs(ParamReplicationRate, p.ShipBytesPerSecond, group.GetShipBytesPerSecond())
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
		if slices.Contains(createdGroups(rec), group) {
			return true, nil
		}
	}
	return false, nil
}

// leaveGroup takes a volume out of every group that it may be in or on its way into, as AddVolume may have happened without an
// answer, and deletes those that the driver created and whose last volume this was.
func (d *Driver) leaveGroup(ctx context.Context, rec *blockdev.VolumeRecord) error {
	_, awaited, err := joining(rec)
	if err != nil {
		return err
	}
	created := createdGroups(rec)
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
		d.copies.stop(rec.ID)
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
