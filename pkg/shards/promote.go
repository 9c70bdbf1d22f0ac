package shards

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// settlePoll is how often a promotion looks whether all shards are primary.
const settlePoll = 50 * time.Millisecond

// Promote makes all shards of a group primary at this site. Forced: as of the last complete epoch, the same at all of
// them; the nodes of all copies have to answer. Otherwise: with everything that their primaries wrote, if all were
// demoted and everything has arrived. Errors are core.ErrPrecondition, with the shard and the node that are missing, or
// the context's. It may be repeated, and goes on with what an earlier call began.
func (n *Node) Promote(ctx context.Context, group string, force bool) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	places := n.of(group)
	if len(places) == 0 {
		return fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	if force || slices.ContainsFunc(slices.Collect(maps.Values(places)), func(p place) bool { return p.shard.decided }) {
		return n.promoteAtEpoch(ctx, group)
	}
	return n.promotePlanned(ctx, group, places)
}

// secondaries are the shards that were seen as copies, in order.
func secondaries(places map[epoch.ShardID]place) (list []epoch.ShardID) {
	for id, p := range places {
		if p.shard.role == core.RoleSecondary {
			list = append(list, id)
		}
	}
	slices.Sort(list)
	return list
}

// copiesOf are the shards that a promotion is about: those that were seen, and those that their epochs name.
func copiesOf(places map[epoch.ShardID]place) (list []epoch.ShardID) {
	for id, p := range places {
		list = append(list, id)
		list = append(list, p.shard.config.Shards...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func (n *Node) promotePlanned(ctx context.Context, group string, places map[epoch.ShardID]place) error {
	list := copiesOf(places)
	for _, id := range list {
		p, seen := places[id]
		switch {
		case !seen:
			return n.missing(group, []epoch.ShardID{id})
		case p.shard.role == core.RoleSecondary && !p.shard.arrived:
			return fmt.Errorf("%w: shard %d of %s (group %s on node %s) was not demoted at the other site, or not everything "+
				"has arrived; demote all shards there first, or promote with force", core.ErrNotYet, id, group,
				p.shard.groupName, p.node)
		}
	}
	for _, id := range list {
		p := places[id]
		var err error
		if p.shard.role == core.RolePrimary {
			continue
		} else if s := n.shard(group, id); s != nil {
			err = s.PromotePlanned()
		} else {
			_, err = p.neighbour.PromotePlanned(ctx, &shardpb.PromotePlannedRequest{Group: group, Shard: uint32(id)})
		}
		if err != nil {
			return fmt.Errorf("%w: shard %d of %s (group %s on node %s): %s; repeat the promotion", core.ErrPrecondition, id,
				group, p.shard.groupName, p.node, untrusted.Reason(err.Error()))
		}
	}
	return nil
}

// wishAgain is the time after which a promotion that has not ended is asked for again.
const wishAgain = 5 * time.Second

// wish asks the collector for a promotion of the copies that are seen now. It is repeated as long as the caller waits:
// a node that was away at first is seen later, and a collector that began anew does not know of the wish.
func (n *Node) wish(r *runner, group string) {
	copies := secondaries(n.of(group))
	if len(copies) == 0 {
		return
	}
	r.do(func() {
		if r.collector == nil {
			r.collector = epoch.NewCollector(newLife(), timingOf(0))
		}
		r.carryOut(0, r.collector.Step(r.now(), epoch.PromoteWanted{Copies: copies}))
	})
}

func (n *Node) promoteAtEpoch(ctx context.Context, group string) error {
	n.mu.Lock()
	r := n.runners[group]
	n.mu.Unlock()
	if r == nil {
		return fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	var wished time.Time
	ticker := time.NewTicker(settlePoll)
	defer ticker.Stop()
	for {
		if err := n.fresh(ctx); err != nil {
			return errors.Join(n.unfinished(r, group), err)
		}
		if time.Since(wished) > wishAgain {
			n.wish(r, group)
			wished = time.Now()
		}
		places := n.of(group)
		done := len(places) > 0
		// Also those that only the epochs name: a node that has just started does not tell of its shards yet.
		for _, id := range copiesOf(places) {
			p, seen := places[id]
			done = done && seen && p.shard.role != core.RoleSecondary
		}
		if done && len(n.silentNodes()) == 0 {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return errors.Join(n.unfinished(r, group), ctx.Err())
		}
	}
}

// unfinished says what a promotion waits for.
func (n *Node) unfinished(r *runner, group string) error {
	missing := make(chan []epoch.ShardID, 1)
	if r.do(func() {
		var list []epoch.ShardID
		if r.collector != nil {
			list = r.collector.Missing()
		}
		missing <- list
	}) {
		select {
		case list := <-missing:
			if len(list) > 0 {
				return n.missing(group, list)
			}
		case <-r.ctx.Done():
		}
	}
	return fmt.Errorf("%w: group %s has no complete epoch at this site that all shards can be promoted at, or a shard is "+
		"still being promoted%s; repeat the promotion", core.ErrPrecondition, group, n.silence())
}

// missing is the error for shards that were not heard of.
func (n *Node) missing(group string, list []epoch.ShardID) error {
	var names []string
	places := n.of(group)
	for _, id := range list {
		name := fmt.Sprintf("shard %d", id)
		if p, ok := places[id]; ok {
			name += fmt.Sprintf(" (group %s on node %s)", p.shard.groupName, p.node)
		}
		names = append(names, name)
	}
	return fmt.Errorf("%w: %s of %s did not answer%s; see that the replicators of all nodes of this site run, and repeat "+
		"the promotion", core.ErrPrecondition, strings.Join(names, ", "), group, n.silence())
}

func (n *Node) silence() string {
	silent := n.silentNodes()
	if len(silent) == 0 {
		return ""
	}
	return "; no answer from " + strings.Join(silent, ", ")
}
