package shards

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// takeBackPatience is how long a shard waits for its peer's word that it did not take over.
const takeBackPatience = 10 * time.Second

// whole returns all shards of a group, as they are now. Those that only the epochs name are an error: nothing is done
// to a part of a group.
func (n *Node) whole(ctx context.Context, group string) (map[epoch.ShardID]place, error) {
	if err := n.fresh(ctx); err != nil {
		return nil, err
	}
	places := n.of(group)
	if len(places) == 0 {
		return nil, fmt.Errorf("%w: this node has no shard of %q", replication.ErrNotFound, group)
	}
	list := shardsOf(places)
	if missing := unseen(places, list); len(missing) > 0 {
		return nil, n.missing(group, missing)
	}
	maps.DeleteFunc(places, func(id epoch.ShardID, _ place) bool { return !slices.Contains(list, id) })
	return places, nil
}

// do has a shard do its part, wherever it is. Errors name the shard.
func (n *Node) do(ctx context.Context, group string, p place, r *shardpb.DoRequest) (answer *shardpb.DoResponse,
	err error) {
	r.Group, r.Shard = group, uint32(p.shard.id)
	if p.neighbour == nil {
		if s := n.shard(group, p.shard.id); s != nil {
			answer, err = n.part(ctx, s, r)
		} else {
			err = fmt.Errorf("%w: it is not open", core.ErrNotYet)
		}
	} else {
		answer, err = p.neighbour.Do(ctx, r)
	}
	if err != nil {
		return nil, p.failure(ctx, err)
	}
	return answer, nil
}

// failure is an error of a call to a shard.
func (p place) failure(ctx context.Context, err error) error {
	kind := core.ErrPrecondition
	switch {
	case errors.Is(err, core.ErrNotYet), status.Code(err) == codes.Aborted, status.Code(err) == codes.Unavailable:
		kind = core.ErrNotYet
	case ctx.Err() != nil:
		kind = ctx.Err()
	}
	text := strings.TrimPrefix(status.Convert(err).Message(), core.ErrPrecondition.Error()+": ") // kind says it
	return fmt.Errorf("%w: shard %d of %s (group %s on node %s): %s", kind, p.shard.id, p.shard.group, p.shard.groupName,
		p.node, untrusted.Reason(text))
}

// part does the part of a shard of this node.
func (n *Node) part(ctx context.Context, s *replication.Shard, r *shardpb.DoRequest) (*shardpb.DoResponse, error) {
	answer := &shardpb.DoResponse{}
	var err error
	switch r.GetPart() {
	case shardpb.Part_PART_PROMOTE:
		err = s.PromotePlanned()
	case shardpb.Part_PART_PROMOTE_SEPARATE:
		err = s.PromoteSeparate()
	case shardpb.Part_PART_CLOSE:
		answer.Changed, err = s.CloseWrites()
	case shardpb.Part_PART_OPEN:
		err = s.OpenWrites()
	case shardpb.Part_PART_CUT:
		n.cutNow(r.GetGroup(), epoch.ShardID(r.GetShard()))
	case shardpb.Part_PART_DEMOTE:
		err = s.Demote(epoch.Life(r.GetClosing()), idFromWire(r.GetEpoch()))
	case shardpb.Part_PART_TAKE_BACK:
		ctx, cancel := context.WithTimeout(ctx, takeBackPatience)
		defer cancel()
		err = s.TakeBack(ctx, r.GetForce())
	case shardpb.Part_PART_HAND_OVER:
		err = s.HandOver(ctx)
	case shardpb.Part_PART_SUSPEND:
		answer.Changed, err = s.Suspend()
	case shardpb.Part_PART_RESUME:
		answer.Changed, err = s.Resume()
	case shardpb.Part_PART_BOOKMARK:
		err = s.Bookmark(r.GetLabel(), idFromWire(r.GetEpoch()))
	case shardpb.Part_PART_FIND_BOOKMARK:
		b, findErr := s.BookmarkOf(r.GetLabel())
		if findErr == nil {
			answer.View = &shardpb.ViewFound{Epoch: b.Epoch}
		}
	case shardpb.Part_PART_MAY_LEAVE:
		err = s.MayLeave()
	case shardpb.Part_PART_DROP:
		err = n.dropPart(ctx, s, r)
	case shardpb.Part_PART_VERIFY:
		answer.Changed, err = s.Verify()
	case shardpb.Part_PART_EPOCH_INTERVAL:
		answer.Changed, err = s.SetEpochInterval(r.GetEpochMillis())
	case shardpb.Part_PART_PLAN_YIELD:
		var plan *replication.YieldPlan
		plan, err = s.PlanYield(ctx)
		answer.Yield = planToWire(plan)
	case shardpb.Part_PART_YIELD:
		var y *core.Yield
		if y, err = s.Yield(ctx); y != nil {
			answer.Yield = planToWire(&replication.YieldPlan{Yield: *y})
		}
	case shardpb.Part_PART_FIND_VIEW, shardpb.Part_PART_OPEN_VIEW, shardpb.Part_PART_CLOSE_VIEW:
		answer, err = n.viewPart(ctx, s, r)
	default:
		err = fmt.Errorf("%w: part %d of a command is not known; upgrade the older node", core.ErrPrecondition, r.GetPart())
	}
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// cutNow has the coordinator beside a shard cut the next epoch at once, if it can.
func (n *Node) cutNow(group string, id epoch.ShardID) {
	n.mu.Lock()
	r := n.runners[group]
	n.mu.Unlock()
	if r == nil {
		return
	}
	r.do(func() {
		if c := r.coordinators[id]; c != nil {
			r.carryOut(id, c.Step(r.now(), epoch.CutNow{}))
		}
	})
}

// Do implements shardpb.ShardsServer.
func (v *Server) Do(ctx context.Context, r *shardpb.DoRequest) (*shardpb.DoResponse, error) {
	s, err := v.shard(r.GetGroup(), r.GetShard())
	if err != nil {
		return nil, err
	}
	answer, err := v.node.part(ctx, s, r)
	if err != nil {
		return nil, toStatus(err)
	}
	return answer, nil
}
