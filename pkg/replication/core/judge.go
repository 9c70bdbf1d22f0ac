package core

import "fmt"

// verdict is what an answer to Hello says about the copy at the peer.
type verdict int

const (
	// copyContinues: the copy is what this site shipped, and what it lacks is in the journal or in the change map.
	copyContinues verdict = iota
	// copyAnew: the copy may lack, or hold, something that nothing here tells. The peer gets everything.
	copyAnew
	// writesLost: this site lost durable writes, or its disk was put back to an earlier state; the peer has them.
	writesLost
)

// judgement is a verdict with its reason.
type judgement struct {
	verdict
	// reason is how it was found out that writes are lost, or why the copy is made anew; empty for a first copy.
	reason string
	// common is for writesLost: the last ordinal that both sites certainly share.
	common uint64
}

// judge compares what the peer says of its copy with what this site knows. It changes nothing.
//
// What a peer lacks is in three places: in the journal, from Retained on; in the change map, where records were folded;
// and nowhere: records that were released, and extents that were forgotten, because the peer had acknowledged them. A
// peer that lacks something of the third kind lost what it had, and gets everything, as a new one does.
func (g *Group) judge(e Welcomed) judgement {
	m := &g.Meta
	yields := e.Yield != nil
	// A peer that was promoted in the middle of a sync gave up the extents of it, which are not in the change map here.
	forgotten := max(m.Forgotten, e.Forgotten) > e.PeerDurable
	anew := func(format string, args ...any) judgement {
		return judgement{verdict: copyAnew, reason: fmt.Sprintf(format, args...)}
	}
	switch {
	case yields && e.Yield.All && e.Yield.Reason != "":
		return anew("%s", e.Yield.Reason)
	case yields && e.Yield.All:
		return anew("%s gives way and needs all of it", m.Peer)
	case yields && g.oldYield(e):
		return anew("the disk of %s was put back to before it gave way", m.Peer)
	case yields && forgotten:
		return anew("%s gave up extents of a sync that %s does not list any more", m.Peer, m.Site)
	}
	// A site that gives way needs a sync, and names what that has to bring besides what this site wrote.
	if m.PeerInstance != e.Instance && (m.PeerInstance != "" || e.NeedsSync && !yields) {
		// Not the copy that this site shipped to. After a promotion the instance of the peer is not known yet; a peer
		// that has a whole copy is the old primary.
		if m.PeerInstance == "" && m.Sync == SyncNever {
			return anew("%s", m.FullCopy) // the first one, unless something says why it is not
		}
		return anew("%s has another copy than the one that %s shipped to", m.Peer, m.Site)
	}
	if reason, common := g.lostHere(e); reason != "" {
		return judgement{writesLost, reason, common}
	}
	// A peer that has not followed this site yet was the primary, and may have written. Its ordinals are those of this
	// site if its last record is; nothing else tells whether its disk was put back and written to again.
	doubtful := e.PeerSession.Primary != m.Site && e.PeerTail != MatchSame && e.PeerDurable > 0
	switch {
	case m.Sync == SyncNever:
		return anew("%s", m.FullCopy)
	case doubtful:
		return anew("the write at ordinal %d, the last that both sites have, has left a journal, and nothing else "+
			"identifies it", e.PeerDurable)
	case e.PeerDurable < e.ReleasedAcked, g.lacksForgotten(e):
		return anew("%s lacks writes that it had acknowledged: its disk lost them or was put back", m.Peer)
	case g.showsLost(e):
		return anew("%s may show writes that %s has lost since it sent them in a sync", m.Peer, m.Site)
	}
	return judgement{verdict: copyContinues}
}

// lostHere says how an answer to Hello shows that this primary's disk was put back to an earlier state; "" if it does
// not. common is then the last ordinal that both sites certainly share.
//
// Ordinals that the peer has and this site does not would be used again for other writes. After that they look like a
// continuation, so the number of ordinals is not enough: the peer can not hold more than the openings say, sessions
// must be known, and the records must be the same.
func (g *Group) lostHere(e Welcomed) (reason string, common uint64) {
	m := &g.Meta
	floor := max(m.Timelines[len(m.Timelines)-1].ForkOrdinal, e.ReleasedAcked)
	s := e.PeerSession
	most := m.mostHeld(s)
	switch {
	case e.PeerDurable > e.Durable:
		return fmt.Sprintf("%s holds ordinals up to %d, this site only up to %d", m.Peer, e.PeerDurable, e.Durable), e.Durable
	case !g.knownSession(s):
		return fmt.Sprintf("%s took part in session %s, which is none of this site's (the last is %s)", m.Peer, s,
			m.Session), floor
	case e.PeerDurable > most:
		return fmt.Sprintf("%s holds ordinals up to %d of what was sent before this site started at ordinal %d",
			m.Peer, e.PeerDurable, most), min(most, e.Durable)
	case e.PeerTail == MatchDifferent:
		return fmt.Sprintf("ordinal %d is another write at %s than here", e.PeerDurable, m.Peer), min(floor, e.PeerDurable)
	case m.Divergence != nil && m.Divergence.Relation == relationPeerAhead && !e.NeedsSync:
		// Found out before, by a release that did not fork the timeline.
		return fmt.Sprintf("%s was ahead of this site", m.Peer), min(m.Divergence.CommonOrdinal, e.Durable)
	}
	return "", 0
}

// lacksForgotten reports whether the peer lacks something that only the change map said and that was taken off it when
// the peer had it: the peer's disk was put back to an earlier state.
func (g *Group) lacksForgotten(e Welcomed) bool {
	m := &g.Meta
	relied := m.Relied
	if relied.Before(e.Relied) {
		relied = e.Relied
	}
	at := e.PeerPlace
	at.Session = e.PeerSession.Number
	if e.PeerSession.Primary == m.Site && at.Session < m.PeerSession.Number {
		return true
	}
	// A whole sync that the peer does not know the end of is the same, for a peer from before there were sessions.
	return at.Before(relied) || e.NeedsSync && m.Sync == SyncDone && e.Yield == nil
}

// showsLost reports whether extents at the peer may show writes that this site has lost since. An extent is content as
// it was when it was sent, without the ordinals of the writes in it. A sync that goes on from the change map would keep
// such an extent. A peer that is not in the middle of a sync holds the ordinals too, so lostHere has found them.
func (g *Group) showsLost(e Welcomed) bool {
	return e.PeerHorizon > min(e.Durable, g.Meta.mostHeld(e.PeerSession))
}
