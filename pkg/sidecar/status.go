package sidecar

import (
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

var roles = map[core.Role]sidecarpb.Role{
	core.RolePrimary:   sidecarpb.Role_ROLE_PRIMARY,
	core.RoleSecondary: sidecarpb.Role_ROLE_SECONDARY,
}

var states = map[core.State]sidecarpb.GroupState{
	core.StateIdle:       sidecarpb.GroupState_GROUP_STATE_IDLE,
	core.StateConnecting: sidecarpb.GroupState_GROUP_STATE_CONNECTING,
	core.StateStreaming:  sidecarpb.GroupState_GROUP_STATE_STREAMING,
	core.StateSyncing:    sidecarpb.GroupState_GROUP_STATE_SYNCING,
	core.StateDemoted:    sidecarpb.GroupState_GROUP_STATE_DEMOTED,
	core.StateSuspended:  sidecarpb.GroupState_GROUP_STATE_SUSPENDED,
	core.StateYielding:   sidecarpb.GroupState_GROUP_STATE_YIELDING,
	core.StateTrial:      sidecarpb.GroupState_GROUP_STATE_TRIAL,
	core.StateDiverged:   sidecarpb.GroupState_GROUP_STATE_DIVERGED,
	core.StateFailed:     sidecarpb.GroupState_GROUP_STATE_FAILED,
}

func statusToAPI(s *replication.Status) *sidecarpb.GroupStatus {
	out := &sidecarpb.GroupStatus{
		Name: s.Name, GroupId: s.GroupID, Role: roles[s.Role], State: states[s.State], StateReason: s.StateReason,
		ApplyError: s.ApplyError, Peer: s.Peer, PeerAddress: s.PeerAddress, Connected: s.Connected,
		Promotable: s.Promotable, Timeline: s.Timeline,
		HeadOrdinal: s.HeadOrdinal, DurableOrdinal: s.DurableOrdinal, AppliedOrdinal: s.AppliedOrdinal,
		AcknowledgedOrdinal: s.AcknowledgedOrdinal, LagOrdinals: s.LagOrdinals, LagBytes: s.LagBytes,
		LagSeconds: s.LagSeconds, Lagging: s.Lagging, LastReplicatedUnixNanos: s.LastReplicatedUnixNanos,
		PeerSilentSeconds:      s.PeerSilentSeconds,
		ClockDifferenceSeconds: s.ClockDifferenceSeconds, ClockDifferenceErrorSeconds: s.ClockDifferenceErrorSeconds,
		JournalSizeBytes: s.JournalSizeBytes, JournalUsedBytes: s.JournalUsedBytes, JournalFull: policyToAPI(s.JournalFull),
		ChangeMapBytes: s.ChangeMapBytes, SyncDoneBytes: s.SyncDoneBytes, SyncTotalBytes: s.SyncTotalBytes,
		RpoTargetSeconds: float64(s.RPOTargetMillis) / 1e3, ShipBytesPerSecond: s.ShipBytesPerSecond,
		Loss: lossToAPI(s.Loss), DeleteRemovedCopies: s.DeleteRemovedCopies,
		ShipSchedule: s.ShipSchedule, ShipLimitBytesPerSecond: s.ShipLimitBytesPerSecond,
		SuspendedUnixNanos: s.SuspendedUnixNanos, Yield: yieldToAPI(s.Yield), Trial: trialToAPI(s.Trial),
		Verify: verifyToAPI(&s.Verify), VerifyEveryMillis: s.VerifyEveryMillis,
		VerifyBytesPerSecond: s.VerifyBytesPerSecond,
		HistoryTargetSeconds: float64(s.HistoryMillis) / 1e3, HistoryTargetBytes: s.HistoryBytes,
		HistorySeconds: s.HistorySeconds, HistoryShort: s.HistoryShort,
		TailsMost: s.TailsMost, TailsMillis: s.TailsMillis, FullCopyReason: s.FullCopy,
		RollingBack: s.RollingBack,
	}
	if b := s.Before; b != nil {
		out.BeforeSync = &sidecarpb.BeforeSync{Ordinal: b.Ordinal, UnixNanos: b.UnixNanos, KeptBytes: b.KeptBytes}
	}
	for _, v := range s.Volumes {
		out.Volumes = append(out.Volumes, &sidecarpb.VolumeStatus{
			VolumeId: v.VolumeID, SizeBytes: v.SizeBytes, Attached: v.Attached, UnappliedBytes: v.UnappliedBytes,
			ChangeMapBytes: v.ChangeMapBytes, ClaimName: v.Claim.Name, ClaimNamespace: v.Claim.Namespace,
			PersistentVolume: v.Claim.Volume, Block: v.Claim.Block, FsType: v.FSType,
			Claim: claimToAPI(&v.Claim),
		})
	}
	return out
}

func policyToAPI(p core.Policy) sidecarpb.JournalFull {
	if p == core.PolicyStall {
		return sidecarpb.JournalFull_JOURNAL_FULL_STALL
	}
	return sidecarpb.JournalFull_JOURNAL_FULL_TRACK
}

func lossToAPI(l *core.Loss) *sidecarpb.LossReport {
	if l == nil {
		return nil
	}
	return &sidecarpb.LossReport{
		Exact: l.Exact, RecoveredOrdinal: l.RecoveredOrdinal, LostOrdinals: l.LostOrdinals, LostWrites: l.LostWrites,
		LostBytes: l.LostBytes, LostSeconds: l.LostSeconds, Text: l.Text, Partial: l.Partial,
	}
}

func cutToAPI(group string, c replication.CutStatus) *sidecarpb.CutStatus {
	out := &sidecarpb.CutStatus{
		SnapshotId: c.SnapshotID, VolumeId: c.VolumeID, Group: group, Ordinal: c.Ordinal,
		DoneBytes: uint64(c.DoneBytes), TotalBytes: uint64(c.TotalBytes), State: string(blockdev.SnapshotCopying),
	}
	if c.Failed != nil {
		out.State, out.Reason = string(blockdev.SnapshotFailed), c.Failed.Error()
	}
	return out
}
