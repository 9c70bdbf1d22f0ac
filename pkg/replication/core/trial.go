package core

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// A trial is a promotion to a recovery point that is not decided yet:
//
//	secondary, whole --Promote with a Point--> rolling back to the point --RolledBack--> primary, with a Trial
//	primary, with a Trial --TrialCommitted--> primary
//	primary, with a Trial --TakeTrialBack--> rolling back to what was held --RolledBack--> secondary, whole
//
// While a trial runs, the site takes writes on a timeline of its own that no other site has heard of: it does not call
// its peer, and turns its old primary away with a message. So taking it back leaves nothing that another site could
// know. The caller preserves what the site held (Trial.Held), until the trial is decided.

// Trial is a promotion to a recovery point. One is replaced, never changed.
type Trial struct {
	// Ordinal is the last one that the point shows, UnixNanos when it was written, by the clock of the old primary; 0:
	// not known. Since is when the trial began, by this site's clock.
	Ordinal        uint64 `json:"ordinal"`
	UnixNanos      int64  `json:"unixNanos,omitempty"`
	SinceUnixNanos int64  `json:"sinceUnixNanos"`
	// Undone counts the writes that the site held past the point.
	Undone Undone `json:"undone,omitzero"`
	// Held is what the site held; nil if its images are lost, and the trial can only be committed.
	Held *Held `json:"held,omitempty"`
}

// Undone counts writes past a point, as a divergent tail is counted.
type Undone struct {
	Writes         uint64 `json:"writes,omitempty"`
	Bytes          uint64 `json:"bytes,omitempty"`
	FirstUnixNanos int64  `json:"firstUnixNanos,omitempty"`
	LastUnixNanos  int64  `json:"lastUnixNanos,omitempty"`
	Partial        bool   `json:"partial,omitempty"`
}

// Held is a secondary as it was before a trial: its copy, and what group.json had besides.
type Held struct {
	Base
	Term         uint64      `json:"term,omitempty"`
	Sync         SyncState   `json:"sync"`
	PeerInstance string      `json:"peerInstance,omitempty"`
	Loss         *Loss       `json:"loss,omitempty"`
	Divergence   *Divergence `json:"divergence,omitempty"`
	Yield        *Yield      `json:"yield,omitempty"`
	Bookmarks    []Bookmark  `json:"bookmarks,omitempty"`
}

// AtPoint is a promotion to a recovery point, for Promote. The caller has preserved the images of both bases.
type AtPoint struct {
	// Point is the copy as it was at the point, Held as it is.
	Point, Held *Base
	UnixNanos   int64 // of the point; 0: not known
	Undone      Undone
}

// TrialCommitted: a person decided for the point. What the site held past it is kept as a tail, or was given up.
type TrialCommitted struct{}

// TakeTrialBack: a person decided for what the site held.
type TakeTrialBack struct {
	Attached []string // volumes that are in use here
	Now      int64    // wall clock, nanoseconds
}

func (TrialCommitted) event() {}
func (TakeTrialBack) event()  {}

// promoteAt decides a promotion to a point.
func (g *Group) promoteAt(e Promote) error {
	m, at := &g.Meta, e.Point
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: group %s: %s", ErrPrecondition, m.Name, fmt.Sprintf(format, args...))
	}
	switch {
	case m.Trial != nil:
		return g.undecided()
	case m.Role != RoleSecondary:
		return refuse("it is %s at %s, and a point is opened at a secondary; to look at a point here, open a view "+
			"(slipctl view create %s --at POINT)", m.Role, m.Site, m.Name)
	case m.Epochs != nil:
		return refuse("it is on several nodes, whose points are those of its epochs: a point cannot be opened; open what "+
			"has arrived: %s", Command{m.Site, CommandForce, m.Name})
	case m.Copy == CopyRollingBack:
		return refuse("it is being promoted at %s, at ordinal %d", m.Site, m.Base.Ordinal)
	case m.Copy != CopyWhole:
		return refuse("it is in the middle of a sync at %s, which has no points; wait until it ends (%s)", m.Site,
			Command{m.Site, CommandStatus, m.Name})
	}
	held := &Held{Base: *at.Held, Term: m.Term, Sync: m.Sync, PeerInstance: m.PeerInstance, Loss: m.Loss,
		Divergence: m.Divergence, Yield: m.Yield, Bookmarks: slices.Clone(m.Bookmarks)}
	m.Trial = &Trial{Ordinal: at.Point.Ordinal, UnixNanos: at.UnixNanos, SinceUnixNanos: e.Now.WallNanos,
		Undone: at.Undone, Held: held}
	point := *at.Point
	point.RollBack = &RollBack{Timeline: e.NewTimeline, UnixNanos: e.Now.WallNanos}
	m.Loss = g.pointLoss(at)
	m.Copy, m.Base = CopyRollingBack, &point
	g.following = nil
	g.persist()
	return nil
}

