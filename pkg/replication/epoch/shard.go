package epoch

import "fmt"

// ShardState is what a shard does about epochs.
type ShardState string

const (
	// ShardOpen: every durable write is acknowledged.
	ShardOpen ShardState = "open"
	// ShardHolding: what lies behind the boundary of an epoch is held.
	ShardHolding ShardState = "holding"
)

// Shard is the state machine of a shard at the primary site.
//
//	         Prepare: Hold, Ready
//	open ---------------------------> holding (of a later epoch: Release first)
//	  ^    Commit: AppendMark, Release   |
//	  |    Abort, HoldExpired, another   |
//	  +--- configuration: Release -------+
//
// Invariants, with last the highest epoch that it held or marked in this life, or found marked in its journal:
//
//	it holds an epoch         => that epoch is last
//	it appends the mark of E  => it has held E without interruption since it said Ready(E, boundary) in this life
//	marks in the journal ascend, and so do their boundaries
type Shard struct {
	id     ShardID
	life   Life
	config Config
	// last is the highest epoch that was held or marked, marked the highest that was marked, acked the highest whose
	// mark the peer has.
	last, marked, acked ID
	// boundary is that of the held epoch.
	state    ShardState
	boundary uint64
}

// NewShard returns the shard of a process that starts. life was never used before. config is what is durable, zero
// before the first. marked is the last epoch that the journal has a mark of.
//
// What the shard held before the start is not known any more, and need not be: nothing of it was acknowledged, and
// commits of such epochs are for another life.
func NewShard(id ShardID, life Life, config Config, marked ID) *Shard {
	return &Shard{id: id, life: life, config: config, last: marked, marked: marked, state: ShardOpen}
}

// ID is the shard's number.
func (s *Shard) ID() ShardID { return s.id }

// Config is the configuration that it knows.
func (s *Shard) Config() Config { return s.config }

// State says whether acknowledgements are held; epoch is the one that they are held for.
func (s *Shard) State() (state ShardState, epoch ID) {
	if s.state == ShardHolding {
		return s.state, s.last
	}
	return s.state, ID{}
}

// Marked is the last epoch that has a mark in the journal.
func (s *Shard) Marked() ID { return s.marked }

// ShardEvent is something that happened at a shard.
type ShardEvent interface{ shardEvent() }

// AskReceived, PrepareReceived, CommitReceived and AbortReceived are messages of a coordinator.
type (
	AskReceived     struct{ Ask Ask }
	PrepareReceived struct {
		Prepare Prepare
		// Head is the last ordinal of the journal. The caller lets nothing be appended or acknowledged between reading
		// it and the end of the effects.
		Head uint64
	}
	CommitReceived struct{ Commit Commit }
	AbortReceived  struct{ Abort Abort }
)

// HoldExpired: acknowledgements were held for an epoch as long as they may be.
type HoldExpired struct{ Epoch ID }

// MarkAcknowledged: the peer has the mark of an epoch on stable storage.
type MarkAcknowledged struct{ Epoch ID }

// Adopt: the shard is to have a configuration that was issued here; see [Coordinator.Propose] and [Shard.Force].
type Adopt struct{ Config Config }

func (AskReceived) shardEvent()      {}
func (PrepareReceived) shardEvent()  {}
func (CommitReceived) shardEvent()   {}
func (AbortReceived) shardEvent()    {}
func (HoldExpired) shardEvent()      {}
func (MarkAcknowledged) shardEvent() {}
func (Adopt) shardEvent()            {}

// Step takes an event and returns what to do. Effects: PersistConfig, Hold, Release, AppendMark, Reply.
func (s *Shard) Step(e ShardEvent) []Effect {
	switch e := e.(type) {
	case AskReceived:
		effects := s.adopt(e.Ask.Config)
		return append(effects, Reply{Answer{Round: e.Ask.Round, Life: s.life, Last: s.last, Config: s.config,
			Acked: s.acked}})
	case PrepareReceived:
		return s.prepare(e)
	case CommitReceived:
		return s.commit(e.Commit)
	case AbortReceived:
		if e.Abort.Life == s.life {
			return s.giveUp(e.Abort.Epoch)
		}
		return nil
	case HoldExpired:
		return s.giveUp(e.Epoch)
	case MarkAcknowledged:
		if s.acked.Before(e.Epoch) {
			s.acked = e.Epoch
		}
		return nil
	case Adopt:
		return s.adopt(e.Config)
	}
	panic(fmt.Sprintf("epoch: unknown event %T", e)) // a programming error: the set of events is closed
}

func (s *Shard) prepare(e PrepareReceived) []Effect {
	p := e.Prepare
	switch {
	case p.Life != s.life:
		return s.refuse(p.Epoch, RefusedLife)
	case p.Version != s.config.Version || !s.config.Has(s.id):
		return s.refuse(p.Epoch, RefusedConfig)
	case s.state == ShardHolding && p.Epoch == s.last:
		return []Effect{s.ready()} // repeated
	case !s.last.Before(p.Epoch):
		return s.refuse(p.Epoch, RefusedOld)
	}
	effects := s.giveUp(s.last)
	s.state, s.last, s.boundary = ShardHolding, p.Epoch, e.Head
	return append(effects, Hold{Epoch: p.Epoch, Boundary: e.Head}, s.ready())
}

func (s *Shard) commit(c Commit) []Effect {
	switch {
	case c.Life != s.life:
		return s.refuse(c.Epoch, RefusedLife)
	case c.Epoch == s.marked:
		return []Effect{s.committed()} // repeated
	case s.state != ShardHolding || c.Epoch != s.last:
		return s.refuse(c.Epoch, RefusedOld)
	}
	s.state, s.marked = ShardOpen, c.Epoch
	mark := Mark{Epoch: c.Epoch, Shard: s.id, Config: s.config, Boundary: s.boundary}
	return []Effect{AppendMark{mark}, Release{c.Epoch}, s.committed()}
}

// giveUp ends the hold of an epoch without a mark. It is never held again: last stays.
func (s *Shard) giveUp(epoch ID) []Effect {
	if s.state != ShardHolding || epoch != s.last {
		return nil
	}
	s.state = ShardOpen
	return []Effect{Release{epoch}}
}

// adopt takes a newer configuration. An epoch that is held belongs to the one before.
func (s *Shard) adopt(c Config) []Effect {
	if c.Version.Compare(s.config.Version) <= 0 {
		return nil
	}
	effects := s.giveUp(s.last)
	s.config = c
	return append(effects, PersistConfig{c})
}

// Force returns the configuration without shards that a person gave up, for use with [Adopt] at a remaining shard.
// The other shards are not asked: what was written on the lost ones is not part of the group any more.
func (s *Shard) Force(lost []ShardID) Config { return s.config.next(s.id, nil, lost) }

func (s *Shard) ready() Effect {
	return Reply{Ready{Epoch: s.last, Life: s.life, Boundary: s.boundary}}
}

func (s *Shard) committed() Effect {
	return Reply{Committed{Epoch: s.marked, Life: s.life, Acked: s.acked}}
}

func (s *Shard) refuse(epoch ID, reason Refusal) []Effect {
	return []Effect{Reply{Refused{Epoch: epoch, Life: s.life, Reason: reason}}}
}
