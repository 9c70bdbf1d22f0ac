package core

import (
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// hello decides whether to follow the caller. Everything that would let two histories mix is refused here, before a
// byte is shipped (guarantee G6).
func (g *Group) hello(e HelloReceived) Decision {
	m := &g.Meta
	if e.Peer != m.Peer || e.GroupID != m.GroupID {
		return g.refuse(RefuseForeign, 0, "group %s (%s) at %s replicates with %q; %q has no part in it with its "+
			"group %s",
			m.Name, m.GroupID, m.Site, m.Peer, e.Peer, e.GroupID)
	}
	rel, common := Relate(m.Timelines, e.Durable, e.Timelines, e.PeerDurable)
	if e.Yielding {
		return g.refuse(RefuseNotSecondary, common, "group %s at %s is called by a site that gives way; it calls itself if "+
			"it is primary", m.Name, m.Site)
	}
	if m.Trial != nil {
		return g.refuse(RefuseNotSecondary, common, "group %s: %s", m.Name, m.trialText())
	}
	if y := m.Yielding(); y != nil && y.Stage != YieldUndoing {
		return g.helloYielding(e, rel, common)
	}
	if m.Role == RolePrimary {
		switch rel {
		case RelationSame:
			return g.refuse(RefuseNotSecondary, common,
				"group %s is primary at %s on the same timeline; if it is at %s, too: %s", m.Name, m.Site, m.Peer,
				Command{m.Peer, CommandDemote, m.Name})
		case RelationIContinue, RelationTheyDiverged:
			return g.refuse(RefuseStale, common, "group %s was promoted at %s at ordinal %d", m.Name, m.Site,
				m.Timelines[len(m.Timelines)-1].ForkOrdinal)
		}
		return g.diverged(rel, common, e)
	}
	switch {
	case m.Decided() != nil:
		return g.refuse(RefuseNotSecondary, common, "group %s is being promoted at %s, as a shard of %s", m.Name, m.Site,
			m.Shard.Group)
	case m.Copy == CopyRollingBack:
		return g.refuse(RefuseNotSecondary, common, "group %s is being promoted at %s, at ordinal %d", m.Name, m.Site,
			m.Base.Ordinal)
	case rel == RelationSame && e.Term < m.Term:
		// The call is from before a promotion that this side knows of: a stale Hello, or a demoted primary that has not
		// heard of the promotion yet. If this side followed it, the group would have no primary: each site would wait
		// for the other's call.
		return g.refuse(RefuseNotSecondary, common,
			"group %s was promoted since at another site than %s, whose call is of an earlier term (%d; %s knows %d)",
			m.Name, m.Peer, e.Term, m.Site, m.Term)
	case rel == RelationSame && e.PeerDurable < e.Durable:
		// A crash does not explain this: only durable records are shipped. But the Hello may be stale: its stream was
		// cut and its process is gone. So this side does not hold it against the next Hello. The primary hears of it
		// only if it is true, and the primary remembers it (see refused).
		return g.diverged(rel, common, e)
	case rel == RelationSame, rel == RelationTheyContinue:
	case rel == RelationIContinue, rel == RelationTheyDiverged:
		return g.refuse(RefuseStale, common, "group %s has gone on to timeline %s at %s", m.Name, m.Timeline(), m.Site)
	default:
		return g.diverged(rel, common, e)
	}
	if m.Role == RoleDemoted && e.Attached > 0 {
		return g.refuse(RefuseNotSecondary, common, "group %s still has %s at %s", m.Name,
			words.Count(e.Attached, "attached volume"), m.Site)
	}

	f := &following{term: max(m.Term, e.Term), consistent: m.Copy == CopyWhole}
	if m.Role == RoleDemoted {
		// Demoted, and the peer was promoted in its place: what is here is a prefix of what it has, unless this site
		// lost durable ordinals once and used them again.
		f.consistent = m.Divergence == nil || m.Divergence.Relation != relationPeerAhead
	}
	if rel == RelationTheyContinue {
		f.timelines = slices.Clone(e.Timelines)
	}
	g.following = f
	g.link = LinkGreeting
	welcome := SendWelcome{Durable: e.Durable, NeedsSync: !f.consistent, Instance: m.Instance}
	if y := m.Yielding(); y != nil {
		welcome.Yield = &YieldOffer{ID: y.ID, All: y.All}
	}
	return welcome
}

// following is what a secondary takes over from the caller that it has welcomed, once the caller has agreed: only the
// caller knows what it has shipped, and so whether the last ordinal here is one of its own. Until then nothing has
// changed here, so a caller that does not come back has done no harm.
type following struct {
	term       uint64
	consistent bool
	timelines  []Timeline // nil where they stay
	// yield and fork are set where this site gives way: what it offered, and the ordinal that it goes back to.
	yield *YieldOffer
	fork  uint64
}

// sessionReceived makes this site the secondary of the caller that it has welcomed. With Sync, a sync begins and what
// is here counts no more as a copy.
func (g *Group) sessionReceived(e SessionReceived) Decision {
	m, f := &g.Meta, g.following
	if f == nil {
		// The role or the settings changed since the Hello.
		return Close{}
	}
	g.following = nil
	if f.yield != nil && !e.Sync {
		return Close{} // of a caller that does not know what yielding is
	}
	if f.yield != nil {
		g.beginUndoing(f, e.FullCopy)
	}
	if e.Sync {
		m.FullCopy = e.FullCopy
	}
	if m.Role != RoleSecondary {
		m.become(RoleSecondary)
		m.FinalOrdinal, m.Openings = 0, nil
		// What was known of the peer as a secondary is nothing about a primary.
		g.heard, g.told, g.current = nil, nil, currency{}
	}
	m.Session, m.Term, m.Divergence = e.Session, f.term, nil
	switch {
	case f.consistent && !e.Sync && m.keepsBase():
		m.Copy = CopyWhole
	case f.consistent && !e.Sync:
		m.Copy, m.Base = CopyWhole, nil
	case f.consistent && m.keepsBase():
		m.Copy = CopyAwaiting
	case f.consistent, f.yield != nil && e.Base != nil:
		m.Copy, m.Base = CopyAwaiting, e.Base
	default:
		m.Copy = CopyAwaiting // a sync that was interrupted goes on, from the base that there is
	}
	g.link = LinkStreaming
	g.refusal = ""
	// What an earlier heartbeat said of a demotion may be undone by now; the next one says it again if not.
	g.forgetDemotion()
	if f.timelines == nil {
		g.persist()
		return Follow{}
	}
	m.Timelines = f.timelines
	g.told, g.current.marks = nil, nil // ordinals of the timeline before
	g.persist()
	g.rollJournal()
	return Follow{}
}

func (g *Group) refuse(reason RefusalReason, fork uint64, format string, args ...any) Decision {
	return SendRefusal{Reason: reason, Fork: fork, Message: fmt.Sprintf(format, args...)}
}

// diverged remembers the disagreement on this side too, so that status shows it wherever one looks.
func (g *Group) diverged(rel Relation, common uint64, e HelloReceived) Decision {
	m := &g.Meta
	text := fmt.Sprintf("group %s: %s and %s both hold ordinals past %d; neither overwrites the other; to give up "+
		"what one of them wrote, and keep it as snapshots: %s, or %s",
		m.Name, m.Site, m.Peer, common, Command{m.Site, CommandYield, m.Name}, Command{m.Peer, CommandYield,
			m.Name})
	switch rel {
	case RelationUnrelated:
		text = fmt.Sprintf("group %s: %s and %s have no timeline in common; give one of them up: %s, or %s", m.Name, m.Site,
			m.Peer, Command{m.Site, CommandDelete, m.Name}, Command{m.Peer, CommandDelete, m.Name})
	case RelationTheyContinue:
		text = fmt.Sprintf("group %s: %s was promoted at ordinal %d, and %s still is primary; to follow %s: %s",
			m.Name, m.Peer, common, m.Site, m.Peer, Command{m.Site, CommandYield, m.Name})
	case RelationSame:
		text = fmt.Sprintf("group %s: %s holds ordinals up to %d, its primary %s only up to %d: the primary lost durable "+
			"writes",
			m.Name, m.Site, e.Durable, m.Peer, e.PeerDurable)
	}
	d := Divergence{Relation: rel.String(), CommonOrdinal: common, PeerPrimary: true, Text: text}
	if rel == RelationSame {
		d.Relation = relationPeerBehind
	}
	if n := len(e.Timelines); n > 0 {
		d.PeerTimeline = e.Timelines[n-1].ID
	}
	// A peer that follows this site on an open stream does not call it. The Hello is from before that: the peer has given
	// way since. Or it was promoted, and the stream is about to end; then it calls again.
	if g.link != LinkSyncing && g.link != LinkStreaming {
		g.setDivergence(d)
	}
	return g.refuse(RefuseDiverged, common, "%s", text)
}
