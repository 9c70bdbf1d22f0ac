package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

const (
	// fixPatience is how long an epoch is looked for that all shards can be opened at.
	fixPatience = 15 * time.Second
	// fixInterval is the time between two tries.
	fixInterval = 50 * time.Millisecond
	// fixTimeout bounds a call to one shard: it may be in the middle of a pass of apply.
	fixTimeout = 10 * time.Second
)

// Fixed is an epoch at which all shards of a group can be opened and cut, for half a minute or until Release.
type Fixed struct {
	Epoch epoch.ID
	// Shards are those of the epoch, ascending.
	Shards []epoch.ShardID
	// Holder is for Node.Release.
	Holder epoch.Life

	node  *Node
	group string
	// after: at a primary, what was written before the call has to be in the epoch. It is, if the epoch is later than all
	// that had a mark when the shards were asked first: writes behind its boundary were held until after that.
	after  *epoch.ID
	places map[epoch.ShardID]place
}

// Fix has all shards of a group apply nothing past one complete epoch for a while. That is the newest one that all
// have, and at the primary site one that has all that was written before the call. Errors are core.ErrNotYet if there
// is none in time, and core.ErrPrecondition with the shard that cannot be opened; nothing is fixed then.
func (n *Node) Fix(ctx context.Context, group string) (*Fixed, error) {
	places, err := n.whole(ctx, group)
	if err != nil {
		return nil, err
	}
	f := &Fixed{node: n, group: group, Holder: newLife(), places: places}
	for began := time.Now(); ; {
		err := f.try(ctx)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, core.ErrNotYet) || time.Since(began) > fixPatience || !pause.For(ctx, fixInterval) {
			f.Release()
			return nil, err
		}
	}
}

// try looks for an epoch once. What it fixed stays so after an error.
func (f *Fixed) try(ctx context.Context) error {
	marks, err := f.each(ctx, epoch.ID{})
	if err != nil {
		return err
	}
	if f.after == nil {
		f.after = f.newest(marks)
	}
	at, ok := common(marks)
	if !ok || !f.after.Before(at.Epoch) {
		f.node.hurry(ctx, f.group, f.places)
		return fmt.Errorf("%w: group %s has no epoch yet that all shards can be opened at, since not all are in one, "+
			"or not all nodes reach each other%s; repeat the call", core.ErrNotYet, f.group, f.node.silence())
	}
	if _, err := f.each(ctx, at.Epoch); err != nil {
		return err
	}
	f.Epoch, f.Shards = at.Epoch, at.Config.Shards
	return nil
}

// newest is the last epoch that a primary has a mark of; zero for none, and for copies, whose last epoch is good
// enough.
func (f *Fixed) newest(marks map[epoch.ShardID][]epoch.Mark) *epoch.ID {
	last := &epoch.ID{}
	for id, list := range marks {
		if n := len(list); n > 0 && f.places[id].shard.role == core.RolePrimary && last.Before(list[n-1].Epoch) {
			*last = list[n-1].Epoch
		}
	}
	return last
}

