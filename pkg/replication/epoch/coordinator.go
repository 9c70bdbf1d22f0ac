package epoch

import (
	"fmt"
	"slices"
	"time"
)

// CoordinatorState is where a coordinator stands.
type CoordinatorState string

const (
	// CoordinatorOff: there is no configuration, or another shard coordinates, or a newer configuration exists.
	CoordinatorOff CoordinatorState = "off"
	// CoordinatorHandingOver: the next coordinator does not have the configuration yet that this one issued.
	CoordinatorHandingOver CoordinatorState = "handing-over"
	// CoordinatorWaiting: the next epoch has its time.
	CoordinatorWaiting CoordinatorState = "waiting"
	// CoordinatorAsking: it is not known that every shard is there. Nothing is held meanwhile.
	CoordinatorAsking CoordinatorState = "asking"
	// CoordinatorPreparing: shards fix their boundaries and hold.
	CoordinatorPreparing CoordinatorState = "preparing"
	// CoordinatorCommitting: all were ready at one instant; they put the mark and release.
	CoordinatorCommitting CoordinatorState = "committing"
)

// Coordinator cuts the epochs of a group. Every shard's process has one; that of the configuration's first shard works.
//
//	          Configured                    all answered                  all ready
//	off  ----------------->  asking  ----------------------->  preparing  ---------->  committing
//	                         ^    ^                                 |                    |    |
//	                  paused |    +-----------------+      a refusal, or too late        |    | all committed
//	                         |                      |               |                    |    |
//	                         +---  waiting  <-------|---------------+--------------------+    |
//	                                   |            +---- (after a failure)                   |
//	                                   +--------------- <-------------------------------------+
//	                                   | (after a complete epoch: no question)
//	                                   +--> preparing
//
// Nothing of it is durable. Two coordinators at a time, or one that is confused, cannot make an epoch complete that is
// not one instant: see package doc.
type Coordinator struct {
	self   ShardID
	run    Life
	timing Timing
	config Config
	state  CoordinatorState

	shards []shardView // beside config.Shards, or the next coordinator alone while handing over
	epoch  ID          // the one that is being cut, or was last
	round  uint64
	// number is the highest one that was used or heard of.
	number   uint64
	failures int
	// sure: the last epoch was complete, so every shard was there.
	sure bool
	// firstCut is the first complete epoch of the configuration.
	firstCut ID

	// begun is when the epoch or round began; next when something has to be done; resend when messages go out again.
	begun, next, resend time.Duration
}

// shardView is what the coordinator knows of a shard.
type shardView struct {
	answered, ready, committed bool
	life                       Life
	boundary                   uint64
	acked                      ID
}

// NewCoordinator returns the coordinator of a shard's process that starts. run was never used before.
func NewCoordinator(self ShardID, run Life, timing Timing) *Coordinator {
	return &Coordinator{self: self, run: run, timing: timing, state: CoordinatorOff}
}

// SetTiming changes how long what takes, from the next epoch on. That comes no later than the new interval says.
func (c *Coordinator) SetTiming(now time.Duration, t Timing) {
	if t == c.timing {
		return
	}
	c.timing = t
	if c.state == CoordinatorWaiting {
		c.next = min(c.next, now+t.Interval)
	}
}

// State says where it stands.
func (c *Coordinator) State() CoordinatorState { return c.state }

// Wake is when the next Tick is due at the latest; ok is false if none is needed.
func (c *Coordinator) Wake() (at time.Duration, ok bool) {
	switch c.state {
	case CoordinatorOff:
		return 0, false
	case CoordinatorWaiting:
		return c.next, true
	}
	return min(c.next, c.resend), true
}

// Acked is the last epoch whose mark a shard's peer has on stable storage, as far as the shard told; slowest is the one
// whose peer is behind all others. ok is false while a shard did not tell.
func (c *Coordinator) Acked() (slowest ShardID, epoch ID, ok bool) {
	if c.state == CoordinatorOff || c.state == CoordinatorHandingOver {
		return 0, ID{}, false
	}
	for i, v := range c.shards {
		if v.life == 0 {
			return c.config.Shards[i], ID{}, false
		}
		if i == 0 || v.acked.Before(epoch) {
			slowest, epoch = c.config.Shards[i], v.acked
		}
	}
	return slowest, epoch, true
}

// CoordinatorEvent is something that happened at the coordinator. Each Step gets the time beside it: a reading of a
// clock that only goes forward, of this process.
type CoordinatorEvent interface{ coordinatorEvent() }

// Configured: the shard of this process has a configuration, durably.
type Configured struct{ Config Config }

// Tick: time went on. See [Coordinator.Wake] and [Collector.Wake].
type Tick struct{}

// CutNow: the next epoch is wanted at once, for a demotion.
type CutNow struct{}

