package epoch

import (
	"fmt"
	"slices"
)

// CopyState is what the copy of a shard does.
type CopyState string

const (
	// CopyFollowing: marks arrive, and the copy applies up to the epoch that it shows.
	CopyFollowing CopyState = "following"
	// CopySettling: a resync is to begin. No mark counts any more that the collector has not found complete.
	CopySettling CopyState = "settling"
	// CopySyncing: a resync runs. The copy opens at the epoch that it shows, as it was before.
	CopySyncing CopyState = "syncing"
	// CopyDecided: the epoch of a promotion is durable here. Nothing is received any more.
	CopyDecided CopyState = "decided"
)

// Copy is the state machine of a shard's copy at the secondary site.
//
//	            SyncWanted                  Settled: BeginSync
//	following ---------------> settling -------------------------> syncing
//	   ^  ^   (at once if no mark is past the shown epoch)           |  |
//	   |  +------------------------ SyncEnded -----------------------+  |
//	   +--- SyncCancelled                                               |
//	any state -- Decide --> decided                                     |
//	   (SyncWanted while syncing: it begins again) <--------------------+
//
// Invariants:
//
//	shown only grows, and only to epochs whose marks are durable on all their shards
//	the copy has applied nothing behind the boundary of shown, or can go back to it
//	floor <= shown, or nothing was granted since the start; nothing before floor is ever asked for
//	a decision never changes, and is never before floor
type Copy struct {
	id       ShardID
	life     Life
	promised Attempt
	seq      uint64
	state    CopyState
	// shown is the epoch that was granted last in this life, or the base. floor is the first that the copy can still be
	// cut at.
	shown, floor ID
	// marks are usable ones of floor and later epochs.
	marks []Mark
	// wholeFrom: marks with an earlier boundary are of the middle of a resync.
	wholeFrom uint64
	// wantedAt is seq when the resync was wanted.
	wantedAt uint64
	decision *Decision
}

// CopyStart is what is durable of a copy.
type CopyStart struct {
	// Base is what the copy goes back to if it is promoted before it shows a later epoch: from BeginSync to the next
	// Show.
	Base *Mark
	// Marks are those in the journal that the copy is whole at, ascending: from the end of the last resync on, and from
	// the first one on whose boundary is not before Applied.
	Marks []Mark
	// Applied is the last ordinal that the images show. It is 0 before the first Show, whatever a first sync brought.
	Applied uint64
	// Syncing: a resync, or the first sync, has begun and not ended.
	Syncing bool
	// WholeFrom is the ordinal at which the last one ended.
	WholeFrom uint64
	Decision  *Decision
}

// NewCopy returns the copy of a process that starts. life was never used before.
//
// Nothing is applied past an epoch that was granted. So the epoch that was shown before the start is the first one that
// has all of what is applied, or a later one; the collector knows which.
func NewCopy(id ShardID, life Life, start CopyStart) *Copy {
	c := &Copy{id: id, life: life, state: CopyFollowing, wholeFrom: start.WholeFrom, decision: start.Decision.Of(id)}
	if start.Base != nil {
		c.marks = []Mark{*start.Base}
		c.shown, c.floor = start.Base.Epoch, start.Base.Epoch
	}
	for _, m := range start.Marks {
		switch {
		case start.Base != nil && !c.floor.Before(m.Epoch), m.Boundary < start.WholeFrom:
		case start.Base == nil && m.Boundary < start.Applied:
		default:
			c.marks = append(c.marks, m)
		}
	}
	if start.Base == nil && start.Applied > 0 && len(c.marks) > 0 {
		c.floor = c.marks[0].Epoch
	}
	switch {
	case c.decision != nil:
		c.state = CopyDecided
		if m, ok := c.mark(c.decision.Epoch); ok {
			c.marks, c.shown, c.floor = []Mark{m}, m.Epoch, m.Epoch
		}
	case start.Syncing:
		c.state = CopySyncing
	}
	return c
}

// State says what the copy does.
func (c *Copy) State() CopyState { return c.state }

// Shown is the mark of the epoch that the copy shows: up to its boundary it may apply, and there it is cut and opened.
// ok is false before the first, and after a start until the collector has said again what is complete.
func (c *Copy) Shown() (m Mark, ok bool) { return c.mark(c.shown) }

