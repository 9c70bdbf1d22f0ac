package epoch

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// world simulates a group: shards at site A, nodes with their copies at site B, a network that loses, delays, repeats
// and reorders messages, clocks of different rates, and clients whose writes cause each other across shards. It carries
// out effects as the engine does, with counts in place of records.
type world struct {
	rng   *rand.Rand
	now   time.Duration
	steps int // events that happened
	seq   int // events that were planned
	queue events
	drawn Life
	// problem is the first violation.
	problem error

	timing  Timing
	shards  []*simShard
	nodes   []*simNode
	copies  []*simCopy
	clients []*client
	// cuts are the epochs that have a mark somewhere; whole those that were complete at the primary site.
	cuts  map[ID]*simCut
	whole []*simCut
	// joined is the version of the first configuration that has a shard.
	joined map[ShardID]Version
	// issued is the version of the last configuration.
	issued Version

	loss, repeat float64
	delay        time.Duration
	blocked      map[[2]int]bool
	// destroyed: site A is gone.
	destroyed bool
	// quiet: nothing more breaks.
	quiet   bool
	longest time.Duration
	written int
	shown   int
	trace   []string
}

type event struct {
	at  time.Duration
	seq int
	run func()
}

type events []event

func (q events) Len() int { return len(q) }
func (q events) Less(i, j int) bool {
	return q[i].at < q[j].at || q[i].at == q[j].at && q[i].seq < q[j].seq
}
func (q events) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *events) Push(x any)   { *q = append(*q, x.(event)) }
func (q *events) Pop() any     { e := (*q)[len(*q)-1]; *q = (*q)[:len(*q)-1]; return e }

// clock is one process's: it goes at its own rate and began at its own time.
type clock struct {
	rate   float64
	offset time.Duration
}

func (c clock) read(now time.Duration) time.Duration {
	return c.offset + time.Duration(c.rate*float64(now))
}

// when is the true time at which the clock shows a reading.
func (c clock) when(reading time.Duration) time.Duration {
	return time.Duration(float64(reading-c.offset)/c.rate) + 1
}

type client struct {
	seen    []uint32 // highest acknowledged write that it knows of, of each shard
	shard   int      // where its write is; -1 without one
	ordinal int
	id      int
}

// simCut is an epoch: the boundaries of the shards that have its mark.
type simCut struct {
	id     ID
	config Config
	at     map[ShardID]uint64
}

func newWorld(seed uint64, shards, nodes int) *world {
	w := &world{
		rng: rand.New(rand.NewPCG(seed, 0)), timing: DefaultTiming(), cuts: map[ID]*simCut{}, joined: map[ShardID]Version{},
		delay: time.Millisecond, blocked: map[[2]int]bool{},
	}
	for range nodes {
		w.nodes = append(w.nodes, &simNode{clock: w.newClock(), up: true})
	}
	for i := range shards {
		w.shards = append(w.shards, &simShard{id: ShardID(i), clock: w.newClock(), up: true})
		w.copies = append(w.copies, &simCopy{id: ShardID(i), node: w.rng.IntN(nodes)})
	}
	first := w.shards[0]
	first.config = Found(0)
	w.joined[0] = first.config.Version
	for _, s := range w.shards {
		w.startShard(s)
	}
	for _, n := range w.nodes {
		w.startNode(n)
	}
	for range shards + 1 {
		w.clients = append(w.clients, &client{seen: make([]uint32, shards), shard: -1})
	}
	w.every(4*time.Millisecond, w.clientActs)
	w.every(2*time.Millisecond, func() { w.sync(w.shards[w.rng.IntN(shards)]) })
	w.every(3*time.Millisecond, func() { w.ship(w.copies[w.rng.IntN(shards)]) })
	w.every(10*time.Millisecond, func() { w.apply(w.copies[w.rng.IntN(shards)]) })
	return w
}

func (w *world) newClock() clock {
	return clock{rate: 0.8 + 0.4*w.rng.Float64(), offset: time.Duration(w.rng.IntN(1e9))}
}

// life draws a number that was not used before; their order says nothing.
func (w *world) life() Life {
	w.drawn++
	return w.drawn | Life(w.rng.IntN(1<<16))<<32
}

func (w *world) fail(format string, args ...any) {
	if w.problem == nil {
		w.problem = fmt.Errorf(format, args...)
		w.logf("violation: %v", w.problem)
	}
}

func (w *world) logf(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3f ms ", float64(w.now)/1e6)+fmt.Sprintf(format, args...))
	if len(w.trace) > 400 {
		w.trace = slices.Clone(w.trace[200:])
	}
}

func (w *world) after(d time.Duration, run func()) {
	w.drawnEvent(w.now+d, run)
}

func (w *world) drawnEvent(at time.Duration, run func()) {
	w.seq++
	heap.Push(&w.queue, event{at: max(at, w.now), seq: w.seq, run: run})
}

