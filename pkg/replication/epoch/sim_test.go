package epoch

import (
	"flag"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	simSteps = flag.Int("epoch.steps", 4_000_000, "steps of TestSimulation")
	simSeed  = flag.Uint64("epoch.seed", 0, "seed of the first group of TestSimulation; 0 draws one")
)

// TestSimulation runs groups of up to 16 shards through losses of messages, crashes, changes of membership, resyncs and
// promotions. Beside what the world checks at every event, a promotion is tried out again and again, at site B as it is
// at that instant. At the end of each group everything works again: epochs have to come about, and a promotion has to
// end.
func TestSimulation(t *testing.T) {
	steps := *simSteps
	if testing.Short() {
		steps /= 10
	}
	seed := *simSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	begun, first := time.Now(), seed
	var total, groups, shown, promoted int
	var longest time.Duration
	for ; total < steps; seed++ {
		w := simulate(seed)
		if w.problem != nil {
			t.Fatalf("go test -run TestSimulation -epoch.steps 1 -epoch.seed %d: %v\n%s", seed, w.problem,
				strings.Join(w.trace, "\n"))
		}
		groups++
		total += w.steps
		shown += w.shown
		longest = max(longest, w.longest)
		if slices.ContainsFunc(w.copies, func(c *simCopy) bool { return c.promoted != nil }) {
			promoted++
		}
	}
	if shown == 0 || promoted == 0 {
		t.Errorf("%d epochs were shown, %d groups promoted", shown, promoted)
	}
	t.Logf("seed %d: %d steps of %d groups in %s; %d groups promoted, %d times an epoch was shown; longest hold %s", first,
		total, groups, time.Since(begun).Round(time.Millisecond), promoted, shown, longest)
}

// simulate runs one group.
func simulate(seed uint64) *world {
	choose := rand.New(rand.NewPCG(seed, 1))
	sizes := []int{1, 2, 2, 2, 3, 3, 3, 4, 5, 8, 16}
	shards := sizes[choose.IntN(len(sizes))]
	w := newWorld(seed, shards, 1+choose.IntN(min(shards, 4)))
	// In most groups the marks of a copy do not fit into one report.
	reportMarks = []int{1, 2, 5, MaxReportMarks}[choose.IntN(4)]
	defer func() { reportMarks = MaxReportMarks }()
	w.collect(0, Collect{})
	for _, s := range w.shards[1:] { // most shards join at once
		if choose.IntN(8) > 0 {
			w.change([]ShardID{s.id}, nil, false)
		}
	}
	w.every(150*time.Millisecond, func() { w.chaos(choose) })
	w.every(120*time.Millisecond, w.probe)
	w.runFor(time.Duration(1+choose.IntN(8)) * time.Second)
	if w.problem == nil {
		w.calm()
	}
	return w
}

// chaos does something to the group.
func (w *world) chaos(choose *rand.Rand) {
	if w.quiet {
		return
	}
	s, c := w.shards[choose.IntN(len(w.shards))], w.copies[choose.IntN(len(w.copies))]
	node := choose.IntN(len(w.nodes))
	n := w.nodes[node]
	switch dice := choose.IntN(100); {
	case dice < 12:
		if s.up && !s.lost {
			w.crashShard(s, choose.IntN(3) == 0)
			w.after(time.Duration(choose.IntN(800))*time.Millisecond, func() {
				if !s.lost && !s.up {
					w.startShard(s)
				}
			})
		}
	case dice < 24:
		if n.up {
			w.logf("node %d crashes", node)
			n.up = false
			w.after(time.Duration(choose.IntN(800))*time.Millisecond, func() {
				if !n.gone && !n.up {
					w.startNode(n)
					w.duty(node)
				}
			})
		}
	case dice < 34:
		w.loss, w.repeat = 0.3*choose.Float64(), 0.3*choose.Float64()
		w.delay = []time.Duration{200 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 30 * time.Millisecond,
			200 * time.Millisecond}[choose.IntN(5)]
	case dice < 44:
		w.loss, w.repeat, w.delay = 0, 0, time.Millisecond
		clear(w.blocked)
	case dice < 54:
		a, b := choose.IntN(len(w.shards)), choose.IntN(len(w.shards))
		if choose.IntN(2) == 0 {
			b = siteB + node
		}
		if choose.IntN(4) == 0 {
			a = siteB + choose.IntN(len(w.nodes))
		}
		w.blocked[[2]int{a, b}] = true
	case dice < 64:
		if c.exists && w.nodes[c.node].up && c.decision == nil && !w.destroyed {
			w.copy(c, SyncWanted{}, nil)
		}
	case dice < 67:
		if c.exists && w.nodes[c.node].up && !c.syncing {
			w.copy(c, SyncCancelled{}, nil)
		}
	case dice < 75:
		if _, ok := w.joined[s.id]; !ok { // a number is used once
			w.change([]ShardID{s.id}, nil, false)
		}
	case dice < 80:
		if s.config.Has(s.id) && !s.leaving {
			s.leaving = choose.IntN(2) == 0
		}
		if s.leaving && s.acked == len(s.writes) {
			w.change(nil, []ShardID{s.id}, false)
		}
	case dice < 90:
		w.duty(node)
	case dice < 91 && choose.IntN(4) == 0:
		if len(w.shards) > 2 && !w.destroyed { // the node's disk is gone; a person says so
			w.crashShard(s, true)
			s.lost = true
			w.change(nil, []ShardID{s.id}, true)
		}
	case dice < 92 && choose.IntN(4) == 0:
		if !w.destroyed {
			w.change(nil, []ShardID{s.id}, true) // a person says so, wrongly
			s.leaving = true
		}
	case dice < 93 && choose.IntN(8) == 0:
		if len(w.nodes) > 1 && !w.nodes[1].gone {
			w.logf("node 1 is gone")
			w.nodes[1].up, w.nodes[1].gone = false, true
		}
	case dice < 95 && choose.IntN(3) == 0:
		w.logf("site A is destroyed")
		w.destroyed = true
	case dice < 98 && choose.IntN(6) == 0, w.destroyed:
		if n.up {
			w.logf("node %d promotes", node)
			w.collect(node, PromoteWanted{Copies: w.allCopies(), Without: w.lostCopies()})
			if choose.IntN(3) == 0 {
				w.givesUp(node, time.Duration(choose.IntN(400))*time.Millisecond)
			}
		}
	}
}

