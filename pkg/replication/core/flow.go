package core

import (
	"fmt"
	"time"
)

// Flow says whether a primary ships to its peer.
//
//	           Suspend (primary with a peer)
//	flowing  --------------------------------->  suspended
//	    ^                                            |
//	    +------  Resume; the peer is taken away  ----+
//
// A suspended group cannot be demoted: what its peer lacks would never arrive there. So a site of any other role than
// primary is flowing.
type Flow string

const (
	// Flowing is empty, as group.json of earlier releases has it.
	Flowing Flow = ""
	// FlowSuspended: a person stopped the stream. What is written meanwhile is kept for the peer, in the journal or the
	// change map, as it is while the peer is away.
	FlowSuspended Flow = "suspended"
)

// Suspension is since when a group is suspended, by this site's clock. Zero: it is not.
func (m *Meta) Suspension() time.Time {
	if m.Flow != FlowSuspended {
		return time.Time{}
	}
	return time.Unix(0, m.SuspendedUnixNanos).UTC()
}

// suspend stops shipping. The caller has ended the stream that it opened.
func (g *Group) suspend(e Suspend) error {
	m := &g.Meta
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: group %s %s", ErrPrecondition, m.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Flow == FlowSuspended:
		return nil // repeated: already done
	case m.Role == RoleSecondary:
		return refuse("is secondary at %s; suspend it at %s (slipctl group suspend %s)", m.Site, m.Peer, m.Name)
	case m.Role == RoleDemoted:
		return refuse("was demoted at %s, and %s still needs what was written; promote it there, or here again", m.Site,
			m.Peer)
	case m.Peer == "":
		return refuse("has no peer, so nothing is replicated")
	case g.link != LinkDown:
		return refuse("has an open stream to %s", m.Peer)
	}
	m.Flow, m.SuspendedUnixNanos = FlowSuspended, e.Now
	g.persist()
	return nil
}

// resume lets the group ship again. Repeating it is not an error.
func (g *Group) resume() {
	if g.Meta.flow() {
		g.persist()
	}
}

// flow ends a suspension, and reports whether there was one.
func (m *Meta) flow() bool {
	was := m.Flow
	m.Flow, m.SuspendedUnixNanos = Flowing, 0
	return was == FlowSuspended
}
