package shards

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// dropPoll is the time between two tries to have a shard leave while the peer lags behind.
const dropPoll = 200 * time.Millisecond

// Drop takes a shard out of its group, at the primary site. It is in no epoch any more, and its number is not used
// again.
//
// A shard that leaves has to answer and to be empty. The other site has to have an epoch of all shards, and to have
// taken the volumes of this one out; that is waited for. With lost, a person gives up a shard whose node does not
// answer: what was written there since the last epoch is in none, and its copy stays as it is, in no later epoch.
// Errors are core.ErrPrecondition, and core.ErrNotYet where a repetition helps. A shard that is not in the group any
// more is a success.
func (n *Node) Drop(ctx context.Context, group string, id epoch.ShardID, lost bool) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	places := n.of(group)
	config := newestConfig(places)
	if err := openPrimaries(group, places); errors.Is(err, core.ErrPrecondition) {
		return fmt.Errorf("%w; shards leave at the primary site, and a lost copy is given up with slipctl group promote "+
			"--force --without", err)
	} else if err != nil {
		return err
	}
	at, seen := places[id]
	switch {
	case !config.Has(id) && !seen && config.Version.Number == 0:
		return fmt.Errorf("%w: group %s has no shard %d", replication.ErrNotFound, group, id)
	case !config.Has(id) && seen && at.shard.config.Version.Number == 0:
		return fmt.Errorf("%w: shard %d of %s (group %s on node %s) has not joined yet; delete the group there",
			core.ErrPrecondition, id, group, at.shard.groupName, at.node)
	case !config.Has(id):
		return nil
	case lost:
		return n.giveUp(ctx, group, places, config, id)
	}
	if _, err := n.whole(ctx, group); err != nil {
		return fmt.Errorf("%w; a shard whose node is gone for good is given up with --lost", err)
	}
	leaving := func() epoch.ShardID { return id }
	coordinator := func() epoch.ShardID {
		first, _ := newestConfig(n.of(group)).Coordinator()
		return first
	}
	mayLeave := &shardpb.DoRequest{Part: shardpb.Part_PART_MAY_LEAVE}
	if err := n.doInTime(ctx, group, leaving, mayLeave); err != nil {
		return err
	}
	drop := &shardpb.DoRequest{Part: shardpb.Part_PART_DROP, Drop: uint32(id)}
	if err := n.doInTime(ctx, group, coordinator, drop); err != nil {
		return err
	}
	return n.tellLeft(ctx, group, id)
}

// doInTime has a shard do something, again and again while it is not yet time for it.
func (n *Node) doInTime(ctx context.Context, group string, at func() epoch.ShardID, r *shardpb.DoRequest) error {
	for {
		_, err := n.do(ctx, group, n.of(group)[at()], r)
		if !errors.Is(err, core.ErrNotYet) || !pause.For(ctx, dropPoll) {
			return err
		}
	}
}

// tellLeft tells a shard that it has left, so that it takes no volumes any more.
func (n *Node) tellLeft(ctx context.Context, group string, id epoch.ShardID) error {
	if err := n.fresh(ctx); err != nil {
		return err
	}
	places := n.of(group)
	if _, err := n.deliver(ctx, group, id, epoch.Ask{Config: newestConfig(places)}); err != nil {
		return fmt.Errorf("%w: shard %d has left %s, and does not know it yet: %w", core.ErrNotYet, id, group, err)
	}
	if _, err := n.do(ctx, group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_MAY_LEAVE}); err != nil {
		return fmt.Errorf("shard %d has left %s, and a volume joined it at that moment: %w", id, group, err)
	}
	return nil
}

// openPrimaries is an error unless all shards that answer are primary here and take writes.
func openPrimaries(group string, places map[epoch.ShardID]place) error {
	if len(places) == 0 {
		return fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	for id, p := range places {
		if p.shard.role != core.RolePrimary || p.shard.standing.Stand != epoch.StandOpen {
			return fmt.Errorf("%w: shard %d of %s (group %s on node %s) is not primary here, or is being demoted",
				core.ErrPrecondition, id, group, p.shard.groupName, p.node)
		}
	}
	return nil
}

// giveUp has a remaining shard that has the last configuration issue the next one.
func (n *Node) giveUp(ctx context.Context, group string, places map[epoch.ShardID]place, config epoch.Config,
	id epoch.ShardID) error {
	if p, seen := places[id]; seen {
		return fmt.Errorf("%w: shard %d of %s (group %s on node %s) answers, so it is not lost; take its volumes out, and "+
			"let it leave", core.ErrPrecondition, id, group, p.shard.groupName, p.node)
	}
	for _, other := range config.Shards {
		p, seen := places[other]
		if !seen || p.shard.config.Version != config.Version {
			continue
		}
		_, err := n.do(ctx, group, p, &shardpb.DoRequest{Part: shardpb.Part_PART_DROP, Drop: uint32(id), Force: true})
		return err
	}
	return fmt.Errorf("%w: no shard of %s that remains has the last configuration", core.ErrPrecondition, group)
}

// dropPart has a shard of this node issue the configuration without another one.
func (n *Node) dropPart(ctx context.Context, s *replication.Shard, r *shardpb.DoRequest) error {
	id, err := shardFromWire(r.GetDrop())
	if err != nil {
		return fmt.Errorf("%w: %w", core.ErrPrecondition, err)
	}
	if r.GetForce() {
		return s.GiveUp([]epoch.ShardID{id})
	}
	n.mu.Lock()
	runner := n.runners[r.GetGroup()]
	n.mu.Unlock()
	self, _ := s.Identity()
	done := make(chan error, 1)
	if runner == nil || !runner.do(func() { done <- runner.propose(s, self.ID, id) }) {
		return fmt.Errorf("%w: the shard has no coordinator yet", core.ErrNotYet)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// propose has the coordinator beside a shard issue the configuration without another one.
func (r *runner) propose(s *replication.Shard, self, drop epoch.ShardID) error {
	c := r.coordinators[self]
	if c == nil {
		return fmt.Errorf("%w: the shard has no coordinator yet", core.ErrNotYet)
	}
	next, err := c.Propose(nil, []epoch.ShardID{drop}, !s.HasPeer())
	switch {
	case errors.Is(err, epoch.ErrNotYet):
		return fmt.Errorf("%w: %w", core.ErrNotYet, err)
	case err != nil:
		return fmt.Errorf("%w: %w", core.ErrPrecondition, err)
	}
	if err := s.Adopt(next); err != nil {
		return err
	}
	r.carryOut(self, c.Step(r.now(), epoch.Configured{Config: next}))
	return nil
}
