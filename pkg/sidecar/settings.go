package sidecar

import (
	"math"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// changeSettings changes the settings that a request gives; r may be nil.
func changeSettings(s *core.Settings, r *sidecarpb.GroupSettings) {
	if r == nil {
		return
	}
	if r.Remote != nil {
		s.SetPeer(*r.Remote)
	}
	if r.JournalFull != nil {
		s.JournalFull = policyOf(*r.JournalFull)
	}
	set(&s.PeerAddress, r.RemoteAddress)
	set(&s.JournalSizeBytes, r.JournalSizeBytes)
	set(&s.RPOTargetMillis, r.RpoTargetMillis)
	set(&s.HistoryMillis, r.HistoryMillis)
	set(&s.HistoryBytes, r.HistoryBytes)
	set(&s.ShipBytesPerSecond, r.ShipBytesPerSecond)
	set(&s.ShipSchedule, r.ShipSchedule)
	set(&s.VerifyEveryMillis, r.VerifyEveryMillis)
	set(&s.VerifyBytesPerSecond, r.VerifyBytesPerSecond)
	set(&s.DeleteRemovedCopies, r.DeleteRemovedCopies)
	set(&s.TailsMost, r.TailsMost)
	set(&s.TailsMillis, r.TailsMillis)
	if r.ShardOf != nil {
		s.Shard.Group = *r.ShardOf
		if s.Shard.Group == "" {
			s.Shard = core.Shard{}
		}
	}
	if r.Shard != nil {
		s.Shard.ID = epoch.ShardID(min(*r.Shard, math.MaxUint16))
	}
	set(&s.Shard.EpochMillis, r.EpochMillis)
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

func policyOf(p sidecarpb.JournalFull) core.Policy {
	if p == sidecarpb.JournalFull_JOURNAL_FULL_STALL {
		return core.PolicyStall
	}
	return core.PolicyTrack
}
