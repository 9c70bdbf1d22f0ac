package core

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/schedule"
)

// Settings are what can be changed of a group while it works. They are comparable with ==.
//
// A new setting is added in three places: here with its bounds (Check), in the API of the sidecar (GroupSettings in
// sidecar.proto and its conversion in pkg/sidecar/settings.go), and where a person sets it (a flag of slipctl, a
// parameter of the driver).
type Settings struct {
	// Peer is the site to replicate to; empty for none.
	Peer string `json:"peer,omitempty"`
	// PeerAddress is the address of the peer for this group alone; empty: the usual address of the peer.
	PeerAddress string `json:"peerAddress,omitempty"`
	// JournalSizeBytes is the space for records that are not applied and acknowledged yet.
	JournalSizeBytes int64  `json:"journalSizeBytes"`
	JournalFull      Policy `json:"journalFull"`
	// RPOTargetMillis is how far the copy may lag before status says so; 0 for no target.
	RPOTargetMillis int64 `json:"rpoTargetMillis,omitempty"`
	// HistoryMillis and HistoryBytes are how far apply stays behind at the secondary, so that views can be opened at
	// earlier ordinals: at least a time, and at least a number of bytes of the journal; 0 for none. The journal's size
	// bounds both.
	HistoryMillis int64 `json:"historyMillis,omitempty"`
	HistoryBytes  int64 `json:"historyBytes,omitempty"`
	// ShipBytesPerSecond bounds what is sent to the peer, after compression; 0 for no bound.
	ShipBytesPerSecond int64 `json:"shipBytesPerSecond,omitempty"`
	// ShipSchedule bounds it by time of day, in the form of package schedule; empty for none. It goes before
	// ShipBytesPerSecond. Core keeps it; the caller, which has a clock, evaluates it.
	ShipSchedule string `json:"shipSchedule,omitempty"`
	// VerifyEveryMillis is the time between comparisons of both sites; 0 for none but on demand. VerifyBytesPerSecond
	// bounds what one reads at each site; 0 for the default of the caller.
	VerifyEveryMillis    int64 `json:"verifyEveryMillis,omitempty"`
	VerifyBytesPerSecond int64 `json:"verifyBytesPerSecond,omitempty"`
	// DeleteRemovedCopies: this site deletes its copy of a volume that the primary takes out of the group. It is this
	// site's own; a peer cannot set it.
	DeleteRemovedCopies bool `json:"deleteRemovedCopies,omitempty"`
	// TailsMost and TailsMillis are how many divergent tails of the group this site keeps, and how long; 0 for no limit.
	// The newest one stays whatever they say. They are this site's own, as DeleteRemovedCopies is.
	TailsMost   uint32 `json:"tailsMost,omitempty"`
	TailsMillis int64  `json:"tailsMillis,omitempty"`
	// Shard says which part of a group over several nodes this is; zero for a group that is on one node.
	Shard Shard `json:"shard,omitzero"`
}

// Bounds of settings, and the default size of a journal.
const (
	MinJournalBytes     = 4 << 20
	MaxJournalBytes     = 1 << 40
	DefaultJournalBytes = 1 << 30
	// MinShipBytesPerSecond: with less, one batch would take longer than the peer has to answer.
	MinShipBytesPerSecond = schedule.MinBytesPerSecond
	// MinVerifyEveryMillis is a minute. With less than MinVerifyBytesPerSecond a comparison of a large group never ends.
	MinVerifyEveryMillis    = 60 * 1000
	MinVerifyBytesPerSecond = 1 << 20
	// MaxRPOTargetMillis and MaxHistoryMillis are a year.
	MaxRPOTargetMillis = 365 * 24 * 3600 * 1000
	MaxHistoryMillis   = MaxRPOTargetMillis
	// MaxTailsMillis is ten years.
	MaxTailsMillis = 10 * MaxRPOTargetMillis
)

// SetPeer sets another peer. The address of the peer before is removed.
func (s *Settings) SetPeer(peer string) {
	if peer != s.Peer {
		s.Peer, s.PeerAddress = peer, ""
	}
}

// Check returns an error if no group can have these settings.
func (s *Settings) Check() error {
	switch {
	case s.JournalSizeBytes < MinJournalBytes || s.JournalSizeBytes > MaxJournalBytes:
		return fmt.Errorf("journal size %d, must be from %d to %s",
			s.JournalSizeBytes, int64(MinJournalBytes), words.Count(int64(MaxJournalBytes), "byte"))
	case s.JournalFull != PolicyTrack && s.JournalFull != PolicyStall:
		return fmt.Errorf("journal-full %q, must be %s or %s", s.JournalFull, PolicyTrack, PolicyStall)
	case s.RPOTargetMillis < 0 || s.RPOTargetMillis > MaxRPOTargetMillis:
		return fmt.Errorf("RPO target %d ms, must be from 0 (none) to %d", s.RPOTargetMillis, int64(MaxRPOTargetMillis))
	case s.HistoryMillis < 0 || s.HistoryMillis > MaxHistoryMillis:
		return fmt.Errorf("history %d ms, must be from 0 (none) to %d", s.HistoryMillis, int64(MaxHistoryMillis))
	case s.HistoryBytes < 0 || s.HistoryBytes > s.JournalSizeBytes/2:
		return fmt.Errorf("history of %s, must be from 0 (none) to half of the journal's %d; make the journal larger",
			words.Count(s.HistoryBytes, "byte"), s.JournalSizeBytes)
	case s.ShipBytesPerSecond != 0 && s.ShipBytesPerSecond < MinShipBytesPerSecond:
		return fmt.Errorf("ship rate %s/s, must be 0 (no bound) or at least %d",
			words.Count(s.ShipBytesPerSecond, "byte"), MinShipBytesPerSecond)
	}
	switch {
	case s.VerifyEveryMillis != 0 && s.VerifyEveryMillis < MinVerifyEveryMillis,
		s.VerifyEveryMillis > MaxRPOTargetMillis:
		return fmt.Errorf("time between comparisons %d ms, must be 0 (none) or from %d to %d", s.VerifyEveryMillis,
			MinVerifyEveryMillis, int64(MaxRPOTargetMillis))
	case s.VerifyBytesPerSecond != 0 && s.VerifyBytesPerSecond < MinVerifyBytesPerSecond:
		return fmt.Errorf("verify rate %s/s, must be 0 (the default) or at least %d",
			words.Count(s.VerifyBytesPerSecond, "byte"), MinVerifyBytesPerSecond)
	}
	if s.TailsMillis < 0 || s.TailsMillis > MaxTailsMillis {
		return fmt.Errorf("tails kept for %d ms, must be from 0 (no limit) to %d", s.TailsMillis, int64(MaxTailsMillis))
	}
	if err := s.Shard.check(); err != nil {
		return err
	}
	_, err := schedule.Parse(s.ShipSchedule)
	return err
}

