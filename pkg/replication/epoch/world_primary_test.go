package epoch

import (
	"slices"
	"time"
)

// simShard is a shard at site A with its process.
type simShard struct {
	id    ShardID
	clock clock
	core  *Shard
	coord *Coordinator

	// The journal: writes in order, and marks with the number of writes before each. durable counts both.
	writes       []simWrite
	marks        []simMark
	durableWrite int
	durableMark  int
	acked        int
	config       Config

	up, leaving, lost bool
	held              bool
	boundary          int
	heldEpoch         ID
	heldAt            time.Duration
}

type simWrite struct {
	id     int
	causes []uint32 // of this and all earlier writes
}

type simMark struct {
	mark   Mark
	behind int // writes before it
}

// write appends a client's write. All that the client knows of is its cause.
func (w *world) write(s *simShard, c *client) {
	causes := slices.Clone(c.seen)
	if n := len(s.writes); n > 0 {
		for i, v := range s.writes[n-1].causes {
			causes[i] = max(causes[i], v)
		}
	}
	w.written++
	s.writes = append(s.writes, simWrite{id: w.written, causes: causes})
	c.id, c.shard, c.ordinal = w.written, int(s.id), len(s.writes)
}

// ack acknowledges what is durable, up to the boundary where one holds.
func (s *simShard) ack() {
	limit := s.durableWrite
	if s.held {
		limit = min(limit, s.boundary)
	}
	s.acked = max(s.acked, limit)
}

func (w *world) sync(s *simShard) {
	if s.up {
		s.durableWrite, s.durableMark = len(s.writes), len(s.marks)
		s.ack()
	}
}

func (w *world) startShard(s *simShard) {
	var last ID
	if n := len(s.marks); n > 0 {
		last = s.marks[n-1].mark.Epoch
	}
	s.up, s.held = true, false
	s.core = NewShard(s.id, w.life(), s.config, last)
	s.coord = NewCoordinator(s.id, w.life(), w.timing)
	if s.config.Version.Number > 0 {
		w.coordinate(s, Configured{s.config})
	}
}

// crashShard ends the process; without power, what is not durable is gone.
func (w *world) crashShard(s *simShard, power bool) {
	if power {
		s.writes = s.writes[:s.durableWrite]
		for _, m := range s.marks[s.durableMark:] {
			delete(w.cuts[m.mark.Epoch].at, s.id)
		}
		s.marks = s.marks[:s.durableMark]
		w.whole = slices.DeleteFunc(w.whole, func(c *simCut) bool { return len(c.at) < len(c.config.Shards) })
	}
	w.logf("shard %d crashes, power loss %v", s.id, power)
	s.up, s.held = false, false
}

// shard gives an event to the core of a shard. reply takes a message to whom it is for.
func (w *world) shard(s *simShard, e ShardEvent, reply func(Message)) {
	for _, effect := range s.core.Step(e) {
		switch effect := effect.(type) {
		case PersistConfig:
			w.logf("shard %d has configuration %s", s.id, effect.Config)
			s.config = effect.Config
			w.coordinate(s, Configured{s.config})
		case Hold:
			w.logf("shard %d holds %s behind %d", s.id, effect.Epoch, effect.Boundary)
			if s.held {
				w.fail("shard %d holds %s and is to hold %s", s.id, s.heldEpoch, effect.Epoch)
			}
			s.held, s.boundary, s.heldEpoch, s.heldAt = true, int(effect.Boundary), effect.Epoch, w.now
			core, epoch := s.core, effect.Epoch
			w.drawnEvent(s.clock.when(s.clock.read(w.now)+w.timing.Hold), func() {
				if s.up && s.core == core {
					w.shard(s, HoldExpired{epoch}, nil)
				}
			})
		case Release:
			w.logf("shard %d releases %s", s.id, effect.Epoch)
			if !s.held || s.heldEpoch != effect.Epoch {
				w.fail("shard %d releases %s", s.id, effect.Epoch)
			}
			took := w.now - s.heldAt
			if bound := time.Duration(float64(w.timing.Hold)/s.clock.rate) + time.Millisecond; took > bound {
				w.fail("shard %d held acknowledgements for %s", s.id, took)
			}
			w.longest = max(w.longest, took)
			s.held = false
			s.ack()
		case AppendMark:
			w.logf("shard %d marks %s", s.id, effect.Mark)
			if n := len(s.marks); n > 0 && (!s.marks[n-1].mark.Epoch.Before(effect.Mark.Epoch) ||
				s.marks[n-1].mark.Boundary > effect.Mark.Boundary) {
				w.fail("shard %d marks %s behind %s", s.id, effect.Mark, s.marks[n-1].mark)
			}
			s.marks = append(s.marks, simMark{effect.Mark, len(s.writes)})
			w.marked(effect.Mark)
		case Reply:
			if reply != nil {
				reply(effect.Message)
			}
		}
	}
}

