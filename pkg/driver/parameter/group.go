package parameter

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// GroupName is the group that parameters put a volume in; empty for none.
func (p Volume) GroupName(volumeID string) string {
	switch {
	case p.Group != "":
		return p.Group
	case p.Remote != "" || p.groupTemplate != "":
		return volumeID
	}
	return ""
}

// CreateGroup returns the request that creates a group with these parameters.
func (p Volume) CreateGroup(name string) *sidecarpb.CreateGroupRequest {
	return &sidecarpb.CreateGroupRequest{Name: name, Settings: p.GroupSettings(func(string) bool { return true })}
}

// GroupSettings returns the settings of a group for the keys that given accepts.
func (p Volume) GroupSettings(given func(key string) bool) *sidecarpb.GroupSettings {
	s := &sidecarpb.GroupSettings{}
	if given(KeyRemote) {
		s.Remote = &p.Remote
	}
	if given(KeyJournalSize) {
		s.JournalSizeBytes = &p.JournalSizeBytes
	}
	if given(KeyJournalFull) {
		s.JournalFull = new(p.JournalFullPolicy())
	}
	if given(KeyRPOTarget) {
		s.RpoTargetMillis = &p.RPOTargetMillis
	}
	if given(KeyHistory) {
		s.HistoryMillis = &p.HistoryMillis
	}
	if given(KeyReplicationRate) {
		s.ShipBytesPerSecond = &p.ShipBytesPerSecond
	}
	if given(KeyRateSchedule) {
		s.ShipSchedule = &p.ShipSchedule
	}
	if given(KeyKeepTails) {
		s.TailsMost = &p.TailsMost
	}
	if given(KeyKeepTailsFor) {
		s.TailsMillis = &p.TailsMillis
	}
	return s
}

// AskedSettings returns the settings that the parameters ask for. The others are the group's own affair, or the
// defaults of a group that is made.
func (p Volume) AskedSettings() *sidecarpb.GroupSettings {
	asked := map[string]bool{
		KeyRemote: p.Remote != "", KeyJournalSize: p.JournalSizeBytes != 0, KeyJournalFull: p.JournalFull != "",
		KeyRPOTarget: p.RPOTargetMillis != 0, KeyHistory: p.HistoryMillis != 0,
		KeyReplicationRate: p.ShipBytesPerSecond != 0, KeyRateSchedule: p.ShipSchedule != "",
		KeyKeepTails: p.TailsMost != 0, KeyKeepTailsFor: p.TailsMillis != 0,
	}
	return p.GroupSettings(func(key string) bool { return asked[key] })
}

// JournalFullPolicy returns the policy of the group's journal when it is full.
func (p Volume) JournalFullPolicy() sidecarpb.JournalFull {
	if p.JournalFull == JournalFullStall {
		return sidecarpb.JournalFull_JOURNAL_FULL_STALL
	}
	return sidecarpb.JournalFull_JOURNAL_FULL_TRACK
}

// CheckNamespace refuses a volume whose claim is of another namespace than one of the group's volumes. Which claims
// share a journal and a failover is decided by the administrator, who writes the classes, and not by a claim that names
// one. What is not known is not compared: outside of Kubernetes there are no namespaces.
func CheckNamespace(group *sidecarpb.GroupStatus, claim *blockdev.ClaimRecord, shared bool) error {
	if shared || claim == nil || claim.Namespace == "" {
		return nil
	}
	for _, v := range group.GetVolumes() {
		if namespace := v.GetClaimNamespace(); namespace != "" && namespace != claim.Namespace {
			return status.Errorf(codes.PermissionDenied, "claim %s/%s may not join consistency group %q, which has volumes of "+
				"another namespace: use a class that names a group for each namespace (%s: ${pvc.namespace}); an administrator "+
				"can allow it in the class that names the group (%s: \"true\")", claim.Namespace, claim.Name, group.GetName(),
				KeyConsistencyGroup, KeySharedGroup)
		}
	}
	return nil
}

// CheckGroup reports parameters that are given and say something else than the existing group. What is not given is
// the group's own affair: a class may name a group that a person configured.
func CheckGroup(group *sidecarpb.GroupStatus, p Volume) error {
	differs := func(key string, want, have any) error {
		return status.Errorf(codes.InvalidArgument,
			"consistency group %q has %s %v, parameter %s says %v: all volumes of a group must agree", group.GetName(),
			key[len(Prefix):], have, key, want)
	}
	switch {
	case p.Remote != "" && p.Remote != group.GetPeer():
		return differs(KeyRemote, p.Remote, group.GetPeer())
	case p.JournalSizeBytes != 0 && p.JournalSizeBytes != group.GetJournalSizeBytes():
		return differs(KeyJournalSize, p.JournalSizeBytes, group.GetJournalSizeBytes())
	case p.JournalFull != "" && p.JournalFullPolicy() != group.GetJournalFull():
		return differs(KeyJournalFull, p.JournalFullPolicy(), group.GetJournalFull())
	case p.RPOTargetMillis != 0 && float64(p.RPOTargetMillis)/1e3 != group.GetRpoTargetSeconds():
		return differs(KeyRPOTarget, time.Duration(p.RPOTargetMillis)*time.Millisecond,
			time.Duration(group.GetRpoTargetSeconds()*float64(time.Second)))
	case p.HistoryMillis != 0 && float64(p.HistoryMillis)/1e3 != group.GetHistoryTargetSeconds():
		return differs(KeyHistory, time.Duration(p.HistoryMillis)*time.Millisecond,
			time.Duration(group.GetHistoryTargetSeconds()*float64(time.Second)))
	case p.ShipBytesPerSecond != 0 && p.ShipBytesPerSecond != group.GetShipBytesPerSecond():
		return differs(KeyReplicationRate, p.ShipBytesPerSecond, group.GetShipBytesPerSecond())
	case p.ShipSchedule != "" && p.ShipSchedule != group.GetShipSchedule():
		return differs(KeyRateSchedule, p.ShipSchedule, group.GetShipSchedule())
	case p.TailsMost != 0 && p.TailsMost != group.GetTailsMost():
		return differs(KeyKeepTails, p.TailsMost, group.GetTailsMost())
	case p.TailsMillis != 0 && p.TailsMillis != group.GetTailsMillis():
		return differs(KeyKeepTailsFor, time.Duration(p.TailsMillis)*time.Millisecond,
			time.Duration(group.GetTailsMillis())*time.Millisecond)
	}
	return nil
}

// JournalLimitBytes is the most that the journal of the group will take that these parameters make.
func (p Volume) JournalLimitBytes() int64 {
	settings := core.Settings{JournalSizeBytes: p.JournalSizeBytes, JournalFull: core.PolicyTrack}
	if settings.JournalSizeBytes == 0 {
		settings.JournalSizeBytes = core.DefaultJournalBytes
	}
	if p.JournalFull == JournalFullStall {
		settings.JournalFull = core.PolicyStall
	}
	return settings.JournalLimitBytes()
}