// validate checks the settings of a group.json. Its bounds are wider than those of Check: a release may narrow the
// bounds of Check, and still has to open the groups of the releases before it.
func (s *Settings) validate() error {
	switch {
	case s.JournalFull != PolicyTrack && s.JournalFull != PolicyStall:
		return fmt.Errorf("unknown journal-full policy %q", s.JournalFull)
	case s.JournalSizeBytes <= 0:
		return fmt.Errorf("journal size %d", s.JournalSizeBytes)
	case s.RPOTargetMillis < 0 || s.ShipBytesPerSecond < 0 || s.HistoryMillis < 0 || s.HistoryBytes < 0:
		return fmt.Errorf("RPO target %d ms, ship rate %d or history %d ms, %s is negative", s.RPOTargetMillis,
			s.ShipBytesPerSecond, s.HistoryMillis, words.Count(s.HistoryBytes, "byte"))
	}
	return nil
}

// JournalLimitBytes is the most that the journal's files take. With PolicyTrack the journal may grow past its size
// while records wait to be applied, because no writer waits for that.
func (s *Settings) JournalLimitBytes() int64 {
	if s.JournalFull == PolicyStall {
		return s.JournalSizeBytes
	}
	return 2 * s.JournalSizeBytes
}

// configured changes settings. At a secondary those that its primary decides come from there alone.
//
// Another peer has nothing that counts, also if it once had: what was written meanwhile may have left the journal
// because no peer needed it there. So the new peer gets everything.
func (g *Group) configured(e Configured) error {
	m, s := &g.Meta, e.Settings
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: group %s: %s", ErrPrecondition, m.Name, fmt.Sprintf(format, args...))
	}
	if s == m.Settings {
		return nil
	}
	relink := s.Peer != m.Peer || s.PeerAddress != m.PeerAddress
	if m.Role == RoleSecondary && !e.FromPeer {
		switch {
		case s.Peer != m.Peer:
			return refuse("it is secondary at %s and follows %s; change its remote there, or promote it here first", m.Site,
				m.Peer)
		case s.JournalSizeBytes != m.JournalSizeBytes || s.RPOTargetMillis != m.RPOTargetMillis ||
			s.HistoryMillis != m.HistoryMillis || s.HistoryBytes != m.HistoryBytes:
			return refuse("it is secondary at %s, where its journal size, history and RPO target follow %s; change them there",
				m.Site, m.Peer)
		case s.Shard != m.Shard:
			return refuse("it is secondary at %s, where its shards follow %s; change them there", m.Site, m.Peer)
		}
	}
	joined := m.Epochs != nil && m.Epochs.Config.Version.Number > 0
	if joined && !e.FromPeer && (s.Shard.Group != m.Shard.Group || s.Shard.ID != m.Shard.ID) {
		return refuse("it is shard %d of %s, and a shard cannot leave its group or change its number yet", m.Shard.ID,
			m.Shard.Group)
	}
	if s.Peer != m.Peer {
		switch {
		case e.PeerGone:
		case m.Role == RoleDemoted:
			return refuse("it was demoted for %s to take over; promote it here first, or change it at %s", m.Peer, m.Peer)
		case m.Divergence != nil && m.Divergence.Supersedes():
			return refuse("%s may have taken its place: %s; decide between the two sites first", m.Peer, m.Divergence.Text)
		}
	}
	if relink && m.Role.Ships() && g.link != LinkDown {
		return refuse("its stream to %s is open", m.Peer) // the caller ends it first
	}
	if s.Peer != m.Peer {
		g.following = nil
		m.Sync, m.PeerInstance, m.FullCopy, m.Divergence = SyncNever, "", "", nil
		g.acked, g.answered, g.refusal = 0, false, ""
		g.heard, g.told, g.current = nil, nil, currency{}
	}
	if m.Settings = s; s.Peer == "" {
		m.flow()
	}
	g.persist()
	return nil
}

// Lagging reports whether the copy is beyond the group's RPO target: it lags by more, it is not known by how much (a
// nil lag), or there is no whole copy. Always false without a target or a peer.
func (g *Group) Lagging(lagSeconds *float64) bool {
	m := &g.Meta
	if m.RPOTargetMillis == 0 || m.Peer == "" {
		return false
	}
	whole := m.Sync == SyncDone
	if m.Role == RoleSecondary {
		whole = m.Copy == CopyWhole
	}
	return !whole || lagSeconds == nil || *lagSeconds*1e3 > float64(m.RPOTargetMillis)
}
