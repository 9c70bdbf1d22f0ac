package replication

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// maxReasonBytes bounds each text of a status, so that a list of groups is never too large to be sent.
const maxReasonBytes = 4 << 10

// Status is a snapshot of a group for people and metrics. A nil pointer is a value that is not known, or that does not
// exist: lag and acknowledgement of a group without a peer.
type Status struct {
	Name, GroupID string
	core.Settings
	// Role is RolePrimary or RoleSecondary; a demotion is a state.
	Role  core.Role
	State core.State
	// StateReason is one sentence for a person; empty if nothing needs saying.
	StateReason string
	// ApplyError is why records do not reach the images; empty while they do. Writes go on until the journal is full.
	ApplyError string
	Connected  bool
	// Promotable: a forced promotion would give one consistent instant. Always true on a primary.
	Promotable bool
	// Before is what a forced promotion gives in the middle of a sync: the copy as it was before. Nil without a sync, and
	// if there was no whole copy.
	Before   *Before
	Timeline string

	HeadOrdinal, DurableOrdinal, AppliedOrdinal uint64
	// AcknowledgedOrdinal is the peer's durable ordinal as last heard; nil at a secondary, and where it was never heard.
	AcknowledgedOrdinal *uint64
	// LagOrdinals and LagBytes are what the copy lacks: at a primary at most this much, at a secondary as its primary last
	// said.
	LagOrdinals, LagBytes *uint64
	// LagSeconds: the copy lacks nothing that was written longer ago than this, by this site's clocks.
	LagSeconds *float64
	// Lagging: there is a target, and the copy lags beyond it, the lag is not known, or there is no whole copy.
	Lagging bool
	// LastReplicatedUnixNanos: everything written before this time, by this site's wall clock, is at the secondary.
	LastReplicatedUnixNanos *int64
	// ClockDifferenceSeconds is the peer's wall clock minus this site's, right to within ClockDifferenceErrorSeconds in
	// either direction; nil until it is measured.
	ClockDifferenceSeconds, ClockDifferenceErrorSeconds *float64

	// PeerSilentSeconds is how long ago at least the last message of the peer arrived, or this process opened the group;
	// nil without a peer, and where the clocks do not say.
	PeerSilentSeconds *float64

	// HistorySeconds is how far the oldest recovery point lies before now, at a secondary that keeps history; nil where it
	// is not known. HistoryShort: more was asked for, and is not there any more.
	HistorySeconds *float64
	HistoryShort   bool

	JournalUsedBytes int64
	ChangeMapBytes   uint64
	// FullCopy is why the running sync, or else the last one, copies everything in place of what the sites wrote; empty if
	// it does not.
	FullCopy string
	// SyncDoneBytes and SyncTotalBytes are of the running initial sync or resync; 0 and 0 without one. Nil at a secondary
	// whose copy is not whole: its primary knows.
	SyncDoneBytes, SyncTotalBytes *uint64
	Volumes                       []VolumeStatus
	// ShipLimitBytesPerSecond is the bound of the rate to the peer at present: that of the schedule, or of the settings.
	// 0: none.
	ShipLimitBytesPerSecond int64
	// SuspendedUnixNanos is since when the group is suspended, by this site's clock; nil if it is not.
	SuspendedUnixNanos *int64
	// Verify says what comparisons of both sites found.
	Verify VerifyStatus
	// Loss is what the last promotion here lost; nil if there was none.
	Loss *core.Loss
	// Yield is the last time that this site gave way, until it is promoted again; nil if it did not.
	Yield *core.Yield
	// Trial is a promotion to a point that is not decided; nil without one.
	Trial *core.Trial
	// RollingBack: the group is not open; see RollingBackStatus.
	RollingBack bool
}