// Newest is the last usable mark that is durable here.
func (c *Copy) Newest() (m Mark, ok bool) {
	if len(c.marks) == 0 {
		return Mark{}, false
	}
	return c.marks[len(c.marks)-1], true
}

// Decision is the one of the promotion; nil before.
func (c *Copy) Decision() *Decision { return c.decision }

// CopyEvent is something that happened at a copy.
type CopyEvent interface{ copyEvent() }

// GatherReceived, GrantReceived, DecideReceived and SettledReceived are messages of a collector.
type (
	GatherReceived  struct{ Gather Gather }
	GrantReceived   struct{ Grant Grant }
	DecideReceived  struct{ Decide Decide }
	SettledReceived struct{ Settled Settled }
)

// MarkDurable: a mark of the primary is on stable storage here, and everything before it.
type MarkDurable struct{ Mark Mark }

// SyncWanted: the primary cannot go on with records; the copy is to begin a resync, and waits for BeginSync.
type SyncWanted struct{}

// SyncCancelled: a resync that was wanted is not needed any more, and has not begun.
type SyncCancelled struct{}

// SyncEnded: the end of the resync is durable; the copy is whole from this ordinal on.
type SyncEnded struct{ Ordinal uint64 }

func (GatherReceived) copyEvent()  {}
func (GrantReceived) copyEvent()   {}
func (DecideReceived) copyEvent()  {}
func (SettledReceived) copyEvent() {}
func (MarkDurable) copyEvent()     {}
func (SyncWanted) copyEvent()      {}
func (SyncCancelled) copyEvent()   {}
func (SyncEnded) copyEvent()       {}

// Show: the copy may apply up to the mark's boundary. What it was before a resync is not needed any more once it has.
type Show struct{ Mark Mark }

// BeginSync: the resync may begin. The copy has to be openable at the base until it shows a later epoch; ok is false if
// it never showed one. Marks past the base are void, and have to be so after a restart too.
type BeginSync struct {
	Base Mark
	OK   bool
}

// PersistDecision has to be durable before the next effect.
type PersistDecision struct{ Decision Decision }

// Promote makes the copy what it was at the mark's boundary.
type Promote struct{ Mark Mark }

func (Show) effect()            {}
func (BeginSync) effect()       {}
func (PersistDecision) effect() {}
func (Promote) effect()         {}

// Step takes an event and returns what to do. Effects: Reply, Show, BeginSync, PersistDecision, Promote.
func (c *Copy) Step(e CopyEvent) []Effect {
	switch e := e.(type) {
	case GatherReceived:
		if c.follows(e.Gather.Attempt) < 0 {
			return []Effect{Reply{Outdated{c.promised}}}
		}
		c.promised = e.Gather.Attempt
		return []Effect{Reply{c.report(e.Gather.After)}}
	case GrantReceived:
		if g := e.Grant; c.follows(g.Attempt) == 0 && g.Life == c.life {
			return c.show(g.Epoch)
		}
	case DecideReceived:
		if d := e.Decide; c.follows(d.Attempt) == 0 && d.Life == c.life {
			return c.decide(d)
		}
	case SettledReceived:
		if s := e.Settled; c.follows(s.Attempt) == 0 && s.Life == c.life {
			return c.settled(s)
		}
	case MarkDurable:
		c.durable(e.Mark)
	case SyncWanted:
		return c.wanted()
	case SyncCancelled:
		if c.state == CopySettling {
			c.state = CopyFollowing
		}
	case SyncEnded:
		if c.state == CopySyncing {
			c.state, c.wholeFrom = CopyFollowing, e.Ordinal
		}
	default:
		panic(fmt.Sprintf("epoch: unknown event %T", e)) // a programming error: the set of events is closed
	}
	return nil
}

// follows compares an attempt with the one that the copy promised to follow.
func (c *Copy) follows(a Attempt) int { return a.Compare(c.promised) }

func (c *Copy) mark(epoch ID) (Mark, bool) {
	i, ok := FindMark(c.marks, epoch)
	if !ok {
		return Mark{}, false
	}
	return c.marks[i], true
}