// AnswerReceived, ReadyReceived, CommittedReceived and RefusedReceived are messages of a shard.
type (
	AnswerReceived struct {
		From   ShardID
		Answer Answer
	}
	ReadyReceived struct {
		From  ShardID
		Ready Ready
	}
	CommittedReceived struct {
		From      ShardID
		Committed Committed
	}
	RefusedReceived struct {
		From    ShardID
		Refused Refused
	}
)

func (Configured) coordinatorEvent()        {}
func (Tick) coordinatorEvent()              {}
func (CutNow) coordinatorEvent()            {}
func (AnswerReceived) coordinatorEvent()    {}
func (ReadyReceived) coordinatorEvent()     {}
func (CommittedReceived) coordinatorEvent() {}
func (RefusedReceived) coordinatorEvent()   {}

// Step takes an event and returns what to do. Effects: Send, Completed, Failed, Superseded.
func (c *Coordinator) Step(now time.Duration, e CoordinatorEvent) []Effect {
	switch e := e.(type) {
	case Configured:
		return c.configured(now, e.Config)
	case Tick:
		return c.tick(now)
	case CutNow:
		switch {
		case c.state == CoordinatorWaiting && c.sure:
			return c.prepare(now)
		case c.state == CoordinatorWaiting:
			return c.ask(now)
		}
		return nil
	case AnswerReceived:
		return c.answered(now, e.From, e.Answer)
	case ReadyReceived:
		return c.readied(now, e.From, e.Ready)
	case CommittedReceived:
		return c.committed(now, e.From, e.Committed)
	case RefusedReceived:
		if v := c.view(e.From); v != nil && v.life == e.Refused.Life && e.Refused.Epoch == c.epoch && c.cutting() &&
			!v.committed {
			return c.fail(now, e.From)
		}
		return nil
	}
	panic(fmt.Sprintf("epoch: unknown event %T", e)) // a programming error: the set of events is closed
}

func (c *Coordinator) cutting() bool {
	return c.state == CoordinatorPreparing || c.state == CoordinatorCommitting
}

// asked are the shards that messages go to.
func (c *Coordinator) asked() []ShardID {
	if c.state == CoordinatorHandingOver {
		return c.config.Shards[:1]
	}
	return c.config.Shards
}

func (c *Coordinator) view(s ShardID) *shardView {
	if i, ok := slices.BinarySearch(c.asked(), s); ok && i < len(c.shards) {
		return &c.shards[i]
	}
	return nil
}

func (c *Coordinator) configured(now time.Duration, config Config) []Effect {
	if config.Version.Compare(c.config.Version) <= 0 {
		return nil
	}
	var effects []Effect
	if c.cutting() {
		effects = c.fail(now, c.self)
	}
	c.config, c.firstCut, c.sure, c.failures = config, ID{}, false, 0
	first, ok := config.Coordinator()
	switch {
	case ok && first == c.self:
		c.shards = make([]shardView, len(config.Shards))
		return append(effects, c.ask(now)...)
	case ok && config.Version.By == c.self:
		c.state, c.shards = CoordinatorHandingOver, make([]shardView, 1)
		return append(effects, c.askAgain(now)...)
	}
	c.state, c.shards = CoordinatorOff, nil
	return effects
}

func (c *Coordinator) tick(now time.Duration) []Effect {
	switch {
	case c.state == CoordinatorOff:
		return nil
	case c.state == CoordinatorWaiting && now >= c.next && c.sure:
		return c.prepare(now)
	case c.state == CoordinatorWaiting && now >= c.next:
		return c.ask(now)
	case c.state == CoordinatorWaiting:
		return nil
	case c.state == CoordinatorAsking && now >= c.next: // stale answers say nothing about the present
		return c.ask(now)
	case c.state == CoordinatorHandingOver && now >= c.next:
		return c.askAgain(now)
	case c.cutting() && now >= c.next:
		return c.fail(now, c.missing())
	case now >= c.resend:
		return c.send(now)
	}
	return nil
}

// send sends what the state is about to all shards that have not answered.
func (c *Coordinator) send(now time.Duration) (effects []Effect) {
	c.resend = now + c.timing.Resend
	for i, s := range c.asked() {
		v := &c.shards[i]
		switch {
		case c.state == CoordinatorPreparing && !v.ready:
			effects = append(effects, Send{s, Prepare{Epoch: c.epoch, Life: v.life, Version: c.config.Version}})
		case c.state == CoordinatorCommitting && !v.committed:
			effects = append(effects, Send{s, Commit{Epoch: c.epoch, Life: v.life}})
		case (c.state == CoordinatorAsking || c.state == CoordinatorHandingOver) && !v.answered:
			effects = append(effects, Send{s, Ask{Round: c.round, Config: c.config}})
		}
	}
	return effects
}

