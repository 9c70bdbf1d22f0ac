package core

import "fmt"

// welcomed decides what to ship from where.
//
// What the peer lacks is in three places: the journal (from Retained on), the change map (what was folded), and nowhere:
// records that were released because it had acknowledged them, and extents that were forgotten for the same reason. The
// last may only be missing at a peer that lost what it had; that peer, like a new one, gets everything.
func (g *Group) welcomed(e Welcomed) []Action {
	m := &g.Meta
	// other: not the copy that this site has shipped to. After a promotion the peer's instance is not known yet; a peer
	// that has a whole copy is the old primary.
	other := m.PeerInstance != e.Instance && (m.PeerInstance != "" || e.NeedsSync)
	if !other {
		reason, common := g.rolledBack(e)
		if reason == "" && m.Divergence != nil && m.Divergence.Relation == relationPeerAhead && !e.NeedsSync {
			// Found out before, by a release that did not fork the timeline.
			reason, common = fmt.Sprintf("%s was ahead of this site", m.Peer), min(m.Divergence.CommonOrdinal, e.Durable)
		}
		if reason != "" {
			return g.lostWrites(reason+": a disk lost durable writes or was put back to an earlier state", common, e.NewTimeline, e.Now)
		}
	}
	g.refusal = ""
	g.acked, g.answered = e.PeerDurable, true
	g.hear(g.acked)
	// A peer that has not followed this site yet may have written itself: it was the primary. Its ordinals are this site's if
	// its last record is; nothing else tells that its disk was not put back and written to again.
	doubtful := e.PeerSession.Primary != m.Site && e.PeerTail != MatchSame && e.PeerDurable > 0
	m.Divergence, m.PeerInstance = nil, e.Instance
	everything := m.Sync == SyncNever || other || doubtful || e.PeerDurable < e.ReleasedAcked || g.forgot(e) || g.showsLost(e)
	g.beginSession(e.PeerSession, e.NewSession)
	if everything {
		m.Sync = SyncRunning
		g.link = LinkSyncing
		// MarkAll before the only Persist: a crash between them marks everything again.
		return []Action{MarkAll{}, Persist{}, Ship{After: e.Durable, Begin: true}}
	}
	actions := []Action{Persist{}} // the session, at least
	if e.PeerDurable+1 < e.Retained {
		return append(actions, g.beginSync(e.Retained-1)...)
	}
	if m.Sync == SyncRunning || e.NeedsSync {
		return append(actions, g.beginSync(e.PeerDurable)...)
	}
	g.link = LinkStreaming
	return append(actions, Ship{After: e.PeerDurable})
}

// forgot reports whether the peer lacks something that only the change map said and that was taken off it when the peer
// had it: the peer's disk was put back to an earlier state.
func (g *Group) forgot(e Welcomed) bool {
	relied := g.Meta.Relied
	if relied.Before(e.Relied) {
		relied = e.Relied
	}
	at := e.PeerPlace
	at.Session = e.PeerSession.Number
	if e.PeerSession.Primary == g.Meta.Site && at.Session < g.Meta.PeerSession.Number {
		return true
	}
	// A whole sync that the peer does not know the end of is the same, for a peer from before there were sessions.
	return at.Before(relied) || e.NeedsSync && g.Meta.Sync == SyncDone
}

// lostWrites remembers that this primary's disk was put back, and forks its timeline: what it writes from now on takes
// ordinals that the peer has with other content, and must never look like a continuation of them.
func (g *Group) lostWrites(reason string, common uint64, timeline string, now int64) []Action {
	m := &g.Meta
	g.link = LinkDown
	common = max(common, m.Timelines[len(m.Timelines)-1].ForkOrdinal)
	d := Divergence{
		Relation: relationPeerAhead, CommonOrdinal: common, PeerTimeline: m.Timeline(),
		Text: reason + "; delete the group at the site whose copy is to be given up",
	}
	m.Divergence = &d
	if m.Demoted {
		return []Action{Persist{}, CloseStream{}}
	}
	g.fork(common, timeline, now)
	return []Action{Persist{}, RollJournal{}, CloseStream{}}
}

// beginSync starts a sync from the change map with the stream at ordinal at.
func (g *Group) beginSync(at uint64) []Action {
	g.link = LinkSyncing
	var actions []Action
	if g.Meta.Sync != SyncRunning {
		g.Meta.Sync = SyncRunning
		actions = append(actions, Persist{})
	}
	return append(actions, Ship{After: at, Begin: true})
}

