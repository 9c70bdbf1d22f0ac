package core

import "fmt"

// Settings are what can be changed of a group while it works.
type Settings struct {
	// Peer is the site to replicate to; empty for none. PeerAddress is where it is reached for this group, if not at its
	// usual address.
	Peer, PeerAddress string
	JournalSizeBytes  int64
	JournalFull       Policy
	// RPOTargetMillis is how far the copy may lag before status says so; 0 for no target.
	RPOTargetMillis int64
	// ShipBytesPerSecond bounds what is sent to the peer, after compression; 0 for no bound.
	ShipBytesPerSecond int64
}

// Settings returns the group's.
func (m *Meta) Settings() Settings {
	return Settings{
		Peer: m.Peer, PeerAddress: m.PeerAddress, JournalSizeBytes: m.JournalSizeBytes, JournalFull: m.JournalFull,
		RPOTargetMillis: m.RPOTargetMillis, ShipBytesPerSecond: m.ShipBytesPerSecond,
	}
}

// configured changes settings. At a secondary those that its primary decides come from there alone.
//
// Another peer has nothing that counts, also if it once had: what was written meanwhile may have left the journal because
// nobody needed it there. So it gets everything.
func (g *Group) configured(e Configured) ([]Action, error) {
	m, s := &g.Meta, e.Settings
	refuse := func(format string, args ...any) ([]Action, error) {
		return nil, fmt.Errorf("%w: group %s: %s", ErrPrecondition, m.Name, fmt.Sprintf(format, args...))
	}
	if s == m.Settings() {
		return nil, nil
	}
	relink := s.Peer != m.Peer || s.PeerAddress != m.PeerAddress
	if m.Role == RoleSecondary && !e.FromPeer {
		switch {
		case s.Peer != m.Peer:
			return refuse("it is secondary at %s and follows %s; change its remote there, or promote it here first", m.Site, m.Peer)
		case s.JournalSizeBytes != m.JournalSizeBytes || s.RPOTargetMillis != m.RPOTargetMillis:
			return refuse("it is secondary at %s, where its journal size and RPO target follow %s; change them there", m.Site, m.Peer)
		}
	}
	if s.Peer != m.Peer {
		switch {
		case m.Demoted:
			return refuse("it was demoted for %s to take over; promote it here first, or change it at %s", m.Peer, m.Peer)
		case m.Divergence != nil && m.Divergence.Supersedes():
			return refuse("%s may have taken its place: %s; decide between the two sites first", m.Peer, m.Divergence.Text)
		}
	}
	if relink && m.Role == RolePrimary && g.link != LinkDown {
		return refuse("its stream to %s is open", m.Peer) // the caller ends it first
	}
	if s.Peer != m.Peer {
		g.following = nil
		m.Sync, m.PeerInstance, m.Divergence = SyncNever, "", nil
		g.acked, g.answered, g.refusal = 0, false, ""
		g.heard, g.told, g.current = nil, nil, currency{}
	}
	m.Peer, m.PeerAddress = s.Peer, s.PeerAddress
	m.JournalSizeBytes, m.JournalFull = s.JournalSizeBytes, s.JournalFull
	m.RPOTargetMillis, m.ShipBytesPerSecond = s.RPOTargetMillis, s.ShipBytesPerSecond
	return []Action{Persist{}}, nil
}

// Lagging reports whether the copy is beyond the group's RPO target: it lags by more, it is not known by how much (a nil
// lag), or there is no whole copy. Always false without a target or a peer.
func (g *Group) Lagging(lagSeconds *float64) bool {
	m := &g.Meta
	if m.RPOTargetMillis == 0 || m.Peer == "" {
		return false
	}
	whole := m.Sync == SyncDone
	if m.Role == RoleSecondary {
		whole = m.Consistent
	}
	return !whole || lagSeconds == nil || *lagSeconds*1e3 > float64(m.RPOTargetMillis)
}
