package core

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// YieldStage is how far a site is that gives way to its peer after a fork.
//
//	(none) --Yield--> keeping --YieldKept--> ready --SessionReceived--> rewinding --Rewound--> undoing --SyncEnd--> done
//	   ^                 |                     |
//	   +---- Promote ----+---------------------+        done --Promote--> (none)
//
// Up to ready the site is demoted, and all that it wrote is as it was: a promotion takes the yield back. The peer has
// to call as a primary before anything is undone. So two sites that both yield wait for each other, and lose nothing.
type YieldStage string

const (
	// YieldKeeping: the site takes no writes, and keeps those past the fork as snapshots.
	YieldKeeping YieldStage = "keeping"
	// YieldReady: what it wrote past the fork is kept, and it is known what has to be copied to undo that.
	YieldReady YieldStage = "ready"
	// YieldRewinding: the site follows the peer; its journal still is the old one, or is empty already.
	YieldRewinding YieldStage = "rewinding"
	// YieldUndoing: the journal begins at the fork; the images have the writes past it until the sync ends.
	YieldUndoing YieldStage = "undoing"
	// YieldDone: the copy is the peer's prefix. What remains is the report.
	YieldDone YieldStage = "done"
)

var yieldStages = []YieldStage{YieldKeeping, YieldReady, YieldRewinding, YieldUndoing, YieldDone}

// Yield is what a site gives up that wrote past a fork, and how far it is with that.
type Yield struct {
	// ID tells this yield from others of the group: the peer remembers which one it has dealt with.
	ID    string     `json:"id"`
	Stage YieldStage `json:"stage"`
	// Timeline is the one that the writes past the fork are on, Fork the last common ordinal, Head the last one here.
	Timeline string `json:"timeline"`
	Fork     uint64 `json:"fork"`
	Head     uint64 `json:"head"`
	// Tail is the record at Fork; nil if it is not known.
	Tail *Tail `json:"tail,omitempty"`
	// All: not only the writes past the fork are copied, but everything; Reason says why.
	All    bool   `json:"all,omitempty"`
	Reason string `json:"reason,omitempty"`
	// TailBytes is what the ranges cover that the writes past the fork touched; 0 with All.
	TailBytes uint64 `json:"tailBytes,omitempty"`
	// CopiedBytes came from the peer to undo the writes and to bring the peer's, in the stages undoing and done. A
	// kill of the process in the stage undoing makes it too small.
	CopiedBytes uint64 `json:"copiedBytes,omitempty"`
}

// PeerYield is the last yield of the peer that this primary has heard of.
type PeerYield struct {
	ID string `json:"id"`
	// Done: the peer's copy was whole after it.
	Done bool `json:"done,omitempty"`
}

// YieldRequest asks the site to give way. Head equals Durable: the caller has synced the journal.
type YieldRequest struct {
	ID       string
	Durable  uint64
	Tail     *Tail    // the record at Durable; nil if it is not known
	Attached []string // volumes that are in use here
}

// YieldKept: the writes past the fork are kept, durably, and so are the ranges that they touched.
type YieldKept struct {
	Tail      *Tail // the record at Yield.Fork; nil if it is not known
	All       bool
	Reason    string
	TailBytes uint64
}

// Rewound: the journal is empty and begins behind Yield.Fork, durably.
type Rewound struct{}

// Received: so many bytes of content came from the primary since the last one.
type Received struct{ Bytes uint64 }

// RangesLost: the list of ranges that the site wrote past the fork cannot be read.
type RangesLost struct{ Reason string }

func (YieldRequest) event() {}
func (RangesLost) event()   {}
func (YieldKept) event()    {}
func (Rewound) event()      {}
func (Received) event()     {}

// Yielding is the yield that is not done; nil without one.
func (m *Meta) Yielding() *Yield {
	if m.Yield == nil || m.Yield.Stage == YieldDone {
		return nil
	}
	return m.Yield
}

// Calls reports whether this site opens a stream to its peer. One that gives way does so only to ask for a call: see
// Hello.yielding in link.proto.
func (m *Meta) Calls() bool {
	y := m.Yielding()
	return m.Role.Ships() && m.Trial == nil && (y == nil || y.Stage == YieldReady)
}

