package core

import (
	"fmt"
	"math"
	"slices"
)

// Session is one stream from a primary to its secondary on which something was shipped. Both sites keep the last one,
// so each of them can be found to be older than the other remembers: its disk was put back to an earlier state.
//
// The primary draws a session when it has accepted an answer to Hello, and makes it durable before it sends anything.
// The secondary makes it durable before it takes anything. So the secondary's session is never later than the
// primary's, unless the primary is the one that was put back.
type Session struct {
	// Number counts the group's sessions, of both sites together; 0 before the first.
	Number uint64 `json:"number,omitempty"`
	// ID tells sessions with one number apart: a primary that was put back uses the number again. It stays until the
	// secondary has reported it, so that the primary recognizes each session that the secondary may have taken part in.
	ID string `json:"id,omitempty"`
	// Primary is the site that began it.
	Primary string `json:"primary,omitempty"`
}

// MaxSession bounds the number of a session that a peer reports. It can not be reached by counting.
const MaxSession = 1 << 62

func (s Session) String() string { return fmt.Sprintf("%d (%s)", s.Number, s.ID) }

// Delivery is a place in what a secondary was sent: a session, and the end of the durable part of the secondary's own
// journal, which never goes back. The zero value is before everything.
type Delivery struct {
	Session uint64 `json:"session,omitempty"`
	Segment uint64 `json:"segment,omitempty"`
	Offset  int64  `json:"offset,omitempty"`
}

// Before reports whether d lies before e.
func (d Delivery) Before(e Delivery) bool {
	switch {
	case d.Session != e.Session:
		return d.Session < e.Session
	case d.Segment != e.Segment:
		return d.Segment < e.Segment
	}
	return d.Offset < e.Offset
}

// Tail identifies the record at an ordinal, by what is the same at every site that holds it.
type Tail struct {
	Ordinal     uint64 `json:"ordinal"`
	Fingerprint uint64 `json:"fingerprint"`
}

// Compare compares two tails; nil is one that is not known.
func (t *Tail) Compare(o *Tail) Match {
	switch {
	case t == nil || o == nil || t.Ordinal != o.Ordinal:
		return MatchUnknown
	case t.Fingerprint != o.Fingerprint:
		return MatchDifferent
	}
	return MatchSame
}

// Match is the outcome of comparing the record that the peer has at its last ordinal with the one that is here.
type Match int

const (
	// MatchUnknown: one of the two has left its journal.
	MatchUnknown Match = iota
	// MatchSame: both sites have the same record there.
	MatchSame
	// MatchDifferent: the ordinal was used twice.
	MatchDifferent
)

func (m Match) String() string { return [...]string{"unknown", "same", "different"}[m] }

// Opening is a moment at which the primary's journal was opened, or at which its site was promoted.
//
// What a primary ships was durable in its journal before. So a peer whose last session is Session or an earlier one
// holds ordinals up to Ordinal at most. A peer that holds more was sent writes which this site has lost since. The
// openings outlive the process: a second restart before the first contact must not make new writes look like the lost
// ones.
type Opening struct {
	Session uint64 `json:"session,omitempty"`
	Ordinal uint64 `json:"ordinal,omitempty"`
}

// maxOpenings bounds Meta.Openings. The list grows only by contacts that end before the peer takes part in the session.
const maxOpenings = 16

// opened adds an opening, unless the last one says as much already.
func (g *Group) opened(e Opened) {
	m := &g.Meta
	if !m.Role.Ships() {
		return
	}
	if n := len(m.Openings); n > 0 && m.Openings[n-1].Session == m.Session.Number && m.Openings[n-1].Ordinal <= e.Durable {
		return
	}
	// An earlier opening with a higher ordinal says less than this one.
	list := slices.DeleteFunc(slices.Clone(m.Openings), func(o Opening) bool { return o.Ordinal >= e.Durable })
	if len(list) == maxOpenings {
		list = list[1:]
	}
	m.Openings = append(list, Opening{Session: m.Session.Number, Ordinal: e.Durable})
	g.persist()
}

// mostHeld is the highest ordinal that a peer with this last session can hold; MaxUint64 if nothing bounds it.
func (m *Meta) mostHeld(s Session) uint64 {
	most := uint64(math.MaxUint64)
	for _, o := range m.Openings {
		if s.Number <= o.Session {
			most = min(most, o.Ordinal)
		}
	}
	return most
}

// knownSession reports whether a session that the peer reports can be explained. Later ones than it reported before are
// those that this site began since. An earlier one is that of a peer whose disk was put back; see lacksForgotten. One
// that the peer began itself says nothing; see judge.
func (g *Group) knownSession(s Session) bool {
	m := &g.Meta
	if s.Primary != m.Site || s == m.PeerSession || s.Number < m.PeerSession.Number {
		return true
	}
	return s.Number > m.PeerSession.Number && s.Number <= m.Session.Number && s.ID == m.Session.ID &&
		s.Primary == m.Session.Primary
}

// beginSession begins the session of a stream that is about to ship. The Persist of the caller makes it durable.
func (g *Group) beginSession(peer Session, id string) {
	m := &g.Meta
	if m.Session.Primary == m.Site && m.Session.ID != peer.ID {
		id = m.Session.ID // not reported yet
	}
	m.PeerSession = peer
	// Above the peer's also where this site's disk was put back to before it. Else the peer's session could be taken for
	// a later one than this, and what is sent in this one for sent before it.
	m.Session = Session{Number: max(m.Session.Number, peer.Number) + 1, ID: id, Primary: m.Site}
	m.Openings = slices.DeleteFunc(slices.Clone(m.Openings), func(o Opening) bool { return o.Session < peer.Number })
}

// relied notes up to where the primary has forgotten what it sent besides records.
func (g *Group) relied(e Relied) {
	m := &g.Meta
	if m.Relied.Before(e.Delivery) || m.Forgotten < e.Through {
		if m.Relied.Before(e.Delivery) {
			m.Relied = e.Delivery
		}
		m.Forgotten = max(m.Forgotten, e.Through)
		g.persist()
	}
}
