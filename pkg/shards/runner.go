package shards

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// runner works on one group. Its goroutine alone uses the state machines.
type runner struct {
	node  *Node
	group string
	ctx   context.Context
	stop  context.CancelFunc
	// tasks are what others want the goroutine to do.
	tasks chan func()
	began time.Time

	coordinators map[epoch.ShardID]*epoch.Coordinator
	collector    *epoch.Collector
	// wishes are those of the promotions that wait, in the order in which they began.
	wishes []*wish

	mu sync.Mutex
	// inFlight counts the calls to each shard.
	inFlight map[epoch.ShardID]int
}

// maxInFlight bounds the calls to one shard: messages may be lost, and a node that is away gets no more of them.
const maxInFlight = 4

func newRunner(n *Node, group string) *runner {
	r := &runner{node: n, group: group, tasks: make(chan func(), 16), began: time.Now(),
		coordinators: map[epoch.ShardID]*epoch.Coordinator{}, inFlight: map[epoch.ShardID]int{}}
	r.ctx, r.stop = context.WithCancel(n.ctx)
	return r
}

// now is a reading of a clock that only goes forward.
func (r *runner) now() time.Duration { return time.Since(r.began) }

// do has the goroutine do something; it reports false if there is none any more.
func (r *runner) do(task func()) bool {
	select {
	case r.tasks <- task:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// refresh has the goroutine look at where the shards are now. It does not wait.
func (r *runner) refresh() {
	select {
	case r.tasks <- r.look:
	default: // there is enough to do, and the next round comes
	}
}

func (r *runner) loop() {
	defer r.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case task := <-r.tasks:
			task()
		case <-timer.C:
			for id, c := range r.coordinators {
				r.carryOut(id, c.Step(r.now(), epoch.Tick{}))
			}
			if r.collector != nil {
				r.carryOut(0, r.collector.Step(r.now(), epoch.Tick{}))
			}
		}
		timer.Reset(r.wait())
	}
}

// wait is the time until the next Tick.
func (r *runner) wait() time.Duration {
	next := time.Hour
	for _, c := range r.coordinators {
		if at, ok := c.Wake(); ok {
			next = min(next, at-r.now())
		}
	}
	if r.collector != nil {
		if at, ok := r.collector.Wake(); ok {
			next = min(next, at-r.now())
		}
	}
	return max(next, 0)
}

// look brings the state machines up to what the nodes have.
func (r *runner) look() {
	places := r.node.of(r.group)
	primaries := map[epoch.ShardID]bool{}
	for id, p := range places {
		if p.shard.role == core.RolePrimary && p.neighbour == nil {
			primaries[id] = true
		}
	}
	for id := range r.coordinators {
		if !primaries[id] {
			delete(r.coordinators, id)
		}
	}
	for id := range primaries {
		r.coordinate(id, places)
	}
	r.collect(secondaries(places), places)
}

// coordinate brings the coordinator beside a primary up to date. Number 0 founds the group, and the coordinator takes
// in the shards that are primary at this site and in no group yet.
func (r *runner) coordinate(id epoch.ShardID, places map[epoch.ShardID]place) {
	s := r.node.shard(r.group, id)
	if s == nil {
		return
	}
	now, _ := s.Identity()
	if now.Config.Version.Number == 0 && id == 0 {
		if err := s.Adopt(epoch.Found(id)); err != nil {
			klog.ErrorS(err, "The group cannot be founded yet", "group", r.group)
			return
		}
		now, _ = s.Identity()
	}
	c := r.coordinators[id]
	if c == nil {
		c = epoch.NewCoordinator(id, newLife(), timingOf(now.EpochMillis))
		r.coordinators[id] = c
	}
	c.SetTiming(r.now(), timingOf(now.EpochMillis))
	r.carryOut(id, c.Step(r.now(), epoch.Configured{Config: now.Config}))
	if first, ok := now.Config.Coordinator(); !ok || first != id {
		return
	}
	var joining []epoch.ShardID
	for other, p := range places {
		if p.shard.role == core.RolePrimary && p.shard.config.Version.Number == 0 && !now.Config.Has(other) {
			joining = append(joining, other)
		}
	}
	if len(joining) == 0 {
		return
	}
	next, err := c.Propose(joining, nil, false)
	if err == nil {
		err = s.Adopt(next)
	}
	if err != nil {
		klog.ErrorS(err, "Shards cannot join the group yet", "group", r.group, "shards", joining)
		return
	}
	r.carryOut(id, c.Step(r.now(), epoch.Configured{Config: next}))
}

