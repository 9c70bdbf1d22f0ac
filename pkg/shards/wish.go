package shards

import (
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// wish is what the caller of a promotion wants. The collector promotes for as long as one of them waits, and as the
// last one of these said: what a person has dropped must not happen by itself when a node comes back, hours later.
type wish struct {
	// lost are the shards that the caller gave up.
	lost []epoch.ShardID
	// found: only a decision that stands is to be carried out. The caller did not force the promotion.
	found bool
}

// outlook says what may still happen after a promotion that ended with an error, for people.
type outlook string

const (
	promotionOff     outlook = "no epoch was decided, so nothing more is promoted without another command"
	promotionDecided outlook = "an epoch was decided: if a copy has heard of it, the other ones are promoted at it too " +
		"when they answer, without another command"
	promotionWanted  outlook = "another command for the same promotion still waits, and may carry it out"
	promotionUnknown outlook = "this node stops, or has no shard of the group any more, so it is not known whether an " +
		"epoch was decided"
)

// want asks the collector for a promotion of the copies that are seen now. It is repeated as long as the caller waits:
// a node that was away at first is seen later, and a collector that began anew does not know of the wish.
func (r *runner) want(w *wish) {
	r.do(func() {
		if !slices.Contains(r.wishes, w) {
			r.wishes = append(r.wishes, w)
		}
		r.promote()
	})
}

// wished is what the collector is to do: what the last caller said that forces the promotion, if there is one.
func (r *runner) wished() (w *wish) {
	for _, w = range slices.Backward(r.wishes) {
		if !w.found {
			return w
		}
	}
	return w
}

// promote has the collector promote. Only the runner's goroutine calls it.
func (r *runner) promote() {
	w := r.wished()
	copies := secondaries(r.node.of(r.group))
	if len(copies) == 0 {
		return
	}
	if r.collector == nil {
		r.collector = epoch.NewCollector(newLife(), timingOf(0))
	}
	r.carryOut(0, r.collector.Step(r.now(), epoch.PromoteWanted{Copies: copies, Without: w.lost, Found: w.found}))
}

// giveUp withdraws a wish, and returns when the collector knows of that.
func (r *runner) giveUp(w *wish) outlook {
	result := make(chan outlook, 1)
	r.do(func() {
		before := r.wished()
		r.wishes = slices.DeleteFunc(r.wishes, func(other *wish) bool { return other == w })
		switch {
		case len(r.wishes) > 0 && r.wished() != before:
			r.promote()
		case len(r.wishes) == 0 && r.collector != nil:
			r.carryOut(0, r.collector.Step(r.now(), epoch.PromoteCancelled{}))
		}
		switch {
		case r.collector != nil && r.collector.MayPromote():
			result <- promotionDecided
		case len(r.wishes) > 0:
			result <- promotionWanted
		default:
			result <- promotionOff
		}
	})
	select {
	case found := <-result:
		return found
	case <-r.ctx.Done():
		return promotionUnknown
	}
}