// yield begins to give way: the site takes no more writes. One that wrote nothing past the fork is demoted, and follows
// at the peer's next call.
func (g *Group) yield(e YieldRequest) error {
	m, d := &g.Meta, g.Meta.Divergence
	if m.Yielding() != nil {
		return nil // repeated
	}
	switch {
	case d == nil && m.Yield != nil && m.Role == RoleSecondary:
		return nil // repeated after it was done
	case d == nil && m.Role == RoleSecondary:
		return refuseYield(m, "it is secondary at %s and follows %s, so there is nothing to yield", m.Site, m.Peer)
	case d == nil && m.Shard.Group != "":
		return refuseYield(m, "%s is not known to have another history, so there is nothing to yield at %s; to move the "+
			"group to %[1]s without loss: %[3]s. If %[1]s was promoted without shard %[4]d, it never gives way: save what "+
			"its volumes have, delete it (%[5]s), give it up at another shard (slipctl group drop-shard NAME %[4]d --lost), "+
			"and yield there", m.Peer, m.Site, Command{m.Peer, CommandRelocate, m.Name}, m.Shard.ID,
			Command{m.Site, CommandDelete, m.Name})
	case d == nil:
		return refuseYield(m, "%s is not known to have another history, so there is nothing to yield at %s; to move the "+
			"group to %s without loss: %s", m.Peer, m.Site, m.Peer, Command{m.Site, CommandRelocate, m.Name})
	case !d.PeerPrimary:
		return refuseYield(m, "%s is not known to be primary on the other branch; look there with %s, and promote the "+
			"group there first (%s), or yield there (%s)", m.Peer, Command{m.Peer, CommandStatus, m.Name},
			Command{m.Peer, CommandForce, m.Name}, Command{m.Peer, CommandYield, m.Name})
	case len(e.Attached) > 0:
		return refuseYield(m, "%s", attachedText(m, e.Attached, CommandYield))
	}
	if m.Role == RolePrimary {
		m.become(RoleDemoted)
		m.FinalOrdinal, m.Tail = e.Durable, e.Tail
	}
	m.Yield = nil // of an earlier one
	// A site that began a timeline of its own gives that up, also if nothing was written on it.
	if e.Durable > d.CommonOrdinal || d.Relation != RelationTheyContinue.String() {
		m.Yield = &Yield{ID: e.ID, Stage: YieldKeeping, Timeline: m.Timeline(), Fork: d.CommonOrdinal, Head: e.Durable}
	}
	g.persist()
	return nil
}

func refuseYield(m *Meta, format string, args ...any) error {
	return fmt.Errorf("%w: group %s: %s", ErrPrecondition, m.Name, fmt.Sprintf(format, args...))
}

func (g *Group) yieldKept(e YieldKept) {
	y := g.Meta.Yielding()
	if y == nil || y.Stage != YieldKeeping {
		return
	}
	next := *y
	next.Stage, next.Tail, next.All, next.Reason, next.TailBytes = YieldReady, e.Tail, e.All, e.Reason, e.TailBytes
	if why := g.mustCopyAll(); why != "" && !e.All {
		next.All, next.Reason, next.TailBytes = true, why, 0
	}
	g.Meta.Yield = &next
	g.persist()
}

func (g *Group) rangesLost(e RangesLost) {
	if y := g.Meta.Yielding(); y != nil && !y.All {
		next := *y
		next.All, next.Reason, next.TailBytes = true, e.Reason, 0
		g.Meta.Yield = &next
		g.persist()
	}
}

// mustCopyAll says why what two sites differ in is more than what each wrote past the fork; "" if it is not.
//
// It is just that where one of them forked the timeline that the other is still on, and what is here past the fork was
// written here: records then say all.
func (g *Group) mustCopyAll() string {
	m := &g.Meta
	switch {
	case m.Role == RoleSecondary:
		return fmt.Sprintf("what %s holds past the fork came from %s, in part as extents without ordinals", m.Site, m.Peer)
	case m.Sync == SyncNever:
		return fmt.Sprintf("%s never had a whole copy of what %s holds", m.Peer, m.Site)
	case m.Divergence == nil:
		return ""
	}
	switch m.Divergence.Relation {
	case RelationIDiverged.String(), RelationTheyDiverged.String(), RelationIContinue.String(),
		RelationTheyContinue.String(): // when it was found out; what was written here since is on the timeline from before
		return ""
	}
	return "both sites began a timeline of their own, so the last common ordinal is not certain to be the same write"
}

// helloYielding answers the call of a primary to which this site gives way, while it is demoted.
func (g *Group) helloYielding(e HelloReceived, rel Relation, common uint64) Decision {
	m, y := &g.Meta, g.Meta.Yield
	switch {
	case y.Stage == YieldKeeping:
		return g.refuse(RefuseNotSecondary, common, "group %s at %s keeps its writes past ordinal %d before it follows; if "+
			"that was interrupted: %s", m.Name, m.Site, y.Fork, Command{m.Site, CommandYield, m.Name})
	case y.Stage == YieldRewinding:
		return g.refuse(RefuseNotSecondary, common, "group %s at %s is about to follow", m.Name, m.Site)
	case rel == RelationSame || rel == RelationTheyContinue:
		return g.refuse(RefuseNotSecondary, common, "group %s gives way at %s to a timeline that forked at ordinal %d, and "+
			"%s calls with another one", m.Name, m.Site, y.Fork, m.Peer)
	case e.Attached > 0:
		return g.refuse(RefuseNotSecondary, common, "group %s still has %s at %s",
			m.Name, words.Count(e.Attached, "attached volume"), m.Site)
	}
	w := &YieldOffer{ID: y.ID, All: y.All, Reason: y.Reason}
	fork := min(common, y.Fork, e.PeerDurable)
	if fork != y.Fork && !w.All { // the ranges are of other writes
		w.All, w.Reason = true, fmt.Sprintf("the history of %s is another one than when %s kept its writes past the fork",
			m.Peer, m.Site)
	}
	g.following = &following{term: e.Term, timelines: slices.Clone(e.Timelines), yield: w, fork: fork}
	g.link = LinkGreeting
	return SendWelcome{Durable: fork, NeedsSync: true, Instance: m.Instance, Yield: w}
}

