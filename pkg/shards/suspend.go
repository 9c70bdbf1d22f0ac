package shards

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
)

// Suspend ends the streams of all shards of a group to the other site, until Resume. The copies stay at the last epoch
// that all of them have. It reports whether a shard was changed. Errors name the shards that refuse; the others are
// suspended, and a repetition does the rest.
func (n *Node) Suspend(ctx context.Context, group string) (changed bool, err error) {
	return n.doAll(ctx, group, &shardpb.DoRequest{Part: shardpb.Part_PART_SUSPEND})
}

// Resume lets all shards of a group replicate again; see Suspend.
func (n *Node) Resume(ctx context.Context, group string) (changed bool, err error) {
	return n.doAll(ctx, group, &shardpb.DoRequest{Part: shardpb.Part_PART_RESUME})
}

// Verify has all shards of a group compare themselves with their copies, each at an ordinal of its own; the status of
// each has the result. It reports whether a comparison began. Errors name the shards that refuse; the others compare.
func (n *Node) Verify(ctx context.Context, group string) (changed bool, err error) {
	return n.doAll(ctx, group, &shardpb.DoRequest{Part: shardpb.Part_PART_VERIFY})
}

// SetEpochInterval changes the time between two epochs, at all shards: whichever is the first cuts them. 0 is the
// default.
func (n *Node) SetEpochInterval(ctx context.Context, group string, millis int64) (changed bool, err error) {
	return n.doAll(ctx, group, &shardpb.DoRequest{Part: shardpb.Part_PART_EPOCH_INTERVAL, EpochMillis: millis})
}

// doAll has all shards do a part that each can do by itself.
func (n *Node) doAll(ctx context.Context, group string, r *shardpb.DoRequest) (changed bool, err error) {
	places, err := n.whole(ctx, group)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, id := range shardsOf(places) {
		answer, err := n.do(ctx, group, places[id], proto.Clone(r).(*shardpb.DoRequest))
		changed = changed || answer.GetChanged()
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return changed, fmt.Errorf("%w; the other shards are done; repeat the command", err)
	}
	return changed, nil
}