// ask begins a round of questions: who is there?
func (c *Coordinator) ask(now time.Duration) []Effect {
	c.state, c.sure = CoordinatorAsking, false
	return c.askAgain(now)
}

func (c *Coordinator) askAgain(now time.Duration) []Effect {
	c.round++
	c.next = now + c.timing.Interval
	for i := range c.shards {
		c.shards[i].answered = false
	}
	return c.send(now)
}

func (c *Coordinator) answered(now time.Duration, from ShardID, a Answer) []Effect {
	v := c.view(from)
	if v == nil || a.Round != c.round || c.state != CoordinatorAsking && c.state != CoordinatorHandingOver {
		return nil
	}
	if a.Config.Version.Compare(c.config.Version) > 0 {
		c.state, c.shards = CoordinatorOff, nil
		return []Effect{Superseded{a.Config}}
	}
	if a.Config.Version != c.config.Version {
		return nil // it was asked before it knew of this one
	}
	if c.state == CoordinatorHandingOver {
		c.state, c.shards = CoordinatorOff, nil
		return nil
	}
	v.answered, v.life, v.acked = true, a.Life, a.Acked
	c.number = max(c.number, a.Last.Number)
	if slices.ContainsFunc(c.shards, func(v shardView) bool { return !v.answered }) {
		return nil
	}
	return c.prepare(now)
}

// prepare begins the next epoch, above all that any shard has heard of.
func (c *Coordinator) prepare(now time.Duration) []Effect {
	c.number++
	c.epoch = ID{Number: c.number, Run: c.run}
	c.state, c.begun, c.next = CoordinatorPreparing, now, now+c.timing.Prepare
	for i := range c.shards {
		c.shards[i].ready, c.shards[i].committed = false, false
	}
	return c.send(now)
}

// readied: when the last shard is ready, none of them acknowledges anything behind its boundary. This instant is what
// the epoch shows.
func (c *Coordinator) readied(now time.Duration, from ShardID, r Ready) []Effect {
	v := c.view(from)
	if v == nil || c.state != CoordinatorPreparing || r.Epoch != c.epoch || r.Life != v.life {
		return nil
	}
	v.ready, v.boundary = true, r.Boundary
	if slices.ContainsFunc(c.shards, func(v shardView) bool { return !v.ready }) {
		return nil
	}
	c.state, c.next = CoordinatorCommitting, c.begun+2*c.timing.Hold
	return c.send(now)
}

func (c *Coordinator) committed(now time.Duration, from ShardID, m Committed) []Effect {
	v := c.view(from)
	if v == nil || c.state != CoordinatorCommitting || m.Epoch != c.epoch || m.Life != v.life {
		return nil
	}
	v.committed, v.acked = true, m.Acked
	if slices.ContainsFunc(c.shards, func(v shardView) bool { return !v.committed }) {
		return nil
	}
	if c.firstCut.IsZero() {
		c.firstCut = c.epoch
	}
	c.failures, c.sure = 0, true
	c.state, c.next = CoordinatorWaiting, max(now, c.begun+c.interval())
	boundaries := make([]uint64, len(c.shards))
	for i, v := range c.shards {
		boundaries[i] = v.boundary
	}
	return []Effect{Completed{Epoch: c.epoch, Config: c.config, Boundaries: boundaries}}
}

// interval is how long an epoch takes until the next one begins. While the copy of a shard is away no epoch is complete
// at the other site, and those of the other shards keep the marks of all: the more a copy lacks, the fewer there are.
func (c *Coordinator) interval() time.Duration {
	_, acked, ok := c.Acked()
	if !ok || acked.IsZero() || acked.Number > c.number { // not known
		return c.timing.Interval
	}
	return c.timing.pause(int(min((c.number-acked.Number)/MaxReportMarks, 64)))
}

// missing is the first shard that has not done its part of the epoch.
func (c *Coordinator) missing() ShardID {
	for i, v := range c.shards {
		if c.state == CoordinatorPreparing && !v.ready || c.state == CoordinatorCommitting && !v.committed {
			return c.config.Shards[i]
		}
	}
	return c.self
}

// fail gives the epoch up. Shards that hold are told, so that they need not wait for their bound.
func (c *Coordinator) fail(now time.Duration, because ShardID) []Effect {
	var effects []Effect
	for i, v := range c.shards {
		if !v.committed {
			effects = append(effects, Send{c.config.Shards[i], Abort{Epoch: c.epoch, Life: v.life}})
		}
	}
	c.state, c.sure = CoordinatorWaiting, false
	c.failures++
	c.next = now + c.timing.retry(c.failures)
	return append(effects, Failed{Epoch: c.epoch, Shard: because})
}
