package core

import (
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
)

// CaughtUp is a proof of how current a copy is, on the clocks of the site that holds it: every write that its primary
// had before At has an ordinal up to Ordinal, and is here. With an unknown At it proves nothing.
type CaughtUp struct {
	At      clocks.Instant `json:"at"`
	Ordinal uint64         `json:"ordinal"`
}

// maxMarks bounds what a secondary remembers of heads that it has not reached. Every second one goes when there are
// more, which makes the proof older, never wrong.
const maxMarks = 1024

// currency is how a secondary comes to its CaughtUp. A heartbeat gives a mark: the primary's head, and an instant here
// before which the primary had not read it. The mark is proof once everything up to the head is here.
type currency struct {
	proven CaughtUp
	marks  []CaughtUp // ascending in both fields
}

func (c *currency) mark(head uint64, at clocks.Instant) {
	if !at.Known() {
		return
	}
	// A head that is not above an earlier one says more about a later instant. It is below only where the primary lost
	// what was not durable there, and then that is lost to everybody.
	for n := len(c.marks); n > 0 && c.marks[n-1].Ordinal >= head; n-- {
		c.marks = c.marks[:n-1]
	}
	c.marks = append(c.marks, CaughtUp{At: at, Ordinal: head})
	if len(c.marks) > maxMarks {
		for i := range len(c.marks) / 2 {
			c.marks[i] = c.marks[2*i+1]
		}
		c.marks = c.marks[:len(c.marks)/2]
	}
}

// reach moves the proof on to what is durable here.
func (c *currency) reach(durable uint64) {
	n := 0
	for n < len(c.marks) && c.marks[n].Ordinal <= durable {
		n++
	}
	if n > 0 {
		c.proven = c.marks[n-1]
		c.marks = append(c.marks[:0], c.marks[n:]...)
	}
}

// CaughtUp returns what is proven of a secondary that has everything up to durable on stable storage. In the middle of
// a sync it is what was proven before: the copy lacks nothing older, although it is not one instant.
func (g *Group) CaughtUp(durable uint64) CaughtUp {
	if g.Meta.Role != RoleSecondary {
		return CaughtUp{}
	}
	if g.Meta.Copy == CopyWhole {
		g.current.reach(durable)
	}
	if g.current.proven.Ordinal > durable {
		return CaughtUp{} // what it was proven of is gone
	}
	return g.current.proven
}

// Recollection is what a site remembers of its peer across a restart of its process. It is about one role, peer and
// timeline; what was remembered about others is of no use.
type Recollection struct {
	// Role is RolePrimary or RoleSecondary.
	Role     Role   `json:"role"`
	Peer     string `json:"peer"`
	Timeline string `json:"timeline"`
	// CaughtUp is a secondary's proof. At a primary every write that the peer lacks is younger than its At.
	CaughtUp CaughtUp `json:"caughtUp"`
	// Told is the highest durable ordinal that the other site was heard to have; nil if it was not heard.
	Told *uint64 `json:"told,omitempty"`
}

// Recall takes what was remembered, if it is about what the group is. It is called once, before the first event.
func (g *Group) Recall(r Recollection) (taken bool) {
	m := &g.Meta
	if r.Role != m.Role.Side() || r.Peer != m.Peer || r.Timeline != m.Timeline() {
		return false
	}
	g.told = r.Told
	if m.Role == RoleSecondary {
		g.current.proven = r.CaughtUp
	}
	return true
}

// Remember is the other way round. A primary's CaughtUp is the caller's to fill in.
func (g *Group) Remember(durable uint64) Recollection {
	m := &g.Meta
	return Recollection{Role: m.Role.Side(), Peer: m.Peer, Timeline: m.Timeline(), CaughtUp: g.CaughtUp(durable),
		Told: g.told}
}

// Told is the highest durable ordinal that the other site was heard to have, also by an earlier process of this site.
// It is what the peer has at least. ok is false where it was not heard.
func (g *Group) Told() (ordinal uint64, ok bool) {
	if g.told == nil {
		return 0, false
	}
	return *g.told, true
}

func (g *Group) hear(durable uint64) { g.told = &durable }

// boundLoss says what is known without the old primary: what it had told at least, and at most what it wrote since the
// last instant of which it is proven that everything written before is here. Where nothing is proven, nothing is said.
func (g *Group) boundLoss(e Promote) *Loss {
	l := &Loss{RecoveredOrdinal: e.Durable, Bounded: true}
	told := fmt.Sprintf("how far %s had written is not known", g.Meta.Peer)
	if ordinal, ok := g.Told(); ok {
		lost := ordinal - min(ordinal, e.Durable)
		l.LostOrdinals = &lost
		told = fmt.Sprintf("%s was last heard to be at ordinal %d, so at least %s %s lost", g.Meta.Peer, ordinal,
			words.Count(lost, "ordinal"), words.Choose(lost, "is", "are"))
		if lost == 0 {
			told = fmt.Sprintf("%s was last heard to have nothing that is not here", g.Meta.Peer)
		}
	}
	proven := g.CaughtUp(e.Durable)
	elapsed, ok := e.Now.SinceAtMost(proven.At)
	switch {
	case ok:
		seconds := elapsed.Seconds()
		l.LostSeconds = &seconds
		l.Text = fmt.Sprintf("%s; at most what it wrote in the last %.3f s before the promotion, by the clocks of %s", told,
			seconds, g.Meta.Site)
	case proven.At.Known():
		l.Text = fmt.Sprintf("%s; everything that it wrote before %s by the clock of %s is here, but the node was restarted "+
			"since, so how long ago that was is not proven",
			told, time.Unix(0, proven.At.WallNanos).UTC().Format(time.RFC3339), g.Meta.Site)
	default:
		l.Text = fmt.Sprintf("%s; when %s last had everything is not known either", told, g.Meta.Site)
	}
	return l
}