// pointLoss says what a promotion to a point gives up: what had arrived past it is counted, what had not is bounded by
// what the peer was last heard to have.
func (g *Group) pointLoss(at *AtPoint) *Loss {
	last := at.Held.Ordinal
	told, ok := g.Told()
	last = max(last, told)
	lost := last - at.Point.Ordinal
	l := &Loss{Bounded: true, RecoveredOrdinal: at.Point.Ordinal, LostOrdinals: &lost}
	l.Text = fmt.Sprintf("opened at ordinal %d, a point that was chosen; %s past it had arrived at %s "+
		"(%s, %s)", at.Point.Ordinal, words.Count(at.Held.Ordinal-at.Point.Ordinal, "ordinal"), g.Meta.Site,
		words.Count(at.Undone.Writes, "write"), words.Count(at.Undone.Bytes, "byte"))
	if ok && told > at.Held.Ordinal {
		l.Text += fmt.Sprintf("; %s was last heard to have %d more", g.Meta.Peer, told-at.Held.Ordinal)
	}
	return l
}

// undecided is the error of what has to wait until the trial is decided.
func (g *Group) undecided() error {
	return fmt.Errorf("%w: group %s: %s", ErrPrecondition, g.Meta.Name, g.Meta.trialText())
}

// TrialText says what the trial is and how it is decided; empty without one.
func (m *Meta) TrialText() string {
	if m.Trial == nil {
		return ""
	}
	return m.trialText()
}

func (m *Meta) trialText() string {
	t := m.Trial
	point := fmt.Sprintf("ordinal %d", t.Ordinal)
	if t.UnixNanos != 0 {
		point += " (" + time.Unix(0, t.UnixNanos).UTC().Format(time.RFC3339) + ")"
	}
	text := fmt.Sprintf("%s opened it as of %s, and that is not decided; to stay there: %s", m.Site, point,
		Command{m.Site, CommandCommit, m.Name})
	if t.Held == nil {
		return text + "; what it held before is lost"
	}
	return text + fmt.Sprintf("; to go back to what it held, ordinal %d: %s", t.Held.Ordinal,
		Command{m.Site, CommandRollBack, m.Name})
}

// rollingBackText says what a copy that rolls back becomes.
func (m *Meta) rollingBackText() string {
	switch {
	case m.Base.RollBack.Back:
		return fmt.Sprintf("it goes back to what it held at %s before it was opened as of ordinal %d: to ordinal %d", m.Site,
			m.Trial.Ordinal, m.Base.Ordinal)
	case m.Trial != nil:
		return fmt.Sprintf("it is being opened at %s as of ordinal %d", m.Site, m.Base.Ordinal)
	}
	return fmt.Sprintf("it is being promoted in the middle of a sync: its volumes go back to ordinal %d", m.Base.Ordinal)
}

// RollingBack says what a copy that rolls back becomes; empty for others.
func (m *Meta) RollingBack() string {
	if m.Copy != CopyRollingBack {
		return ""
	}
	return m.rollingBackText()
}

// deferred reports whether an event has to wait until a trial is decided.
func (g *Group) deferred(e Event) bool {
	if g.Meta.Trial == nil {
		return false
	}
	switch e := e.(type) {
	case Promote, Demote, CloseShard, YieldRequest, Suspend, TakenBack:
		return true
	case Configured:
		return e.Settings.Peer != g.Meta.Peer
	}
	return false
}

