package epoch

import (
	"fmt"
	"slices"
	"testing"
)

// TestSearchPromotions visits all states of two and three copies and two collectors, one of which promotes. Marks
// arrive at any time, or never; every message arrives at any time, once, twice or never; one process restarts; a copy
// needs a resync.
func TestSearchPromotions(t *testing.T) {
	search(t, "two copies, two promotions", newCopyModel(2, copyModel{promotions: 2}))
	search(t, "two copies, a promotion that is given up, 1 crash",
		newCopyModel(2, copyModel{promotions: 1, cancels: 1, crashes: 1}))
	search(t, "two copies, a collector and a promotion", newCopyModel(2, copyModel{collects: 1, promotions: 1}))
	search(t, "two copies, a promotion, 1 resync", newCopyModel(2, copyModel{promotions: 1, syncs: 1}))
	search(t, "three copies, a promotion", newCopyModel(3, copyModel{promotions: 1}))
	if *searchDeep {
		search(t, "two copies, a collector and a promotion, all",
			newCopyModel(2, copyModel{collects: 1, promotions: 1, crashes: 1, timers: 1, syncs: 1, repeats: 1}))
		search(t, "three copies, two promotions", newCopyModel(3, copyModel{promotions: 2, timers: 1}))
	}
}

// oneCopy is a copy with what is durable of it. Its primary's journal has the marks of epochs 1 and 2, at boundaries 10
// and 20.
type oneCopy struct {
	core      *Copy
	has       int // epochs that arrived
	voided    int // of these, those before the last resync
	base      *Mark
	showed    bool
	syncing   bool
	wholeFrom uint64
	applied   uint64
	decision  *Decision
	at        ID // of its promotion
}

type copyModel struct {
	copies     []oneCopy
	collectors [2]*Collector
	wanted     [2]bool  // a promotion, of the collector
	net        []packet // sorted
	mail       *mail
	lives      Life
	failure    error

	collects, promotions, cancels, timers, crashes, syncs, repeats int
}

func newCopyModel(copies int, m copyModel) *copyModel {
	m.lives, m.mail = 10, &mail{map[string]packet{}}
	for i := range copies {
		m.copies = append(m.copies, oneCopy{core: NewCopy(ShardID(i), Life(i+1), CopyStart{})})
	}
	for i := range m.copies {
		m.arrives(i) // epoch 1 is complete from the start
	}
	for i := range m.collectors {
		m.collectors[i] = NewCollector(Life(i+5), DefaultTiming())
	}
	return &m
}

func (m *copyModel) ids() (list []ShardID) {
	for i := range m.copies {
		list = append(list, ShardID(i))
	}
	return list
}

func (m *copyModel) mark(i, number int) Mark {
	return Mark{Epoch: ID{uint64(number), 1}, Shard: ShardID(i), Config: Config{Version{1, 0}, m.ids()},
		Boundary: uint64(10 * number)}
}

func (m *copyModel) clone() *copyModel {
	c := *m
	c.copies, c.net = slices.Clone(m.copies), slices.Clone(m.net)
	for i := range c.copies {
		c.copies[i].core = c.copies[i].core.Clone()
	}
	for i := range c.collectors {
		c.collectors[i] = c.collectors[i].Clone()
	}
	return &c
}

func (m *copyModel) key() []byte {
	b := appendNumbers(make([]byte, 0, 1024), m.net)
	b = fmt.Appendf(b, "%d %d %d %d %d %d %d %d %v", m.lives, m.collects, m.promotions, m.cancels, m.timers, m.crashes,
		m.syncs, m.repeats, m.wanted)
	for _, c := range m.copies {
		core := *c.core
		core.decision = nil
		b = fmt.Appendf(b, "|%v %d %d %v %v %v %d %d %v %v", core, c.has, c.voided, c.base != nil, c.showed, c.syncing,
			c.wholeFrom, c.applied, decided(c.decision), c.at)
	}
	for _, c := range m.collectors {
		b = fmt.Appendf(b, "|%v %v %v %v %v %v %v", c.state, c.attempt, c.granted, c.promote != nil, decided(c.decision),
			c.told, c.failures)
		for _, v := range c.views {
			b = fmt.Appendf(b, " %v %v", v.settled, v.decided)
			if r := v.report; r != nil {
				b = fmt.Appendf(b, " %v %v %d %v %v %v %v", r.Life, r.Seq, len(r.Marks), r.Shown, r.Floor, r.Settling,
					decided(r.Decision))
			}
		}
	}
	return b
}

func decided(d *Decision) ID {
	if d == nil {
		return ID{}
	}
	return d.Epoch
}

func (m *copyModel) put(p packet) {
	i, _ := slices.BinarySearchFunc(m.net, p, comparePackets)
	m.net = slices.Insert(m.net, i, p)
}

// Collectors have the addresses -1 and -2.
func (m *copyModel) collect(i int, e CollectorEvent) {
	c := m.collectors[i]
	may := c.MayPromote()
	effects := c.Step(0, e)
	if !may && c.MayPromote() && !m.wanted[i] && !slices.ContainsFunc(m.copies, func(c oneCopy) bool {
		return decided(c.decision) == decided(m.collectors[i].decision)
	}) {
		m.fail("collector %d decides at %s, and no promotion is wanted", i, decided(c.decision))
	}
	for _, effect := range effects {
		if send, ok := effect.(Send); ok {
			m.put(m.mail.packet(-1-i, int(send.To), send.Message))
		}
	}
	c.next = 0
}