// givesUp has the caller of a promotion give up after a while. If nothing was decided, nothing is.
func (w *world) givesUp(node int, after time.Duration) {
	n, collector := w.nodes[node], w.nodes[node].collector
	w.after(after, func() {
		if !n.up || n.collector != collector || w.quiet {
			return
		}
		w.logf("the promotion at node %d is given up", node)
		w.collect(node, PromoteCancelled{})
	})
}

// duty lets a node collect, or not any more.
func (w *world) duty(node int) {
	n := w.nodes[node]
	if !n.up {
		return
	}
	if node == 0 || w.rng.IntN(3) == 0 {
		w.collect(node, w.duties())
	} else {
		w.collect(node, Resign{})
	}
}

// calm heals everything that can be healed, and requires that the group works.
func (w *world) calm() {
	w.logf("calm")
	w.quiet, w.loss, w.repeat, w.delay = true, 0, 0, time.Millisecond
	clear(w.blocked)
	for _, s := range w.shards {
		if !s.up && !s.lost {
			w.startShard(s)
		}
	}
	for i, n := range w.nodes {
		if !n.up && !n.gone {
			w.startNode(n)
		}
		if n.up {
			w.collect(i, w.duties())
		}
	}
	config := w.newest()
	lost := func(s ShardID) bool { return w.shards[s].lost }
	if !w.destroyed && len(config.Shards) > 0 && !slices.ContainsFunc(config.Shards, lost) {
		w.goesOn(config)
	}
	node := slices.IndexFunc(w.nodes, func(n *simNode) bool { return n.up })
	if node < 0 || w.problem != nil {
		return
	}
	could := w.everComplete()
	w.destroyed = true
	w.collect(node, PromoteWanted{Copies: w.allCopies(), Without: w.lostCopies()})
	collector := w.nodes[node].collector
	done := w.runUntil(12*time.Second, func() bool { return collector.State() == CollectorDone })
	if w.problem == nil && could && !done {
		w.fail("a promotion does not end: %s, waits for %v", collector.State(), collector.Missing())
	}
}

// newest is the last configuration that a shard knows; without shards if all that had one are lost.
func (w *world) newest() (c Config) {
	for _, s := range w.shards {
		if !s.lost && s.config.Version.Compare(c.Version) > 0 {
			c = s.config
		}
	}
	return c
}

// goesOn requires that an epoch comes about, and that all copies that can show it do.
func (w *world) goesOn(config Config) {
	var before ID
	for _, c := range w.whole {
		before = c.id
	}
	cut := w.runUntil(15*time.Second, func() bool {
		return len(w.whole) > 0 && before.Before(w.whole[len(w.whole)-1].id)
	})
	if w.problem == nil && !cut {
		w.fail("everything works, and no epoch of %s comes about after %s", config, before)
	}
	// No epoch is complete without a copy that is gone; a promotion that has begun may be decided only now.
	ends := func(c *simCopy) bool { return w.nodes[c.node].gone || c.decision != nil }
	behind := func(s ShardID) bool {
		c := w.copies[s]
		if !c.exists {
			return true
		}
		m, _ := c.core.Shown()
		return !before.Before(m.Epoch)
	}
	show := w.runUntil(15*time.Second, func() bool {
		return slices.ContainsFunc(w.copies, ends) || !slices.ContainsFunc(config.Shards, behind)
	})
	if w.problem == nil && !show {
		w.fail("everything works, and not all copies of %s show an epoch after %s", config, before)
	}
}
