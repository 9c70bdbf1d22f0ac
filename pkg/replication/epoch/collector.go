package epoch

import (
	"fmt"
	"slices"
	"time"
)

// CollectorState is where a collector stands.
type CollectorState string

const (
	// CollectorOff: another node collects.
	CollectorOff CollectorState = "off"
	// CollectorGathering: it asks the copies again and again, and tells them what is complete.
	CollectorGathering CollectorState = "gathering"
	// CollectorPausing: a copy follows a higher attempt; the next one of this collector waits.
	CollectorPausing CollectorState = "pausing"
	// CollectorDeciding: the epoch of the promotion is fixed, and is told to every copy.
	CollectorDeciding CollectorState = "deciding"
	// CollectorDone: every copy has it.
	CollectorDone CollectorState = "done"
)

// Collector finds out which epochs are complete at the secondary site, and decides at which one a group is promoted.
//
//	       Collect, Promote               found or made a decision            all have it
//	off --------------------> gathering ----------------------------> deciding ----------> done
//	                           ^   | Outdated
//	                           |   v
//	                          pausing
//
// Nothing of it is durable. It may run at any node, and at several: a copy follows the highest attempt only, and each
// attempt has heard every copy of an epoch before it uses the epoch. So it knows what earlier attempts have granted,
// and no earlier one can decide any more.
type Collector struct {
	life    Life
	timing  Timing
	state   CollectorState
	attempt Attempt
	// copies are those to ask, ascending; views is beside it.
	copies []ShardID
	views  []copyView
	// granted is the highest epoch that was found complete in this attempt.
	granted  ID
	promote  *PromoteWanted
	decision *Decision
	// told: an earlier attempt of this collector decided, and a copy may have it that was not heard since.
	told     bool
	failures int
	next     time.Duration
}

// copyView is what the collector knows of a copy. Without a report it knows nothing.
type copyView struct {
	// report is the last one, with the marks of those before it in this attempt.
	report *Report
	// missing: the site has no such copy.
	missing bool
	// settled: marks past this epoch do not count while the copy is settling.
	settled *ID
	decided bool
}

// NewCollector returns the collector of a process that starts. life was never used before.
func NewCollector(life Life, timing Timing) *Collector {
	return &Collector{life: life, timing: timing, state: CollectorOff}
}

// State says where it stands.
func (c *Collector) State() CollectorState { return c.state }

// Wake is when the next Tick is due at the latest; ok is false if none is needed.
func (c *Collector) Wake() (at time.Duration, ok bool) {
	return c.next, c.state != CollectorOff && c.state != CollectorDone
}

// Granted is the last epoch that was found complete in this attempt.
func (c *Collector) Granted() ID { return c.granted }

// Decision is the one that was found or made; nil before.
func (c *Collector) Decision() *Decision { return c.decision }

// MayPromote reports whether copies may be promoted without a further PromoteWanted: a decision was found or made, and
// it is not known that no copy has it.
func (c *Collector) MayPromote() bool { return c.decision != nil || c.told }

// Missing are the copies that a promotion, or a resync, waits to hear from.
func (c *Collector) Missing() (list []ShardID) {
	for _, s := range c.required() {
		if v := c.view(s); v == nil || v.report == nil && !v.missing {
			list = append(list, s)
		}
	}
	return list
}

// CollectorEvent is something that happened at the collector. Each Step gets the time beside it, as for a coordinator.
type CollectorEvent interface{ collectorEvent() }

// Collect puts the collector to work. Copies are all that the site is known to have; marks name further ones.
type Collect struct {
	Copies []ShardID
	// Undecided are those of them that were seen without a decision. If one of these had confirmed the collector's
	// decision, it was primary since and gave it up: what was decided is over.
	Undecided []ShardID
}

// Resign ends its work, unless it promotes.
type Resign struct{}

// PromoteCancelled: what the last PromoteWanted asked for is not wanted any more. A decision that was made stands, and
// is carried out (MayPromote).
type PromoteCancelled struct{}