func (g *Group) syncAcked() []Action {
	g.link = LinkStreaming
	if g.Meta.Sync == SyncDone {
		return nil
	}
	g.Meta.Sync = SyncDone
	return []Action{Persist{}}
}

// refused remembers why, and where histories disagree, for good.
func (g *Group) refused(e Refused) []Action {
	g.link = LinkDown
	g.refusal = fmt.Sprintf("%s refused: %s", g.Meta.Peer, e.Message)
	if e.Reason != RefuseStale && e.Reason != RefuseDiverged {
		return []Action{CloseStream{Retry: true}}
	}
	rel, common := Relate(g.Meta.Timelines, e.Durable, e.PeerTimelines, e.Fork)
	if len(e.PeerTimelines) == 0 {
		rel, common = RelationBothDiverged, e.Fork
	}
	if rel == RelationSame && e.Reason == RefuseDiverged {
		return g.lostWrites(e.Message, common, e.NewTimeline, e.Now)
	}
	d := Divergence{Relation: rel.String(), CommonOrdinal: common, Text: e.Message}
	if n := len(e.PeerTimelines); n > 0 {
		d.PeerTimeline = e.PeerTimelines[n-1].ID
	}
	actions := g.setDivergence(d)
	if e.Reason == RefuseStale {
		// The stream is still open for one DivergentTail.
		fork := common
		if rel == RelationTheyContinue { // past what is here
			fork = e.PeerTimelines[len(g.Meta.Timelines)].ForkOrdinal
		}
		actions = append(actions, CountTail{Fork: fork})
	}
	return append(actions, CloseStream{})
}

// setDivergence remembers a divergence unless it is known already, possibly in better words: both sides call each
// other again and again, and each finds it out in its own way.
func (g *Group) setDivergence(d Divergence) []Action {
	old := g.Meta.Divergence
	if old != nil && old.PeerTimeline == d.PeerTimeline && old.CommonOrdinal == d.CommonOrdinal {
		return nil
	}
	g.Meta.Divergence = &d
	return []Action{Persist{}}
}

func (g *Group) tailCounted(e TailCounted) []Action {
	if g.Meta.Divergence == nil {
		return nil
	}
	text := fmt.Sprintf("%s was promoted at ordinal %d; this site wrote %d ordinals (%d writes, %d bytes) after it, which %s does not have",
		g.Meta.Peer, e.Fork, e.Last-e.Fork, e.Writes, e.Bytes, g.Meta.Peer)
	if e.Last <= e.Fork {
		text = fmt.Sprintf("%s was promoted at ordinal %d; this site wrote nothing after it: demote the group here to follow %s",
			g.Meta.Peer, e.Fork, g.Meta.Peer)
	}
	if g.Meta.Divergence.Text == text {
		return nil
	}
	g.Meta.Divergence.Text = text
	return []Action{Persist{}}
}

// TrimInput is what a trim decision is made from.
type TrimInput struct {
	Applied uint64
	// Pressure: the journal has reached its size, so something has to go.
	Pressure bool
	// Segments are the sealed ones, oldest first, by their last ordinal. Those not wholly applied (which for a
	// secondary's records without ordinals is more than Applied says) are not in it.
	LastOrdinals []uint64
}

// TrimPlan is how many of the oldest segments go: first Release because nobody needs them, then Fold after their
// records were marked in the change map.
type TrimPlan struct{ Release, Fold int }

// folded remembers that the peer needs what the change map says.
func (g *Group) folded() []Action {
	if g.Meta.Sync != SyncDone {
		return nil
	}
	g.Meta.Sync = SyncRunning
	return []Action{Persist{}}
}

// PlanTrim decides what leaves the journal. A segment goes when it is applied here and acknowledged there. Under
// pressure, with the track policy, one more goes by being folded: one at a time, since each frees what is needed now.
func (g *Group) PlanTrim(in TrimInput) TrimPlan {
	m := &g.Meta
	var plan TrimPlan
	// Without a peer nobody else needs records; a peer that has never been synced will get everything from the images.
	free := m.Role == RoleSecondary || m.Peer == "" || m.Sync == SyncNever
	for _, last := range in.LastOrdinals {
		if last > in.Applied || !free && last > g.acked {
			break
		}
		plan.Release++
	}
	if in.Pressure && plan.Release == 0 && len(in.LastOrdinals) > 0 && in.LastOrdinals[0] <= in.Applied &&
		m.JournalFull == PolicyTrack {
		plan.Fold = 1
	}
	return plan
}