func (g *Group) trialCommitted() error {
	m := &g.Meta
	if m.Trial == nil || m.Copy == CopyRollingBack {
		return g.noTrial()
	}
	m.Trial = nil
	g.persist()
	return nil
}

// noTrial is nil where a trial was decided before, so that a decision can be repeated.
func (g *Group) noTrial() error {
	m := &g.Meta
	if m.Copy != CopyRollingBack {
		return nil
	}
	return fmt.Errorf("%w: group %s goes to ordinal %d at %s, which is decided; wait until it is there (%s)",
		ErrPrecondition, m.Name, m.Base.Ordinal, m.Site, Command{m.Site, CommandStatus, m.Name})
}

func (g *Group) takeTrialBack(e TakeTrialBack) error {
	m := &g.Meta
	switch {
	case m.Trial == nil, m.Copy == CopyRollingBack && !m.Base.RollBack.Back:
		return g.noTrial()
	case m.Copy == CopyRollingBack:
		return nil // repeated: decided already
	case m.Trial.Held == nil:
		return fmt.Errorf("%w: group %s: what %s held before ordinal %d was opened is lost, so the group cannot go back "+
			"to it; to go on: %s", ErrPrecondition, m.Name, m.Site, m.Trial.Ordinal, Command{m.Site, CommandCommit, m.Name})
	case len(e.Attached) > 0:
		return fmt.Errorf("%w: group %s: volumes are attached at %s: %s; stop the application and unmount them there, "+
			"then %s", ErrPrecondition, m.Name, m.Site, strings.Join(e.Attached, ", "),
			Command{m.Site, CommandRollBack, m.Name})
	}
	held := m.Trial.Held.Base
	held.RollBack = &RollBack{UnixNanos: e.Now, Back: true}
	m.Copy, m.Base = CopyRollingBack, &held
	g.persist()
	return nil
}

// trialTakenBack makes the site the secondary that it was.
func (g *Group) trialTakenBack() {
	m := &g.Meta
	held := m.Trial.Held
	m.Members, m.Timelines = held.restored(m.Members), held.Timelines
	m.Copy, m.Base, m.Trial = CopyWhole, nil, nil
	m.revert()
	m.Tail, m.Term, m.Openings = held.Tail, held.Term, nil
	m.Sync, m.PeerInstance = held.Sync, held.PeerInstance
	m.Loss, m.Divergence, m.Yield, m.Bookmarks = held.Loss, held.Divergence, held.Yield, held.Bookmarks
	g.acked, g.answered = 0, false
	g.link = LinkDown
	g.heard, g.told, g.current = nil, nil, currency{}
	g.persist() // the journal begins anew, on that timeline
}

// HeldLost: the images of Trial.Held are lost.
type HeldLost struct{}

func (HeldLost) event() {}

func (g *Group) heldLost() {
	m := &g.Meta
	if m.Trial == nil || m.Trial.Held == nil {
		return
	}
	next := *m.Trial
	next.Held = nil
	m.Trial = &next
	g.persist()
}

func (m *Meta) validateTrial() error {
	t := m.Trial
	switch {
	case t == nil && m.Base != nil && m.Base.RollBack != nil && m.Base.RollBack.Back:
		return fmt.Errorf("goes back from a trial that it does not have")
	case t == nil:
		return nil
	case m.Role != RolePrimary && m.Copy != CopyRollingBack:
		return fmt.Errorf("has a trial and is %s", m.Role)
	case t.Held == nil:
		return nil
	case t.Held.Ordinal < t.Ordinal:
		return fmt.Errorf("opened ordinal %d, and held no more than %d", t.Ordinal, t.Held.Ordinal)
	}
	if err := checkBookmarks(t.Held.Bookmarks); err != nil {
		return err
	}
	return t.Held.validate()
}

func (t *Trial) clone() *Trial {
	c := pointed(t)
	if c == nil || c.Held == nil {
		return c
	}
	h := pointed(c.Held)
	h.Base, h.Bookmarks, h.Divergence = *h.Base.clone(), slices.Clone(h.Bookmarks), pointed(h.Divergence)
	h.Loss, h.Yield = h.Loss.clone(), h.Yield.clone()
	c.Held = h
	return c
}
