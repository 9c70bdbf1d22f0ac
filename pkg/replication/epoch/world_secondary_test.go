package epoch

import (
	"fmt"
	"slices"
	"time"
)

// simNode is a node of site B: one process, with a collector and the copies of some shards.
type simNode struct {
	clock     clock
	up, gone  bool
	collector *Collector
	wanted    bool // a promotion, of this collector
}

// simCopy is what a node has of a shard: a prefix of its journal, or the middle of a resync and the base.
type simCopy struct {
	id     ShardID
	node   int
	exists bool
	core   *Copy

	// writes and marks count those that are durable here.
	writes, marks int
	applied       uint64
	base          *Mark
	showed        bool // since its first sync
	syncing       bool
	wholeFrom     uint64
	voided        int // marks before this one are of before the last resync
	decision      *Decision
	promoted      *Promote
}

func (w *world) startNode(n *simNode) {
	n.up, n.wanted = true, false
	n.collector = NewCollector(w.life(), w.timing)
	for _, c := range w.copies {
		if w.nodes[c.node] == n && c.exists {
			c.core = w.openCopy(c)
		}
	}
}

func (w *world) openCopy(c *simCopy) *Copy {
	start := CopyStart{Base: c.base, Applied: c.applied, Syncing: c.syncing, WholeFrom: c.wholeFrom, Decision: c.decision}
	if !c.syncing {
		for _, m := range w.shards[c.id].marks[c.voided:c.marks] {
			start.Marks = append(start.Marks, m.mark)
		}
	}
	return NewCopy(c.id, w.life(), start)
}

func (w *world) linked(c *simCopy) bool {
	s := w.shards[c.id]
	return s.up && w.nodes[c.node].up && !w.destroyed && !s.lost && !w.blocked[[2]int{int(c.id), siteB + c.node}] &&
		c.decision == nil
}

// ship takes what is durable at the primary to the copy, and makes it durable there.
func (w *world) ship(c *simCopy) {
	s := w.shards[c.id]
	if !w.linked(c) || !s.config.Has(s.id) && !c.exists {
		return
	}
	if !c.exists {
		c.exists, c.syncing = true, true
		c.core = w.openCopy(c)
		w.tellOfCopies()
		return
	}
	if c.syncing {
		if w.rng.IntN(3) == 0 { // it ends
			c.syncing = false
			c.writes, c.marks, c.voided = s.durableWrite, s.durableMark, s.durableMark
			c.wholeFrom = uint64(c.writes)
			w.logf("copy %d is whole from %d on", c.id, c.wholeFrom)
			w.copy(c, SyncEnded{c.wholeFrom}, nil)
		}
		return
	}
	if c.core.State() != CopyFollowing {
		return
	}
	marks := min(c.marks+1+w.rng.IntN(2), s.durableMark)
	c.writes = s.durableWrite
	if marks < s.durableMark {
		c.writes = s.marks[marks].behind
	}
	for ; c.marks < marks; c.marks++ {
		m := s.marks[c.marks].mark
		w.copy(c, MarkDurable{m}, nil)
		if w.rng.IntN(2) == 0 { // else that is lost
			w.shard(s, MarkAcknowledged{m.Epoch}, nil)
		}
	}
}

// tellOfCopies: the nodes that collect hear that there is another copy. The engine looks at every tick.
func (w *world) tellOfCopies() {
	for i, n := range w.nodes {
		if n.up && n.collector.State() != CollectorOff {
			w.collect(i, w.duties())
		}
	}
}

func (w *world) apply(c *simCopy) {
	if !c.exists || !w.nodes[c.node].up || c.base != nil || !c.showed || c.decision != nil {
		return
	}
	if m, ok := c.core.Shown(); ok && m.Boundary > c.applied {
		c.applied += 1 + uint64(w.rng.IntN(int(m.Boundary-c.applied)))
	}
}