// String is for logs and tests.
func (s *Status) String() string {
	text, err := json.Marshal(s)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// Before is a copy as it was before a sync.
type Before struct {
	Ordinal uint64
	// UnixNanos is when the sync began, by this site's wall clock.
	UnixNanos int64
	// KeptBytes is the space that it takes for now.
	KeptBytes int64
}

// VolumeStatus is a volume of a [Status].
type VolumeStatus struct {
	VolumeID                       string
	SizeBytes                      int64
	Attached                       bool
	UnappliedBytes, ChangeMapBytes uint64
	// Claim is the volume's claim here or, of a copy, at its primary; zero where the volume was not made for a claim.
	Claim  blockdev.ClaimRecord
	FSType string
}

// groupStats are counters since the process started.
type groupStats struct{ shippedBytes, wireBytes atomic.Uint64 }

// ShippedBytes returns how many bytes of records were sent to the peer since the process started, before and after
// compression.
func (g *Group) ShippedBytes() (raw, wire uint64) {
	return g.stats.shippedBytes.Load(), g.stats.wireBytes.Load()
}

// lagBytes is what the peer has not acknowledged: the journal past an ordinal, and the change map.
func (g *Group) lagBytes(acked uint64) uint64 {
	lag := g.changes.bytes()
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

// Status is what slipctl, the driver and the metrics show. It reads no disk.
func (g *Group) Status() *Status {
	head, durable := g.journal.Head(), g.journal.Durable()
	applied := g.checkpoint.read()

	g.mu.Lock()
	m := g.core.Meta
	members := slices.Clone(m.Members)
	state, reason := g.core.State()
	linkState, promotable := g.core.Link(), g.core.Promotable()
	if g.failure != nil {
		state, reason, promotable = core.StateFailed, g.failure.Error(), false
	}
	attached := map[string]bool{}
	for _, v := range *g.members.list.Load() {
		attached[v.id] = v.attached
	}
	g.mu.Unlock()

	s := &Status{
		Name: m.Name, GroupID: m.GroupID, Settings: m.Settings, Role: m.Role.Side(), State: state, StateReason: reason,
		Connected:  linkState == core.LinkStreaming || linkState == core.LinkSyncing,
		Promotable: promotable, Timeline: m.Timeline(),
		HeadOrdinal: head, DurableOrdinal: durable, AppliedOrdinal: applied.AppliedOrdinal,
		JournalUsedBytes: g.journal.UsedBytes(), ChangeMapBytes: g.changes.bytes(), Loss: m.Loss,
		Yield: m.Yield, Trial: m.Trial, FullCopy: m.FullCopy,
	}
	s.ShipLimitBytesPerSecond = g.shipper.rate()
	s.Verify = g.verification.status()
	if since := m.Suspension(); !since.IsZero() {
		s.SuspendedUnixNanos = new(since.UnixNano())
	}
	if base, images := g.resync.current(); base != nil && images != nil {
		s.Before = &Before{Ordinal: base.Ordinal, UnixNanos: base.UnixNanos, KeptBytes: images.keptBytes()}
	}
	if state == core.StateConnecting && g.cfg.LinkClosed != nil {
		if err := g.cfg.LinkClosed(); err != nil {
			s.StateReason = "the link is closed here: " + err.Error()
			if reason != "" {
				s.StateReason += "; " + reason
			}
		}
	}
	if s.StateReason == "" && state == core.StateConnecting && m.Role.Ships() {
		// Made before the configuration changed, or promoted at a site that is only called.
		if err := g.cfg.checkPeer(m.Name, m.Settings); err != nil {
			s.StateReason = err.Error()
		}
	}
	if s.StateReason == "" && state == core.StateConnecting {
		if down := g.shipper.linkDown.Load(); down != nil {
			s.StateReason = (*down).Error()
		}
	}
	if why := g.noRoom.Load(); why != nil && m.Role == core.RoleSecondary {
		s.StateReason = strings.TrimPrefix(s.StateReason+"; the copy waits for space: "+(*why).Error(), "; ")
	}
	if stuck := g.applier.stuck.Load(); stuck != nil {
		s.ApplyError = untrusted.Escape((*stuck).Error(), maxReasonBytes)
	}
	s.StateReason = untrusted.Escape(s.StateReason, maxReasonBytes)
	g.fillLag(s, &m)
	if h := g.History(); h != nil {
		s.HistoryShort = h.Short
		if h.Reaches != nil {
			s.HistorySeconds = new(h.Reaches.Seconds())
		}
	}
	for _, v := range g.Volumes() {
		vs := VolumeStatus{VolumeID: v.id, SizeBytes: v.Size(), Attached: attached[v.id],
			UnappliedBytes: uint64(v.overlay.Bytes())}
		vs.ChangeMapBytes = g.changes.volumeBytes(v.index)
		s.Volumes = append(s.Volumes, vs)
	}
	s.describeVolumes(members)
	return s
}

// describeVolumes adds what the list of members says of the volumes, and sorts them.
func (s *Status) describeVolumes(members []core.Member) {
	describeClaims(s.Volumes, members)
	slices.SortFunc(s.Volumes, func(a, b VolumeStatus) int { return cmp.Compare(a.VolumeID, b.VolumeID) })
}

// fillLag sets the fields that say how far the copy is behind. What is not known stays nil.
func (g *Group) fillLag(s *Status, m *core.Meta) {
	if m.Role.Ships() || m.Copy == core.CopyWhole {
		done, total := g.changes.progress()
		s.SyncDoneBytes, s.SyncTotalBytes = &done, &total
	}
	if m.Peer == "" {
		return
	}
	instant, now := g.cfg.Clock(), g.cfg.Now()
	if silent, ok := instant.SinceAtLeast(*g.peerHeard.Load()); ok {
		s.PeerSilentSeconds = new(silent.Seconds())
	}
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