// MaxReportMarks bounds the marks of a report: those of a minute. A copy has more if another one is away for longer.
const MaxReportMarks = 256

// reportMarks is MaxReportMarks. Tests make it smaller.
var reportMarks = MaxReportMarks

// report is what the copy has, with marks past an epoch only.
func (c *Copy) report(after ID) Report {
	c.seq++
	marks := past(c.marks, after)
	n := min(len(marks), reportMarks)
	return Report{Attempt: c.promised, Life: c.life, Seq: c.seq, Shown: c.shown, Floor: c.floor,
		Settling: c.state == CopySettling, Marks: slices.Clone(marks[:n]), After: after, More: n < len(marks),
		Decision: c.decision}
}

// past are the marks of later epochs than one.
func past(marks []Mark, after ID) []Mark {
	i, known := FindMark(marks, after)
	if known {
		i++
	}
	return marks[i:]
}

func (c *Copy) durable(m Mark) {
	last, ok := c.Newest()
	switch {
	case c.state != CopyFollowing, m.Boundary < c.wholeFrom:
	case ok && !last.Epoch.Before(m.Epoch): // known
	default:
		c.marks = append(c.marks, m)
	}
}

func (c *Copy) show(epoch ID) []Effect {
	m, ok := c.mark(epoch)
	if !ok || c.decision != nil || !c.shown.Before(epoch) {
		return nil
	}
	c.shown, c.floor = epoch, epoch
	c.marks = slices.DeleteFunc(c.marks, func(m Mark) bool { return m.Epoch.Before(epoch) })
	return []Effect{Show{m}}
}

// wanted: a mark that was reported may be part of an epoch that another copy shows by now. So what this one goes back
// to has to be agreed first.
func (c *Copy) wanted() []Effect {
	switch c.state {
	case CopySyncing:
		return c.beginSync()
	case CopyFollowing:
		if last, ok := c.Newest(); !ok || last.Epoch == c.shown {
			return c.beginSync()
		}
		c.state, c.wantedAt = CopySettling, c.seq
	}
	return nil
}

func (c *Copy) beginSync() []Effect {
	c.state = CopySyncing
	base, ok := c.mark(c.shown)
	return []Effect{BeginSync{Base: base, OK: ok}}
}

func (c *Copy) settled(s Settled) []Effect {
	if c.state != CopySettling || s.Seq <= c.wantedAt || s.Epoch.Before(c.floor) || c.leftBehind(s.Epoch) {
		return nil
	}
	effects := c.show(s.Epoch)
	c.marks = slices.DeleteFunc(c.marks, func(m Mark) bool { return s.Epoch.Before(m.Epoch) })
	return append(effects, c.beginSync()...)
}

// leftBehind reports whether the group removed this shard before a complete epoch: the copy has marks past the shown
// epoch and before that one, and not its own mark of it. No later epoch has the shard, so a resync is of no use to it.
// It would only take away marks that count again if the copies of the later epoch are lost and given up.
func (c *Copy) leftBehind(complete ID) bool {
	marks := past(c.marks, c.shown)
	_, marked := FindMark(c.marks, complete)
	return !marked && len(marks) > 0 && marks[0].Epoch.Before(complete)
}

// decide takes the decision of a promotion, once, and permanently.
func (c *Copy) decide(d Decide) []Effect {
	answer := Reply{Decided{Attempt: d.Attempt, Life: c.life, Epoch: d.Decision.Epoch}}
	if c.decision != nil {
		if c.decision.Epoch != d.Decision.Epoch {
			return []Effect{Reply{c.report(ID{})}} // no collector does that
		}
		return []Effect{answer}
	}
	// A copy that is no part of the promoted group is not told. It has nothing to decide, and stays what it is.
	m, ok := c.mark(d.Decision.Epoch)
	if !d.Decision.Has(c.id) || !ok || d.Decision.Epoch.Before(c.floor) {
		return []Effect{Reply{c.report(ID{})}} // no collector does that
	}
	c.state, c.decision = CopyDecided, &d.Decision
	c.shown, c.floor, c.marks = m.Epoch, m.Epoch, []Mark{m}
	return []Effect{PersistDecision{d.Decision}, Promote{Mark: m}, answer}
}