// collect runs the collector if this node has the copy with the lowest number, or promotes.
func (r *runner) collect(copies []epoch.ShardID, places map[epoch.ShardID]place) {
	mine := len(copies) > 0 && places[copies[0]].neighbour == nil
	if mine && r.collector == nil {
		r.collector = epoch.NewCollector(newLife(), timingOf(0))
	}
	if r.collector == nil {
		return
	}
	if mine {
		undecided := slices.DeleteFunc(slices.Clone(copies), func(id epoch.ShardID) bool { return places[id].shard.decided })
		r.carryOut(0, r.collector.Step(r.now(), epoch.Collect{Copies: copies, Undecided: undecided}))
	} else {
		r.carryOut(0, r.collector.Step(r.now(), epoch.Resign{}))
	}
	if len(copies) == 0 && r.collector.State() != epoch.CollectorDeciding {
		r.collector = nil // promoted, or not a secondary any more
	}
}

// carryOut carries out effects of the coordinator beside a shard, or of the collector.
func (r *runner) carryOut(self epoch.ShardID, effects []epoch.Effect) {
	for _, effect := range effects {
		switch effect := effect.(type) {
		case epoch.Send:
			r.send(self, effect)
		case epoch.Failed:
			klog.V(2).InfoS("An epoch was given up", "group", r.group, "epoch", effect.Epoch, "shard", effect.Shard)
		case epoch.Superseded:
			if s := r.node.shard(r.group, self); s != nil {
				if err := s.Adopt(effect.Config); err != nil {
					klog.ErrorS(err, "The configuration of the group is not taken over yet", "group", r.group)
				}
			}
		case epoch.Promoted:
			klog.InfoS("A group is promoted as a whole", "group", r.group, "epoch", effect.Decision.Epoch,
				"shards", effect.Decision.Config.Shards, "without", effect.Decision.Without)
		}
	}
}

// send sends a message, and has the goroutine take the answer.
func (r *runner) send(self epoch.ShardID, m epoch.Send) {
	r.mu.Lock()
	full := r.inFlight[m.To] >= maxInFlight
	if !full {
		r.inFlight[m.To]++
	}
	r.mu.Unlock()
	if full {
		return
	}
	r.node.wg.Go(func() {
		answer, err := r.node.deliver(r.ctx, r.group, m.To, m.Message)
		r.mu.Lock()
		r.inFlight[m.To]--
		r.mu.Unlock()
		if err != nil {
			klog.V(4).InfoS("A message to a shard was lost", "group", r.group, "shard", m.To, "reason", err)
		}
		if answer != nil {
			r.do(func() { r.take(self, m.To, answer) })
		}
	})
}

// take takes an answer.
func (r *runner) take(self, from epoch.ShardID, answer epoch.Message) {
	var toCoordinator epoch.CoordinatorEvent
	var toCollector epoch.CollectorEvent
	switch a := answer.(type) {
	case epoch.Answer:
		toCoordinator = epoch.AnswerReceived{From: from, Answer: a}
	case epoch.Ready:
		toCoordinator = epoch.ReadyReceived{From: from, Ready: a}
	case epoch.Committed:
		toCoordinator = epoch.CommittedReceived{From: from, Committed: a}
	case epoch.Refused:
		toCoordinator = epoch.RefusedReceived{From: from, Refused: a}
	case epoch.Report:
		toCollector = epoch.ReportReceived{From: from, Report: a}
	case epoch.Outdated:
		toCollector = epoch.OutdatedReceived{From: from, Outdated: a}
	case epoch.Decided:
		toCollector = epoch.DecidedReceived{From: from, Decided: a}
	}
	if c := r.coordinators[self]; toCoordinator != nil && c != nil {
		r.carryOut(self, c.Step(r.now(), toCoordinator))
	}
	if toCollector != nil && r.collector != nil {
		r.carryOut(0, r.collector.Step(r.now(), toCollector))
	}
}

// timingOf is the timing with a time between epochs; 0 for the default.
func timingOf(epochMillis int64) epoch.Timing {
	t := epoch.DefaultTiming()
	if epochMillis > 0 {
		t.Interval = time.Duration(epochMillis) * time.Millisecond
		t.MaxPause = max(t.MaxPause, t.Interval)
	}
	return t
}

func newLife() epoch.Life { return replication.NewLife(uuid.New()) }