// PromoteWanted: the group is to be promoted at the newest complete epoch, from now on until PromoteCancelled.
type PromoteWanted struct {
	Copies []ShardID
	// Without are copies that a person gave up. It is a statement that they will not be promoted by anyone else.
	Without []ShardID
	// Found: a decision that is found is carried out, and none is made.
	Found bool
	// AtLeast are ordinals that have to be in the epoch, for a promotion that loses nothing: the final ones of a
	// primary that was demoted. Until then nothing is decided.
	AtLeast map[ShardID]uint64
}

// CopyMissing: every node of the site has said that it does not have the copy.
type CopyMissing struct{ Copy ShardID }

// ReportReceived, OutdatedReceived and DecidedReceived are messages of a copy.
type (
	ReportReceived struct {
		From   ShardID
		Report Report
	}
	OutdatedReceived struct {
		From     ShardID
		Outdated Outdated
	}
	DecidedReceived struct {
		From    ShardID
		Decided Decided
	}
)

func (Tick) collectorEvent()             {}
func (Collect) collectorEvent()          {}
func (Resign) collectorEvent()           {}
func (PromoteWanted) collectorEvent()    {}
func (PromoteCancelled) collectorEvent() {}
func (CopyMissing) collectorEvent()      {}
func (ReportReceived) collectorEvent()   {}
func (OutdatedReceived) collectorEvent() {}
func (DecidedReceived) collectorEvent()  {}

// Promoted: every copy of the decision has it durable, but those that a person gave up.
type Promoted struct{ Decision Decision }

func (Promoted) effect() {}

// Step takes an event and returns what to do. Effects: Send, Promoted.
func (c *Collector) Step(now time.Duration, e CollectorEvent) []Effect {
	switch e := e.(type) {
	case Tick:
		return c.tick(now)
	case Collect:
		c.know(e.Copies)
		if c.state == CollectorOff || slices.ContainsFunc(e.Undecided, func(s ShardID) bool { return c.view(s).decided }) {
			return c.begin(now)
		}
	case Resign:
		if c.promote == nil && c.decision == nil {
			c.state = CollectorOff
		}
	case PromoteWanted:
		c.know(e.Copies)
		e.Without = slices.Compact(slices.Sorted(slices.Values(e.Without)))
		c.promote = &e
		if c.decision != nil && c.working() {
			return c.deciding(now) // it may be waiting for a copy that is given up now
		}
		return c.begin(now) // a new attempt, so that all reports are newer than the request
	case PromoteCancelled:
		c.promote = nil
	case CopyMissing:
		c.know([]ShardID{e.Copy})
		if v := c.view(e.Copy); v.report == nil {
			v.missing = true
			return c.evaluate(now)
		}
	case ReportReceived:
		return c.reported(now, e.From, e.Report)
	case OutdatedReceived:
		if c.working() && e.Outdated.Attempt.Compare(c.attempt) > 0 {
			c.attempt.Number = e.Outdated.Attempt.Number
			c.state = CollectorPausing
			c.next = now + c.timing.retry(c.failures)
			if c.promote != nil { // others give way to a promotion
				c.next = now + min(c.timing.Resend<<min(c.failures, 8), c.timing.Interval)
			}
			c.failures++
		}
	case DecidedReceived:
		return c.decided(e.From, e.Decided)
	default:
		panic(fmt.Sprintf("epoch: unknown event %T", e)) // a programming error: the set of events is closed
	}
	return nil
}

func (c *Collector) working() bool {
	return c.state == CollectorGathering || c.state == CollectorDeciding
}

func (c *Collector) view(s ShardID) *copyView {
	if i, ok := slices.BinarySearch(c.copies, s); ok {
		return &c.views[i]
	}
	return nil
}