// coordinate gives an event to the coordinator of a shard's process.
func (w *world) coordinate(s *simShard, e CoordinatorEvent) {
	for _, effect := range s.coord.Step(s.clock.read(w.now), e) {
		switch effect := effect.(type) {
		case Send:
			to := w.shards[effect.To]
			w.send(int(s.id), int(to.id), func() {
				if to.up {
					w.toShard(to, effect.Message, s)
				}
			})
		case Superseded:
			w.shard(s, Adopt(effect), nil)
		case Completed:
			w.logf("coordinator %d completed %s", s.id, effect.Epoch)
			if c := w.cuts[effect.Epoch]; c == nil {
				w.fail("coordinator %d: epoch %s has no mark anywhere", s.id, effect.Epoch)
			}
		case Failed:
			w.logf("coordinator %d gives %s up because of shard %d", s.id, effect.Epoch, effect.Shard)
		}
	}
	if at, ok := s.coord.Wake(); ok {
		coord := s.coord
		w.drawnEvent(s.clock.when(at), func() {
			if now, ok := coord.Wake(); s.up && s.coord == coord && ok && now <= s.clock.read(w.now) {
				w.coordinate(s, Tick{})
			}
		})
	}
}

func (w *world) toShard(to *simShard, m Message, from *simShard) {
	var e ShardEvent
	switch m := m.(type) {
	case Ask:
		e = AskReceived{m}
	case Prepare:
		e = PrepareReceived{Prepare: m, Head: uint64(len(to.writes))}
	case Commit:
		e = CommitReceived{m}
	case Abort:
		e = AbortReceived{m}
	}
	w.shard(to, e, func(answer Message) {
		w.send(int(to.id), int(from.id), func() {
			if !from.up {
				return
			}
			switch a := answer.(type) {
			case Answer:
				w.coordinate(from, AnswerReceived{to.id, a})
			case Ready:
				w.coordinate(from, ReadyReceived{to.id, a})
			case Committed:
				w.coordinate(from, CommittedReceived{to.id, a})
			case Refused:
				w.coordinate(from, RefusedReceived{to.id, a})
			}
		})
	})
}

// change changes the membership: at the coordinator that there is, or by force at a shard that is up to date. A shard
// that leaves asks for it, so it has the configuration that it leaves.
func (w *world) change(add, remove []ShardID, force bool) {
	for _, s := range w.shards {
		if !s.up || s.lost {
			continue
		}
		if len(remove) > 0 && !force && w.shards[remove[0]].config.Version != s.config.Version {
			continue
		}
		if force && s.config.Version == w.issued && s.config.Has(s.id) && !slices.Contains(remove, s.id) {
			w.issue(s, s.core.Force(remove))
			return
		}
		if force {
			continue
		}
		if next, err := s.coord.Propose(add, remove, w.rng.IntN(4) == 0 && w.untold()); err == nil &&
			next.Version != s.config.Version {
			w.issue(s, next)
			return
		}
	}
}

// untold: no copy has heard of the group, as if it had no peer.
func (w *world) untold() bool {
	return !slices.ContainsFunc(w.copies, func(c *simCopy) bool { return c.exists })
}

func (w *world) issue(s *simShard, next Config) {
	w.logf("shard %d issues %s", s.id, next)
	w.issued = next.Version
	for _, id := range next.Shards {
		if _, ok := w.joined[id]; !ok {
			w.joined[id] = next.Version
		}
	}
	w.shard(s, Adopt{next}, nil)
}