func (m *copyModel) copy(i int, e CopyEvent, from int) {
	c := &m.copies[i]
	for _, effect := range c.core.Step(e) {
		switch effect := effect.(type) {
		case Show:
			m.shows(effect.Mark)
			if !c.showed || c.base != nil {
				c.base = nil
			}
			c.showed, c.applied = true, effect.Mark.Boundary // the worst: all at once
		case BeginSync:
			if effect.OK && c.base == nil {
				c.base = &effect.Base
			}
			c.syncing = true
		case PersistDecision:
			c.decision = &effect.Decision
		case Promote:
			m.promotes(i, effect.Mark)
		case Reply:
			m.put(m.mail.packet(i, from, effect.Message))
		}
	}
}

func (m *copyModel) fail(format string, args ...any) {
	if m.failure == nil {
		m.failure = fmt.Errorf(format, args...)
	}
}

func (m *copyModel) broken() error { return m.failure }

// shows: what is shown is complete.
func (m *copyModel) shows(mark Mark) {
	for i, c := range m.copies {
		if c.has < int(mark.Epoch.Number) {
			m.fail("epoch %s is shown, and copy %d does not have the mark", mark.Epoch, i)
		}
	}
}

// promotes: at a complete epoch, the same for all, that the copy can still be cut at.
func (m *copyModel) promotes(i int, mark Mark) {
	c := &m.copies[i]
	m.shows(mark)
	isBase := c.base != nil && c.base.Epoch == mark.Epoch
	switch {
	case !isBase && (c.syncing || mark.Boundary < c.wholeFrom):
		m.fail("copy %d is promoted at %s in the middle of a resync", i, mark)
	case !isBase && c.base == nil && mark.Boundary < c.applied:
		m.fail("copy %d is promoted at %s and has applied %d", i, mark, c.applied)
	}
	c.at = mark.Epoch
	for j, o := range m.copies {
		if !o.at.IsZero() && o.at != c.at {
			m.fail("copy %d is promoted at %s, copy %d at %s", i, c.at, j, o.at)
		}
	}
}

func (m *copyModel) deliver(p packet) {
	if p.to >= 0 {
		m.copy(p.to, copyEvent(p.m), p.from)
	} else {
		m.collect(-1-p.to, collectorEvent(ShardID(p.from), p.m))
	}
}

func (m *copyModel) next(yield func(string, model)) {
	do := func(what string, change func(c *copyModel)) {
		c := m.clone()
		change(c)
		yield(what, c)
	}
	for at, p := range m.net {
		do(p.text, func(c *copyModel) { c.net = slices.Delete(c.net, at, at+1); c.deliver(p) })
		if m.repeats > 0 {
			do(p.text+" (and is repeated)", func(c *copyModel) { c.repeats--; c.deliver(p) })
		}
	}
	if m.collects > 0 {
		do("collector 0 collects", func(c *copyModel) { c.collects--; c.collect(0, Collect{Copies: m.ids()}) })
	}
	if m.promotions > 0 {
		i := m.promotions % 2 // the second of two is the other collector's
		do(fmt.Sprintf("collector %d promotes", i), func(c *copyModel) {
			c.promotions--
			c.wanted[i] = true
			c.collect(i, PromoteWanted{Copies: m.ids()})
		})
	}
	for i := range m.collectors {
		if m.cancels > 0 && m.wanted[i] {
			do(fmt.Sprintf("the promotion of collector %d is given up", i), func(c *copyModel) {
				c.cancels--
				c.wanted[i] = false
				c.collect(i, PromoteCancelled{})
			})
		}
		if m.timers > 0 && m.collectors[i].state != CollectorOff {
			do(fmt.Sprintf("the timer of collector %d runs out", i), func(c *copyModel) { c.timers--; c.collect(i, Tick{}) })
		}
	}
	for i, c := range m.copies {
		if c.decision == nil && c.has < 2 && !c.syncing {
			do(fmt.Sprintf("copy %d gets epoch %d", i, c.has+1), func(c *copyModel) { c.arrives(i) })
		}
		if m.syncs > 0 && c.decision == nil {
			do(fmt.Sprintf("copy %d needs a resync", i), func(c *copyModel) { c.syncs--; c.copy(i, SyncWanted{}, 0) })
		}
		if c.syncing && c.decision == nil {
			do(fmt.Sprintf("the resync of copy %d ends", i), func(c *copyModel) { c.syncEnds(i) })
		}
		if m.crashes > 0 {
			do(fmt.Sprintf("copy %d restarts", i), func(c *copyModel) { c.crashes--; c.restart(i) })
		}
	}
	if m.crashes > 0 && m.collectors[1].state != CollectorOff {
		do("collector 1 restarts", func(c *copyModel) {
			c.crashes--
			c.lives++
			c.promotions++
			c.wanted[1] = false
			c.collectors[1] = NewCollector(c.lives, DefaultTiming())
		})
	}
}

func (m *copyModel) arrives(i int) {
	c := &m.copies[i]
	c.has++
	m.copy(i, MarkDurable{m.mark(i, c.has)}, 0)
}

// syncEnds: the resync brought everything up to behind epoch 1, or what the copy had.
func (m *copyModel) syncEnds(i int) {
	c := &m.copies[i]
	c.has = max(c.has, 1)
	c.syncing, c.wholeFrom = false, uint64(10*c.has+5)
	c.voided = c.has
	m.copy(i, SyncEnded{c.wholeFrom}, 0)
}

func (m *copyModel) restart(i int) {
	c := &m.copies[i]
	start := CopyStart{Base: c.base, Syncing: c.syncing, WholeFrom: c.wholeFrom, Decision: c.decision}
	if c.showed && c.base == nil {
		start.Applied = c.applied
	}
	for n := c.voided + 1; n <= c.has && !c.syncing; n++ {
		start.Marks = append(start.Marks, m.mark(i, n))
	}
	m.lives++
	c.core = NewCopy(ShardID(i), m.lives, start)
}