// every runs something again and again, at random distances.
func (w *world) every(mean time.Duration, run func()) {
	w.after(time.Duration(w.rng.ExpFloat64()*float64(mean)), func() {
		run()
		w.every(mean, run)
	})
}

// step takes the next event.
func (w *world) step() {
	w.steps++
	e := heap.Pop(&w.queue).(event)
	w.now = e.at
	e.run()
}

func (w *world) runFor(d time.Duration) {
	for end := w.now + d; w.problem == nil && w.queue[0].at <= end; {
		w.step()
	}
}

// runUntil runs until something holds, for a time at most.
func (w *world) runUntil(most time.Duration, holds func() bool) bool {
	for end := w.now + most; w.problem == nil && w.now < end; {
		if holds() {
			return true
		}
		w.runFor(100 * time.Millisecond)
	}
	return holds()
}

const siteB = 1000 // nodes of site B have the addresses from here on

// send takes a message from one process to another, or not.
func (w *world) send(from, to int, deliver func()) {
	times := 1
	if w.rng.Float64() < w.repeat {
		times = 2
	}
	for range times {
		if w.rng.Float64() < w.loss || w.blocked[[2]int{from, to}] {
			continue
		}
		w.after(time.Duration(w.rng.ExpFloat64()*float64(w.delay)), func() {
			if !w.destroyed || from >= siteB && to >= siteB {
				deliver()
			}
		})
	}
}

// clientActs: a client sees that its write was acknowledged, hears from another client, or writes.
func (w *world) clientActs() {
	c := w.clients[w.rng.IntN(len(w.clients))]
	if w.destroyed {
		return
	}
	if c.shard >= 0 {
		s := w.shards[c.shard]
		switch {
		case len(s.writes) < c.ordinal || s.writes[c.ordinal-1].id != c.id:
			c.shard = -1 // lost with the machine's power, never acknowledged
		case s.up && s.acked >= c.ordinal:
			c.seen[c.shard] = max(c.seen[c.shard], uint32(c.ordinal))
			c.shard = -1
		}
		return
	}
	if w.rng.IntN(3) == 0 {
		o := w.clients[w.rng.IntN(len(w.clients))]
		for i, n := range o.seen {
			c.seen[i] = max(c.seen[i], n)
		}
	}
	s := w.shards[w.rng.IntN(len(w.shards))]
	if s.up && s.core.Config().Has(s.id) && !s.leaving && !s.lost {
		w.write(s, c)
	}
}

// check says whether an epoch is one instant: no shard shows a write whose cause on another shard is missing.
func (w *world) check(what string, config Config, without []ShardID, at func(ShardID) uint64) {
	for _, j := range config.Shards {
		if slices.Contains(without, j) || at(j) == 0 {
			continue
		}
		causes := w.shards[j].writes[at(j)-1].causes
		for s := range w.shards {
			id := ShardID(s)
			switch {
			case slices.Contains(without, id):
			case config.Has(id) && uint64(causes[s]) > at(id):
				w.fail("%s of %s: shard %d shows up to write %d, whose cause is write %d of shard %d, which shows %d", what,
					config, j, at(j), causes[s], s, at(id))
			case !config.Has(id) && causes[s] > 0 && w.joined[id].Compare(config.Version) > 0:
				w.fail("%s of %s: shard %d shows up to write %d, whose cause is write %d of shard %d, which joined later", what,
					config, j, at(j), causes[s], s)
			}
		}
	}
}

// marked notes a mark in a journal of site A. When the last one is there, the epoch has to be one instant.
func (w *world) marked(m Mark) {
	c := w.cuts[m.Epoch]
	if c == nil {
		c = &simCut{id: m.Epoch, config: m.Config, at: map[ShardID]uint64{}}
		w.cuts[m.Epoch] = c
	}
	if c.config.Version != m.Config.Version {
		w.fail("epoch %s is of %s and of %s", m.Epoch, c.config, m.Config)
	}
	c.at[m.Shard] = m.Boundary
	if len(c.at) < len(m.Config.Shards) {
		return
	}
	w.check(fmt.Sprintf("epoch %s", m.Epoch), m.Config, nil, func(s ShardID) uint64 { return c.at[s] })
	for _, o := range w.whole {
		if o.id.Number == c.id.Number && o.id != c.id {
			w.fail("two complete epochs have number %d", c.id.Number)
		}
		for s, b := range c.at {
			if e, ok := o.at[s]; ok && o.id.Before(c.id) != (e < b) && e != b {
				w.fail("epochs %s and %s: boundaries %d and %d of shard %d", o.id, c.id, e, b, s)
			}
		}
	}
	w.whole = append(w.whole, c)
	if len(w.whole) > 8 {
		w.whole = w.whole[1:]
	}
}
