package shards

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

const (
	// cutPoll is the time between two looks at whether all shards have the mark of the last epoch.
	cutPoll = 20 * time.Millisecond
	// closePoll is the time between two looks at whether all shards have whole copies.
	closePoll = 200 * time.Millisecond
)

// Demote demotes all shards of a group at this site. First none of them takes writes any more; then an epoch is cut,
// which has everything that was ever written; then each is demoted. It returns that epoch, or zero if the shards follow
// the other site or were demoted otherwise.
//
// The copies of all shards have to be whole and connected; that is waited for. Errors are core.ErrPrecondition with the
// shard that refuses, and no shard was changed; or they name the shard at which the call stopped, and a repetition at
// any node goes on. Promote takes back what was done. Until then no shard of the group takes writes.
func (n *Node) Demote(ctx context.Context, group string) (epoch.ID, error) {
	for {
		places, err := n.whole(ctx, group)
		if err != nil {
			return epoch.ID{}, err
		}
		step, err := epoch.NextOfDemotion(standings(places))
		switch {
		case err != nil:
			return epoch.ID{}, fmt.Errorf("%w: group %s is demoted in part: %w; take that back first, by promoting the group "+
				"at this site, and demote it again", core.ErrPrecondition, group, err)
		case step.Done:
			return step.Epoch, nil
		case len(step.Close) > 0:
			err = n.closeWrites(ctx, group, places, step.Close)
			if errors.Is(err, core.ErrNotYet) && pause.For(ctx, closePoll) {
				continue
			}
		case step.Cut:
			err = n.cut(ctx, group, places)
		}
		for _, s := range step.Demote {
			if _, err = n.do(ctx, group, places[s.Shard], &shardpb.DoRequest{Part: shardpb.Part_PART_DEMOTE,
				Closing: uint64(s.Closing), Epoch: idToWire(step.Epoch)}); err != nil {
				err = fmt.Errorf("%w; no shard of the group takes writes; repeat the demotion, or take it back by promoting the "+
					"group here", err)
				break
			}
		}
		if err != nil {
			return epoch.ID{}, err
		}
	}
}

func standings(places map[epoch.ShardID]place) (list []epoch.Standing) {
	for _, id := range shardsOf(places) {
		list = append(list, places[id].shard.standing)
	}
	return list
}

// closeWrites closes shards. If one refuses, those that were closed by this call are opened again.
func (n *Node) closeWrites(ctx context.Context, group string, places map[epoch.ShardID]place,
	list []epoch.ShardID) error {
	var closed []epoch.ShardID
	for _, id := range list {
		answer, err := n.do(ctx, group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_CLOSE})
		if answer.GetChanged() {
			closed = append(closed, id)
		}
		if err == nil {
			continue
		}
		for _, id := range closed {
			_, openErr := n.do(context.WithoutCancel(ctx), group, places[id], &shardpb.DoRequest{Part: shardpb.Part_PART_OPEN})
			err = errors.Join(err, openErr)
		}
		return err
	}
	return nil
}

// cut asks for an epoch, and waits for a moment.
func (n *Node) cut(ctx context.Context, group string, places map[epoch.ShardID]place) error {
	n.hurry(ctx, group, places)
	if !pause.For(ctx, cutPoll) {
		return fmt.Errorf("group %s: no shard takes writes, and there is no epoch yet that has everything, since not all "+
			"shards are in one or not all nodes reach each other%s; repeat the demotion, or take it back by promoting the "+
			"group here: %w", group, n.silence(), ctx.Err())
	}
	return nil
}

// mustTakeBack reports whether a demotion of the group has begun, and no other site has taken over.
func mustTakeBack(places map[epoch.ShardID]place) (begun bool) {
	for _, s := range standings(places) {
		switch s.Stand {
		case epoch.StandFollowing:
			return false
		case epoch.StandDemoted, epoch.StandClosed:
			begun = true
		}
	}
	return begun
}

// takeBack takes a demotion back. No shard takes writes before all are primary.
func (n *Node) takeBack(ctx context.Context, group string, force bool) error {
	places, err := n.whole(ctx, group)
	if err != nil {
		return err
	}
	for _, part := range []*shardpb.DoRequest{{Part: shardpb.Part_PART_TAKE_BACK, Force: force},
		{Part: shardpb.Part_PART_OPEN}} {
		for _, id := range shardsOf(places) {
			if _, err := n.do(ctx, group, places[id], part); err != nil {
				return fmt.Errorf("%w; no shard of the group that is not open takes writes before all are primary here; repeat "+
					"the promotion", err)
			}
		}
	}
	return nil
}