// YieldOffer is the part of a Welcome by which a site gives way.
type YieldOffer struct {
	ID string
	// All: the site has to be copied as a whole. Otherwise it names the ranges that it wrote past the fork.
	All bool
	// Reason says why, with All.
	Reason string
}

// beginUndoing makes this site a follower of the caller that it gives way to, which says why it copies everything, if
// it does. The caller of Step rewinds the journal next.
func (g *Group) beginUndoing(f *following, fullCopy string) {
	m := &g.Meta
	next := *m.Yield
	next.Stage, next.Fork, next.All = YieldRewinding, f.fork, f.yield.All || fullCopy != ""
	if next.All && next.Reason == "" {
		next.Reason = cmp.Or(fullCopy, f.yield.Reason)
	}
	m.Yield, m.Tail = &next, nil
	g.acked, g.answered = 0, false // of ordinals that are given up
	if next.Tail != nil && next.Tail.Ordinal == f.fork {
		m.Tail = next.Tail
	}
}

func (g *Group) rewound() {
	if y := g.Meta.Yielding(); y != nil && y.Stage == YieldRewinding {
		next := *y
		next.Stage = YieldUndoing
		g.Meta.Yield = &next
		g.Meta.forgetBookmarks(y.Fork)
		g.persist()
	}
}

func (g *Group) received(e Received) {
	if y := g.Meta.Yielding(); y != nil && y.Stage == YieldUndoing && e.Bytes > 0 {
		next := *y
		next.CopiedBytes += e.Bytes
		g.Meta.Yield = &next
		g.persist()
	}
}

// undone notes that the copy is whole.
func (g *Group) undone() {
	if y := g.Meta.Yielding(); y != nil && y.Stage == YieldUndoing {
		next := *y
		next.Stage = YieldDone
		g.Meta.Yield = &next
		g.persist()
	}
}

// oldYield reports whether the answer to Hello speaks of a yield that this site has dealt with: the disk of the peer
// was put back to before that.
func (g *Group) oldYield(e Welcomed) bool {
	m := &g.Meta
	return m.PeerYield != nil && m.PeerYield.ID == e.Yield.ID && m.PeerYield.Done ||
		e.PeerSession.Number < m.PeerSession.Number
}

func (g *Group) peerYields(id string) {
	if m := &g.Meta; m.PeerYield == nil || m.PeerYield.ID != id {
		m.PeerYield = &PeerYield{ID: id}
	}
}

func (g *Group) peerYielded() (changed bool) {
	m := &g.Meta
	if m.PeerYield == nil || m.PeerYield.Done {
		return false
	}
	m.PeerYield = &PeerYield{ID: m.PeerYield.ID, Done: true}
	return true
}

func (m *Meta) validateYield() error {
	y := m.Yield
	switch {
	case y == nil:
		return nil
	case !slices.Contains(yieldStages, y.Stage):
		return fmt.Errorf("unknown stage %q of yielding", y.Stage)
	case y.Fork > y.Head:
		return fmt.Errorf("yields ordinals %d to %d", y.Fork+1, y.Head)
	}
	return nil
}

// yieldText is what the status says of a site that gives way and does not follow yet.
func (g *Group) yieldText() string {
	m, y := &g.Meta, g.Meta.Yield
	back := Command{m.Site, CommandForce, m.Name}
	if y.Head == y.Fork && y.Stage == YieldReady {
		return fmt.Sprintf("gives up its timeline, on which nothing was written; waits for the call of %s, which has to be "+
			"primary (%s); to take it back: %s", m.Peer, Command{m.Peer, CommandStatus, m.Name}, back)
	}
	if y.Stage == YieldKeeping {
		return fmt.Sprintf("keeps ordinals %d to %d as snapshots before it follows %s; if that was interrupted: %s; to "+
			"take it back: %s", y.Fork+1, y.Head, m.Peer, Command{m.Site, CommandYield, m.Name}, back)
	}
	return fmt.Sprintf("ordinals %d to %d are kept as snapshots; waits for the call of %s, which has to be primary "+
		"(%s); to take it back: %s", y.Fork+1, y.Head, m.Peer, Command{m.Peer, CommandStatus, m.Name}, back)
}

// Bound returns the members whose index stays bound to their volume in a new list: all of them. But where this site
// gives way, its journal has no record of a member that joined past the fork, and the peer has given the index to
// another volume.
func (m *Meta) Bound(next []Member) []Member {
	if y := m.Yielding(); y == nil || y.Stage != YieldUndoing {
		return m.Members
	}
	return slices.DeleteFunc(slices.Clone(m.Members), func(old Member) bool {
		return slices.ContainsFunc(next, func(n Member) bool { return n.Index == old.Index && n.VolumeID != old.VolumeID })
	})
}