// copy gives an event to the core of a copy.
func (w *world) copy(c *simCopy, e CopyEvent, reply func(Message)) {
	for _, effect := range c.core.Step(e) {
		switch effect := effect.(type) {
		case Show:
			w.logf("copy %d shows %s", c.id, effect.Mark)
			w.shows(c, effect.Mark)
			if c.base != nil && c.base.Epoch != effect.Mark.Epoch || !c.showed {
				c.base, c.applied, c.showed = nil, c.wholeFrom, true
			}
		case BeginSync:
			w.logf("copy %d begins a resync, base %s", c.id, effect.Base)
			switch {
			case c.base != nil && c.base.Epoch != effect.Base.Epoch:
				w.fail("copy %d: base %s becomes %s", c.id, c.base, effect.Base)
			case effect.OK:
				c.base = &effect.Base
			}
			c.syncing = true
		case PersistDecision:
			c.decision = &effect.Decision
		case Promote:
			w.logf("copy %d is promoted at %s", c.id, effect.Mark)
			w.promotes(c, effect)
		case Reply:
			if reply != nil {
				reply(effect.Message)
			}
		}
	}
}

// shows: only what is durable on all copies of the epoch may be shown.
func (w *world) shows(c *simCopy, m Mark) {
	w.shown++
	for _, id := range m.Config.Shards {
		o := w.copies[id]
		if w.nodes[o.node].gone {
			continue
		}
		has := slices.ContainsFunc(w.shards[id].marks[:o.marks], func(x simMark) bool { return x.mark.Epoch == m.Epoch })
		if !o.exists || !has {
			w.fail("copy %d shows %s, and copy %d does not have the mark", c.id, m.Epoch, id)
		}
	}
}

// promotes: a copy becomes what it was at a mark. That has to be possible, and the same for all.
func (w *world) promotes(c *simCopy, p Promote) {
	switch {
	case c.promoted != nil && c.promoted.Mark.Epoch != p.Mark.Epoch:
		w.fail("copy %d was promoted at %s and is now at %s", c.id, c.promoted.Mark, p.Mark)
	case c.base != nil && c.base.Epoch == p.Mark.Epoch:
	case c.syncing:
		w.fail("copy %d is promoted at %s in the middle of a resync", c.id, p.Mark)
	case p.Mark.Boundary < c.wholeFrom:
		w.fail("copy %d is promoted at %s, it is whole from %d on", c.id, p.Mark, c.wholeFrom)
	case p.Mark.Boundary < c.applied:
		w.fail("copy %d is promoted at %s, it has applied %d", c.id, p.Mark, c.applied)
	case p.Mark.Boundary > uint64(c.writes):
		w.fail("copy %d is promoted at %s, it has %d", c.id, p.Mark, c.writes)
	}
	c.promoted = &p
	at := map[ShardID]uint64{}
	var decision *Decision
	for _, o := range w.copies {
		if o.promoted == nil || w.nodes[o.node].gone { // given up, whatever it had decided
			continue
		}
		if decision != nil && decision.Epoch != o.decision.Epoch {
			w.fail("copies are promoted at %s and at %s", decision.Epoch, o.decision.Epoch)
		}
		decision = o.decision
		at[o.id] = o.promoted.Mark.Boundary
	}
	absent := slices.Clone(decision.Without)
	for _, s := range decision.Config.Shards {
		if _, ok := at[s]; !ok {
			absent = append(absent, s) // not yet
		}
	}
	w.check(fmt.Sprintf("promotion at %s", decision.Epoch), decision.Config, absent,
		func(s ShardID) uint64 { return at[s] })
}

// collect gives an event to the collector of a node.
func (w *world) collect(node int, e CollectorEvent) {
	n := w.nodes[node]
	switch e.(type) {
	case PromoteWanted:
		n.wanted = true
	case PromoteCancelled:
		n.wanted = false
	}
	may := n.collector.MayPromote()
	effects := n.collector.Step(n.clock.read(w.now), e)
	if d := n.collector.Decision(); d != nil && !may && !n.wanted && !w.decidedAt(d.Epoch) {
		w.fail("node %d decides at %s, and no promotion is wanted there", node, d.Epoch)
	}
	for _, effect := range effects {
		switch effect := effect.(type) {
		case Send:
			c := w.copies[effect.To]
			w.send(siteB+node, siteB+c.node, func() {
				if w.nodes[c.node].up {
					w.toCopy(c, effect.Message, node)
				}
			})
		case Promoted:
			w.logf("node %d finished the promotion at %s", node, effect.Decision.Epoch)
		}
	}
	if at, ok := n.collector.Wake(); ok {
		collector := n.collector
		w.drawnEvent(n.clock.when(at), func() {
			if now, ok := collector.Wake(); n.up && n.collector == collector && ok && now <= n.clock.read(w.now) {
				w.collect(node, Tick{})
			}
		})
	}
}