func (c *Collector) know(copies []ShardID) (grown bool) {
	for _, s := range copies {
		if i, ok := slices.BinarySearch(c.copies, s); !ok {
			c.copies, c.views = slices.Insert(c.copies, i, s), slices.Insert(c.views, i, copyView{})
			grown = true
		}
	}
	return grown
}

// begin begins a new attempt. What was reported to an earlier one does not count.
func (c *Collector) begin(now time.Duration) []Effect {
	c.state = CollectorGathering
	c.attempt = Attempt{Number: c.attempt.Number + 1, Run: c.life}
	c.told = c.MayPromote()
	c.granted, c.decision = ID{}, nil
	for i := range c.views {
		c.views[i] = copyView{missing: c.views[i].missing}
	}
	return c.poll(now)
}

// poll asks every copy, and tells a decision to those that have not confirmed it.
func (c *Collector) poll(now time.Duration) (effects []Effect) {
	c.next = now + c.timing.Interval
	if c.promote != nil || c.state == CollectorDeciding {
		c.next = now + c.timing.Resend
	}
	for i, s := range c.copies {
		if c.views[i].decided {
			continue
		}
		effects = append(effects, c.gather(s)) // to hear of a restart, or of a higher attempt
		if c.state == CollectorDeciding {
			effects = append(effects, c.tell(s)...)
		}
	}
	return effects
}

// gather asks a copy for what it has not reported yet.
func (c *Collector) gather(s ShardID) Effect {
	return Send{s, Gather{Attempt: c.attempt, After: c.view(s).last()}}
}

// last is the epoch of the last mark that was reported; zero without one.
func (v *copyView) last() ID {
	if v.report == nil || len(v.report.Marks) == 0 {
		return ID{}
	}
	return v.report.Marks[len(v.report.Marks)-1].Epoch
}

func (c *Collector) tick(now time.Duration) []Effect {
	switch {
	case now < c.next:
		return nil
	case c.state == CollectorPausing:
		return c.begin(now)
	case c.working():
		return c.poll(now)
	}
	return nil
}

func (c *Collector) reported(now time.Duration, from ShardID, r Report) []Effect {
	v := c.view(from)
	if v == nil || !c.working() || r.Attempt != c.attempt {
		return nil
	}
	if v.report != nil && v.report.Life != r.Life {
		return c.begin(now) // the copy restarted, and does not know what it promised
	}
	if v.report != nil && r.Seq <= v.report.Seq {
		return nil
	}
	if !r.After.IsZero() && r.After != v.last() {
		return nil // the answer to an earlier question
	}
	named, first := namedBy(r.Marks), v.report == nil
	v.take(r)
	if c.state == CollectorDeciding {
		if first {
			return c.tell(from)
		}
		return nil // poll repeats it
	}
	var effects []Effect
	if v.report.More && len(r.Marks) > 0 {
		effects = append(effects, c.gather(from))
	}
	if c.know(named) {
		effects = append(effects, c.poll(now)...)
	}
	return append(effects, c.evaluate(now)...)
}

// take takes a report. Within a life and an attempt a copy gets marks at the end only, and loses those before its
// floor, and at the end those that it was told do not count (settle).
func (v *copyView) take(r Report) {
	if !r.Settling {
		v.settled = nil
	}
	var marks []Mark
	if v.report != nil && !r.After.IsZero() {
		marks = v.report.Marks
	}
	for _, m := range r.Marks {
		if v.settled == nil || !v.settled.Before(m.Epoch) {
			marks = append(marks, m)
		}
	}
	r.Marks = slices.DeleteFunc(marks, func(m Mark) bool { return m.Epoch.Before(r.Floor) })
	v.report, v.missing = &r, false
}

