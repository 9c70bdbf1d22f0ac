package replication

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// maxStateReasonBytes bounds what a status says of a group's state, so that a list of groups is never too large to be sent.
const maxStateReasonBytes = 4 << 10

// groupStats are counters since the process started.
type groupStats struct{ shippedBytes, wireBytes atomic.Uint64 }

// ShippedBytes returns how many bytes of records were sent to the peer since the process started, before and after
// compression.
func (g *Group) ShippedBytes() (raw, wire uint64) {
	return g.stats.shippedBytes.Load(), g.stats.wireBytes.Load()
}

// lagBytes is what the peer has not acknowledged: the journal past an ordinal, and the change map.
func (g *Group) lagBytes(acked uint64) uint64 {
	lag := g.changeMapBytes()
	if acked >= g.journal.Head() {
		return lag
	}
	pos, ok, err := g.journal.PositionOf(acked)
	for _, s := range g.journal.Segments() {
		switch {
		case !ok || err != nil || pos.Segment < s.Sequence:
			lag += uint64(s.End.Offset - s.Begin.Offset)
		case pos.Segment == s.Sequence:
			lag += uint64(max(0, s.End.Offset-pos.Offset))
		}
	}
	return lag
}

// Status is what slipctl, the driver and the metrics show.
func (g *Group) Status() *sidecarpb.GroupStatus {
	head, durable := g.journal.Head(), g.journal.Durable()
	g.checkpointMu.Lock()
	applied := g.checkpoint.last
	g.checkpointMu.Unlock()

	g.mu.Lock()
	m := g.core.Meta
	members := slices.Clone(m.Members)
	state, reason := g.core.State()
	linkState, promotable := g.core.Link(), g.core.Promotable()
	if g.failure != nil {
		state, reason, promotable = "failed", g.failure.Error(), false
	}
	attached := map[string]bool{}
	for _, v := range *g.volumes.Load() {
		attached[v.id] = v.attached
	}
	g.mu.Unlock()

	s := &sidecarpb.GroupStatus{
		Name: m.Name, GroupId: m.GroupID, Role: string(m.Role), State: state, StateReason: reason, Peer: m.Peer,
		Connected:  linkState == core.LinkStreaming || linkState == core.LinkSyncing,
		Promotable: promotable, Timeline: m.Timeline(),
		HeadOrdinal: head, DurableOrdinal: durable, AppliedOrdinal: applied.AppliedOrdinal,
		JournalSizeBytes: m.JournalSizeBytes, JournalUsedBytes: g.journal.UsedBytes(), JournalFull: policyToAPI(m.JournalFull),
		ChangeMapBytes: g.changeMapBytes(), Loss: lossToAPI(m.Loss),
		RpoTargetSeconds: float64(m.RPOTargetMillis) / 1e3, ShipBytesPerSecond: m.ShipBytesPerSecond, PeerAddress: m.PeerAddress,
	}
	if state == "connecting" && g.cfg.LinkClosed != nil {
		if err := g.cfg.LinkClosed(); err != nil {
			s.StateReason = "the link is closed here: " + err.Error()
			if reason != "" {
				s.StateReason += "; " + reason
			}
		}
	}
	if s.StateReason == "" && state == "connecting" && m.Role == core.RolePrimary {
		// Made before the configuration changed, or promoted at a site that is only called.
		if err := g.cfg.checkPeer(m.Name, m.Settings); err != nil {
			s.StateReason = err.Error()
		}
	}
	if s.StateReason == "" && state == "connecting" {
		if down := g.linkDown.Load(); down != nil {
			s.StateReason = (*down).Error()
		}
	}
	if s.StateReason == "" {
		if stuck := g.applyStuck.Load(); stuck != nil {
			s.StateReason = (*stuck).Error()
		}
	}
	s.StateReason = untrusted.Escape(s.StateReason, maxStateReasonBytes)
	g.fillLag(s, &m)
	for _, v := range g.Volumes() {
		vs := &sidecarpb.VolumeStatus{VolumeId: v.id, SizeBytes: v.Size(), Attached: attached[v.id], UnappliedBytes: uint64(v.overlay.Bytes())}
		g.mapMu.Lock()
		vs.ChangeMapBytes = g.pending.VolumeBytes(v.index)
		g.mapMu.Unlock()
		s.Volumes = append(s.Volumes, vs)
	}
	describeClaims(s.Volumes, members)
	slices.SortFunc(s.Volumes, func(a, b *sidecarpb.VolumeStatus) int { return cmp.Compare(a.VolumeId, b.VolumeId) })
	return s
}

// fillLag says how far the copy is behind, in what is known: a field that it leaves out is unknown.
func (g *Group) fillLag(s *sidecarpb.GroupStatus, m *core.Meta) {
	if m.Role == core.RolePrimary || m.Consistent {
		s.SyncDoneBytes, s.SyncTotalBytes = new(g.progress.doneBytes.Load()), new(g.progress.totalBytes.Load())
	}
	if m.Peer == "" {
		return
	}
	instant, now := g.cfg.Clock(), g.cfg.Now()
	g.mu.Lock()
	told, toldOK := g.core.Told()
	heard, caughtUp := g.core.Heard(), g.core.CaughtUp(s.DurableOrdinal).At
	g.mu.Unlock()
	if m.Role == core.RoleSecondary {
		if toldOK {
			if heard != nil {
				told = max(told, heard.Head)
				s.LagBytes = &heard.LagBytes
			}
			s.LagOrdinals = new(told - min(told, s.DurableOrdinal))
		}
	} else if m.Sync != core.SyncNever {
		caughtUp = g.clock.oldest(g.journal.Head, now, instant)
		if toldOK {
			s.AcknowledgedOrdinal = &told
			s.LagOrdinals = new(s.HeadOrdinal - min(s.HeadOrdinal, told))
			s.LagBytes = new(g.lagBytes(told))
		}
	}
	if caughtUp.Known() {
		s.LastReplicatedUnixNanos = &caughtUp.WallNanos
	}
	if lag, ok := instant.SinceAtMost(caughtUp); ok {
		s.LagSeconds = new(lag.Seconds())
	}
	if d, ok := g.difference.Estimate(instant); ok {
		s.ClockDifferenceSeconds = new(time.Duration(d.Nanos).Seconds())
		s.ClockDifferenceErrorSeconds = new(time.Duration(d.ErrorNanos).Seconds())
	}
	g.mu.Lock()
	s.Lagging = g.core.Lagging(s.LagSeconds)
	g.mu.Unlock()
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
