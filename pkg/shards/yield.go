package shards

import (
	"context"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// ShardYield is what a shard gives up, or would.
type ShardYield struct {
	ID              epoch.ShardID
	Node, GroupName string
	// Plan is nil where the shard wrote nothing past the fork.
	Plan *replication.YieldPlan
}

// Yield has all shards of a group give way to the other site, where the group was promoted as a whole: each goes back
// to its end of the epoch of that promotion, and keeps what it wrote behind it as a tail of its own. Shards that follow
// already are left out, unless all do. With dryRun nothing is changed, and the result is what would be given up.
//
// First all shards are asked whether they can. Errors are core.ErrPrecondition with a shard that cannot, and nothing
// was changed; or they name the shard at which the call stopped, and a repetition at any node goes on. A forced
// promotion takes back what has not begun to be undone.
func (n *Node) Yield(ctx context.Context, group string, dryRun bool) ([]ShardYield, error) {
	places, err := n.whole(ctx, group)
	if err != nil {
		return nil, err
	}
	var all, left []ShardYield
	for _, id := range shardsOf(places) {
		y := ShardYield{ID: id, Node: places[id].node, GroupName: places[id].shard.groupName}
		all = append(all, y)
		if places[id].shard.role != core.RoleSecondary {
			left = append(left, y)
		}
	}
	if len(left) == 0 {
		left = all
	}
	for i := range left {
		answer, err := n.do(ctx, group, places[left[i].ID], &shardpb.DoRequest{Part: shardpb.Part_PART_PLAN_YIELD})
		if err == nil {
			left[i].Plan, err = planFromWire(answer.GetYield())
		}
		if err != nil {
			return nil, fmt.Errorf("%w; no shard was changed", err)
		}
	}
	if dryRun {
		return left, nil
	}
	for i := range left {
		answer, err := n.do(ctx, group, places[left[i].ID], &shardpb.DoRequest{Part: shardpb.Part_PART_YIELD})
		if err != nil {
			return nil, fmt.Errorf("%w; shards before it give way: repeat the command", err)
		}
		now, err := planFromWire(answer.GetYield())
		if err != nil {
			return nil, err
		}
		if now != nil && left[i].Plan != nil {
			left[i].Plan.Yield = now.Yield
		}
	}
	return left, nil
}

func planToWire(p *replication.YieldPlan) *shardpb.Yield {
	if p == nil {
		return nil
	}
	y := &p.Yield
	return &shardpb.Yield{Stage: string(y.Stage), Timeline: y.Timeline, Fork: y.Fork, Head: y.Head, All: y.All,
		Reason: y.Reason, TailBytes: y.TailBytes, CopiedBytes: y.CopiedBytes, Writes: p.Tail.Writes, Bytes: p.Tail.Bytes,
		FirstUnixNanos: p.Tail.FirstUnixNanos, LastUnixNanos: p.Tail.LastUnixNanos, Partial: p.Tail.Partial,
		VolumeIds: p.VolumeIDs, SizeBytes: p.SizeBytes}
}

// planFromWire is nil for nil. What it says is shown to people, and nothing is decided by it.
func planFromWire(w *shardpb.Yield) (*replication.YieldPlan, error) {
	if w == nil {
		return nil, nil
	}
	for _, id := range w.GetVolumeIds() {
		if err := untrusted.CheckName("volume", id); err != nil {
			return nil, err
		}
	}
	return &replication.YieldPlan{
		Yield: core.Yield{Stage: core.YieldStage(untrusted.Reason(w.GetStage())),
			Timeline: untrusted.Reason(w.GetTimeline()), Fork: w.GetFork(), Head: w.GetHead(), All: w.GetAll(),
			Reason: untrusted.Reason(w.GetReason()), TailBytes: w.GetTailBytes(), CopiedBytes: w.GetCopiedBytes()},
		Tail: blockdev.SnapshotTail{Writes: w.GetWrites(), Bytes: w.GetBytes(), FirstUnixNanos: w.GetFirstUnixNanos(),
			LastUnixNanos: w.GetLastUnixNanos(), Partial: w.GetPartial()},
		VolumeIDs: w.GetVolumeIds(), SizeBytes: w.GetSizeBytes(),
	}, nil
}
