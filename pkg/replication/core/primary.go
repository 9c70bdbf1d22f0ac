package core

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// welcomed decides what to ship from where.
func (g *Group) welcomed(e Welcomed) Decision {
	m := &g.Meta
	judged := g.judge(e)
	if judged.verdict == writesLost {
		reason := judged.reason + ": a disk lost durable writes or was put back to an earlier state"
		return g.lostWrites(reason, judged.common, e.NewTimeline, e.Now)
	}
	g.refusal = ""
	g.acked, g.answered = e.PeerDurable, true
	g.hear(g.acked)
	m.Divergence, m.PeerInstance = nil, e.Instance
	if e.Yield != nil {
		g.peerYields(e.Yield.ID)
	}
	g.beginSession(e.PeerSession, e.NewSession)
	if judged.verdict == copyAnew {
		m.Sync, m.FullCopy = SyncRunning, judged.reason
		g.link = LinkSyncing
		// MarkAll before the only Persist: after a crash between them everything is marked again.
		g.effects = append(g.effects, MarkAll{}, Persist{})
		return Ship{After: e.Durable, Begin: true}
	}
	g.persist() // the session, at least
	switch {
	case e.PeerDurable+1 < e.Retained:
		return g.beginSync(e.Retained - 1)
	case m.Sync == SyncRunning || e.NeedsSync:
		return g.beginSync(e.PeerDurable)
	}
	g.link = LinkStreaming
	return Ship{After: e.PeerDurable}
}

// lostWrites remembers that this primary's disk was put back, and forks its timeline: what it writes from now on takes
// ordinals that the peer has with other content, and must never look like a continuation of them.
func (g *Group) lostWrites(reason string, common uint64, timeline string, now int64) Decision {
	m := &g.Meta
	g.link = LinkDown
	common = max(common, m.Timelines[len(m.Timelines)-1].ForkOrdinal)
	d := Divergence{
		Relation: relationPeerAhead, CommonOrdinal: common, PeerTimeline: m.Timeline(),
		Text: fmt.Sprintf("%s; to go on with what %s has: %s, then %s; to give that up: %s", reason, m.Peer,
			Command{m.Peer, CommandForce, m.Name}, Command{m.Site, CommandYield, m.Name},
			Command{m.Peer, CommandYield, m.Name}),
	}
	m.Divergence = &d
	if m.Role == RoleDemoted { // nothing is written here
		g.persist()
		return Diverge{}
	}
	g.fork(common, timeline, now)
	g.persist()
	g.rollJournal()
	return Diverge{}
}

// beginSync starts a sync from the change map with the stream at ordinal at.
func (g *Group) beginSync(at uint64) Decision {
	g.link = LinkSyncing
	if g.Meta.Sync != SyncRunning {
		g.Meta.Sync, g.Meta.FullCopy = SyncRunning, ""
		g.persist()
	}
	return Ship{After: at, Begin: true}
}

func (g *Group) syncAcked() {
	g.link = LinkStreaming
	yielded := g.peerYielded()
	if g.Meta.Sync != SyncDone || yielded {
		g.Meta.Sync = SyncDone
		g.persist()
	}
}

// refused remembers why, and where histories disagree, for good.
func (g *Group) refused(e Refused) Decision {
	g.link = LinkDown
	g.refusal = fmt.Sprintf("%s refused: %s", g.Meta.Peer, e.Message)
	if e.Reason != RefuseStale && e.Reason != RefuseDiverged {
		return Close{}
	}
	rel, common := Relate(g.Meta.Timelines, e.Durable, e.PeerTimelines, e.Fork)
	if len(e.PeerTimelines) == 0 {
		rel, common = RelationBothDiverged, e.Fork
	}
	if rel == RelationSame && e.Reason == RefuseDiverged {
		return g.lostWrites(e.Message, common, e.NewTimeline, e.Now)
	}
	d := Divergence{Relation: rel.String(), CommonOrdinal: common, PeerPrimary: e.PeerPrimary, Text: e.Message}
	if n := len(e.PeerTimelines); n > 0 {
		d.PeerTimeline = e.PeerTimelines[n-1].ID
	}
	g.setDivergence(d)
	if e.Reason != RefuseStale {
		return Diverge{}
	}
	// The stream is still open for one DivergentTail.
	fork := common
	if rel == RelationTheyContinue { // past what is here
		fork = e.PeerTimelines[len(g.Meta.Timelines)].ForkOrdinal
	}
	return CountTail{Fork: fork}
}

// setDivergence remembers a divergence unless it is known already, possibly in better words: both sides call each
// other again and again, and each finds it out in its own way.
func (g *Group) setDivergence(d Divergence) {
	old := g.Meta.Divergence
	if old != nil && old.PeerTimeline == d.PeerTimeline && old.CommonOrdinal == d.CommonOrdinal {
		if old.PeerPrimary != d.PeerPrimary {
			next := *old
			next.PeerPrimary = d.PeerPrimary
			g.Meta.Divergence = &next
			g.persist()
		}
		return
	}
	g.Meta.Divergence = &d
	g.persist()
}

func (g *Group) tailCounted(e TailCounted) {
	m := &g.Meta
	if m.Divergence == nil {
		return
	}
	text := fmt.Sprintf("%s was promoted at ordinal %d; %s wrote %s (%s, %s) after it, which %s "+
		"does not have; to keep them as snapshots and follow %s: %s",
		m.Peer, e.Fork, m.Site, words.Count(e.Last-e.Fork, "ordinal"), words.Count(e.Writes, "write"),
		words.Count(e.Bytes, "byte"), m.Peer, m.Peer, Command{m.Site, CommandYield, m.Name})
	if e.Last <= e.Fork {
		text = fmt.Sprintf("%s was promoted at ordinal %d; %s wrote nothing after it; to follow %s: %s",
			m.Peer, e.Fork, m.Site,
			m.Peer, Command{m.Site, CommandYield, m.Name})
	}
	if m.Divergence.Text != text {
		d := *m.Divergence
		d.Text = text
		m.Divergence = &d
		g.persist()
	}
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

// TrimPlan is how many of the oldest segments go: first Release because they are not needed, then Fold after their
// records were marked in the change map.
type TrimPlan struct{ Release, Fold int }

// folded remembers that the peer needs what the change map says.
func (g *Group) folded() {
	if g.Meta.Sync == SyncDone {
		g.Meta.Sync, g.Meta.FullCopy = SyncRunning, ""
		g.persist()
	}
}

// PlanTrim decides what leaves the journal. A segment goes when it is applied here and acknowledged there. Under
// pressure, with the track policy, one more goes by being folded: one at a time, since each frees what is needed now.
func (g *Group) PlanTrim(in TrimInput) TrimPlan {
	m := &g.Meta
	var plan TrimPlan
	// Without a peer no other site needs records; a peer that has never been synced will get everything from the
	// images.
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