// namedBy are the shards of the configurations of marks.
func namedBy(marks []Mark) (list []ShardID) {
	for i, m := range marks {
		if i == 0 || !slices.Equal(m.Config.Shards, marks[i-1].Config.Shards) { // a configuration has many marks
			list = append(list, m.Config.Shards...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// evaluate draws the conclusions from the reports.
func (c *Collector) evaluate(now time.Duration) (effects []Effect) {
	if !c.working() {
		return nil
	}
	for i, s := range c.copies {
		if r := c.views[i].report; r != nil && r.Decision.Of(s) != nil && c.decision == nil {
			c.decision = r.Decision // an earlier attempt's, which stands
		}
	}
	if c.decision != nil {
		return c.deciding(now)
	}
	if !slices.ContainsFunc(c.views, func(v copyView) bool { return v.report == nil && !v.missing }) {
		c.told = false // none has it, and none obeys an earlier attempt any more
	}
	if len(c.Missing()) > 0 {
		return nil // a copy that was not heard may have the decision of an earlier attempt
	}
	if m, ok := c.complete(nil); ok && c.granted.Before(m.Epoch) {
		c.granted, c.failures = m.Epoch, 0
	}
	effects = c.grant()
	if c.more() {
		return effects
	}
	var without []ShardID
	if c.promote != nil {
		without = c.promote.Without
	}
	m, ok := c.complete(without)
	if !m.Epoch.Before(c.floor()) {
		effects = append(effects, c.settle(m.Epoch)...)
	}
	if c.promote == nil || c.promote.Found || !ok || !c.reaches(m.Epoch) {
		return effects
	}
	c.decision = &Decision{Epoch: m.Epoch, Config: m.Config, Without: c.promote.Without}
	return append(effects, c.deciding(now)...)
}

// grant tells the copies of a complete epoch that do not show it yet.
func (c *Collector) grant() (effects []Effect) {
	for i, s := range c.copies {
		r := c.views[i].report
		if r != nil && r.Shown.Before(c.granted) && has(r, c.granted) {
			effects = append(effects, Send{s, Grant{Attempt: c.attempt, Life: r.Life, Epoch: c.granted}})
		}
	}
	return effects
}

// settle answers the copies that are about to begin a resync. From here on their marks past the last complete epoch do
// not count.
func (c *Collector) settle(last ID) (effects []Effect) {
	for i, s := range c.copies {
		v := &c.views[i]
		if v.report == nil || !v.report.Settling {
			continue
		}
		v.settled = &last
		v.report.Marks = slices.DeleteFunc(v.report.Marks, func(m Mark) bool { return last.Before(m.Epoch) })
		effects = append(effects, Send{s, Settled{Attempt: c.attempt, Life: v.report.Life, Seq: v.report.Seq, Epoch: last}})
	}
	return effects
}

func (c *Collector) deciding(now time.Duration) (effects []Effect) {
	c.know(c.decision.Config.Shards)
	if c.state != CollectorDeciding {
		c.state, c.next = CollectorDeciding, now+c.timing.Resend
	}
	for _, s := range c.copies {
		effects = append(effects, c.tell(s)...)
	}
	return append(effects, c.done()...)
}

// tell tells a copy the decision, if it is part of it, has been heard and has not confirmed it.
func (c *Collector) tell(s ShardID) []Effect {
	v := c.view(s)
	if v.report == nil || v.decided || !c.decision.Has(s) {
		return nil
	}
	return []Effect{Send{s, Decide{Attempt: c.attempt, Life: v.report.Life, Decision: *c.decision}}}
}

func (c *Collector) decided(from ShardID, d Decided) []Effect {
	v := c.view(from)
	if v == nil || c.state != CollectorDeciding || d.Attempt != c.attempt || v.report == nil ||
		d.Life != v.report.Life || d.Epoch != c.decision.Epoch {
		return nil
	}
	v.decided = true
	return c.done()
}

// done ends the promotion when every copy has the decision, but those that a person gave up meanwhile.
func (c *Collector) done() []Effect {
	for _, s := range c.decision.Config.Shards {
		if v := c.view(s); c.decision.Has(s) && !v.decided && !c.givenUp(s) {
			return nil
		}
	}
	c.state = CollectorDone
	return []Effect{Promoted{*c.decision}}
}