// each has all shards fix an epoch, and returns what each can be opened at.
func (f *Fixed) each(ctx context.Context, at epoch.ID) (map[epoch.ShardID][]epoch.Mark, error) {
	ctx, cancel := context.WithTimeout(ctx, fixTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	all := map[epoch.ShardID][]epoch.Mark{}
	failures := map[epoch.ShardID]error{}
	for id, p := range f.places {
		wg.Go(func() {
			marks, err := f.node.fix(ctx, f.group, p, f.Holder, at)
			mu.Lock()
			defer mu.Unlock()
			if all[id] = marks; err != nil {
				failures[id] = p.failure(ctx, err)
			}
		})
	}
	wg.Wait()
	for _, id := range shardsOf(f.places) { // the lowest one, so that the message is the same each time
		if err := failures[id]; err != nil && !errors.Is(err, core.ErrNotYet) {
			return nil, err
		}
	}
	for _, id := range shardsOf(f.places) {
		if err := failures[id]; err != nil {
			return nil, err
		}
	}
	return all, nil
}

// common is a mark of the newest epoch that all shards can be opened at. One whose shards are others is none.
func common(marks map[epoch.ShardID][]epoch.Mark) (last epoch.Mark, ok bool) {
	for _, list := range marks {
		for _, m := range list {
			if ok && !last.Epoch.Before(m.Epoch) || len(m.Config.Shards) != len(marks) {
				continue
			}
			if !slices.ContainsFunc(m.Config.Shards, func(id epoch.ShardID) bool { return !hasMark(marks[id], m.Epoch) }) {
				last, ok = m, true
			}
		}
		break // all of them have it, so one list is enough
	}
	return last, ok
}

func hasMark(list []epoch.Mark, id epoch.ID) bool {
	_, ok := epoch.FindMark(list, id)
	return ok
}

// Release lets the shards go on. Those that it does not reach go on by themselves.
func (f *Fixed) Release() { f.node.release(f.group, f.Holder, f.places) }

// Release is Fixed.Release for a holder.
func (n *Node) Release(group string, holder epoch.Life) { n.release(group, holder, n.of(group)) }

func (n *Node) release(group string, holder epoch.Life, places map[epoch.ShardID]place) {
	ctx, cancel := context.WithTimeout(n.ctx, callTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for id, p := range places {
		if s := n.shard(group, id); s != nil {
			s.ReleaseEpoch(holder)
		} else if p.neighbour != nil {
			wg.Go(func() {
				_, _ = p.neighbour.ReleaseEpoch(ctx, &shardpb.ReleaseEpochRequest{Group: group, Shard: uint32(id),
					Holder: uint64(holder)})
			})
		}
	}
	wg.Wait()
}

// fix has one shard fix an epoch, wherever it is.
func (n *Node) fix(ctx context.Context, group string, p place, holder epoch.Life, at epoch.ID) ([]epoch.Mark, error) {
	if p.neighbour == nil {
		s := n.shard(group, p.shard.id)
		if s == nil {
			return nil, fmt.Errorf("%w: it is not open", core.ErrNotYet)
		}
		return s.FixEpoch(ctx, holder, at)
	}
	r := &shardpb.FixEpochRequest{Group: group, Shard: uint32(p.shard.id), Holder: uint64(holder)}
	if !at.IsZero() {
		r.Epoch = idToWire(at)
	}
	answer, err := p.neighbour.FixEpoch(ctx, r)
	if err != nil {
		return nil, err
	}
	return marksFromWire(answer.GetMarks(), epoch.ID{})
}

// hurry asks for an epoch, if the group is primary here. It comes in its time otherwise.
func (n *Node) hurry(ctx context.Context, group string, places map[epoch.ShardID]place) {
	if first, ok := newestConfig(places).Coordinator(); ok {
		if p, seen := places[first]; seen && p.shard.role == core.RolePrimary {
			_, _ = n.do(ctx, group, p, &shardpb.DoRequest{Part: shardpb.Part_PART_CUT})
		}
	}
}

// newestConfig is the last configuration that a shard knows.
func newestConfig(places map[epoch.ShardID]place) epoch.Config {
	var config epoch.Config
	for _, p := range places {
		if p.shard.config.Version.Compare(config.Version) > 0 {
			config = p.shard.config
		}
	}
	return config
}

// FixEpoch implements shardpb.ShardsServer.
func (v *Server) FixEpoch(ctx context.Context, r *shardpb.FixEpochRequest) (*shardpb.FixEpochResponse, error) {
	s, err := v.shard(r.GetGroup(), r.GetShard())
	if err != nil {
		return nil, err
	}
	marks, err := s.FixEpoch(ctx, epoch.Life(r.GetHolder()), idFromWire(r.GetEpoch()))
	if err != nil {
		return nil, toStatus(err)
	}
	return &shardpb.FixEpochResponse{Marks: marksToWire(marks)}, nil
}

// ReleaseEpoch implements shardpb.ShardsServer.
func (v *Server) ReleaseEpoch(_ context.Context,
	r *shardpb.ReleaseEpochRequest) (*shardpb.ReleaseEpochResponse, error) {
	s, err := v.shard(r.GetGroup(), r.GetShard())
	if err != nil {
		return nil, err
	}
	s.ReleaseEpoch(epoch.Life(r.GetHolder()))
	return &shardpb.ReleaseEpochResponse{}, nil
}