// decidedAt reports whether a copy has the decision for an epoch.
func (w *world) decidedAt(epoch ID) bool {
	return slices.ContainsFunc(w.copies, func(c *simCopy) bool { return decided(c.decision) == epoch })
}

func (w *world) toCopy(c *simCopy, m Message, node int) {
	back := func(e CollectorEvent) {
		w.send(siteB+c.node, siteB+node, func() {
			if w.nodes[node].up {
				w.collect(node, e)
			}
		})
	}
	if !c.exists {
		// The site says that it has no such copy only when all of its nodes have answered.
		if !slices.ContainsFunc(w.nodes, func(n *simNode) bool { return !n.up }) {
			back(CopyMissing{c.id})
		}
		return
	}
	w.copy(c, copyEvent(m), func(answer Message) { back(collectorEvent(c.id, answer)) })
}

func copyEvent(m Message) CopyEvent {
	switch m := m.(type) {
	case Gather:
		return GatherReceived{m}
	case Grant:
		return GrantReceived{m}
	case Decide:
		return DecideReceived{m}
	case Settled:
		return SettledReceived{m}
	}
	panic(fmt.Sprintf("%T is not for a copy", m))
}

func collectorEvent(from ShardID, m Message) CollectorEvent {
	switch m := m.(type) {
	case Report:
		return ReportReceived{from, m}
	case Outdated:
		return OutdatedReceived{from, m}
	case Decided:
		return DecidedReceived{from, m}
	}
	panic(fmt.Sprintf("%T is not for a collector", m))
}

// lostCopies are those on nodes that will not come back, and those that such a node may have had.
func (w *world) lostCopies() (list []ShardID) {
	lost := slices.ContainsFunc(w.nodes, func(n *simNode) bool { return n.gone })
	for _, c := range w.copies {
		if w.nodes[c.node].gone || lost && !c.exists {
			list = append(list, c.id)
		}
	}
	return list
}

// duties are what a node that collects knows of the site.
func (w *world) duties() Collect {
	all := w.allCopies()
	return Collect{Copies: all, Undecided: slices.DeleteFunc(slices.Clone(all), func(s ShardID) bool {
		return w.copies[s].decision != nil
	})}
}

func (w *world) allCopies() (list []ShardID) {
	for _, c := range w.copies {
		if c.exists {
			list = append(list, c.id)
		}
	}
	return list
}

// probe promotes a copy of site B at this instant, as if site A were gone and all that can start had started.
func (w *world) probe() {
	p := *w
	p.problem, p.queue, p.destroyed = nil, nil, true
	p.blocked, p.loss, p.repeat, p.delay = map[[2]int]bool{}, 0, 0, time.Microsecond
	p.copies, p.nodes = nil, nil
	for _, n := range w.nodes {
		m := *n
		m.up = !n.gone
		p.nodes = append(p.nodes, &m)
	}
	for _, c := range w.copies {
		d := *c
		p.copies = append(p.copies, &d)
		if d.exists {
			d.core = p.openCopy(&d)
		}
	}
	node := slices.IndexFunc(p.nodes, func(n *simNode) bool { return n.up })
	if node < 0 {
		return
	}
	p.nodes[node].collector = NewCollector(p.life(), p.timing)
	p.collect(node, PromoteWanted{Copies: p.allCopies(), Without: p.lostCopies()})
	collector := p.nodes[node].collector
	for end := p.now + 100*time.Millisecond; p.problem == nil && len(p.queue) > 0 && p.queue[0].at < end &&
		collector.State() != CollectorDone; {
		p.step()
	}
	switch {
	case p.problem != nil:
		w.trace = p.trace
		w.fail("promoted now: %w", p.problem)
	case collector.State() != CollectorDone && w.everComplete():
		w.fail("a promotion now does not end: %s, waits for %v", collector.State(), collector.Missing())
	}
	w.drawn = p.drawn
}

// everComplete: a copy shows an epoch, so there is one that the group can be promoted at.
func (w *world) everComplete() bool {
	return slices.ContainsFunc(w.copies, func(c *simCopy) bool {
		return c.exists && !w.nodes[c.node].gone && (c.showed || c.base != nil || c.decision != nil)
	})
}
