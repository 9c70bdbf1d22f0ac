package sidecar

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/shards"
)

const (
	// forceTimeout is how long a forced promotion of a group over several nodes takes at most.
	forceTimeout = 2 * time.Minute
	// wholeTimeout is how long another command for all of its shards takes at most.
	wholeTimeout = time.Minute
)

// promote promotes a group of this node; the copy of a shard together with those of all others of its group.
func (s *Service) promote(ctx context.Context, g *replication.Group, r *sidecarpb.PromoteRequest) error {
	id, ok := s.shardOf(g)
	if !ok {
		waiting, cancel := context.WithTimeout(ctx, time.Duration(r.TimeoutMillis)*time.Millisecond)
		defer cancel()
		_, err := g.PromoteWithin(waiting, r.Force)
		return err
	}
	patience := time.Duration(r.TimeoutMillis) * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, max(forceTimeout, patience))
	defer cancel()
	lost, err := numbersOf(r.Without)
	if err != nil {
		return err
	}
	if r.Force || len(lost) > 0 {
		return s.opts.Shards.Promote(ctx, id.Group, r.Force, lost...)
	}
	return s.opts.Shards.PromotePatiently(ctx, id.Group, patience)
}

// numbersOf checks the numbers of shards.
func numbersOf(list []uint32) (ids []epoch.ShardID, err error) {
	for _, n := range list {
		if n > math.MaxUint16 {
			return nil, status.Errorf(codes.InvalidArgument, "shard %d: the highest number is %d", n, math.MaxUint16)
		}
		ids = append(ids, epoch.ShardID(n))
	}
	return ids, nil
}

// DropShard implements sidecarpb.SidecarServer.
func (s *Service) DropShard(ctx context.Context, r *sidecarpb.DropShardRequest) (*sidecarpb.DropShardResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	ids, err := numbersOf([]uint32{r.Shard})
	if err != nil {
		return nil, err
	}
	id, ok := s.shardOf(g)
	if !ok {
		return nil, status.Errorf(codes.FailedPrecondition, "group %s is no shard of a group over several nodes", r.Group)
	}
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	if err := s.opts.Shards.Drop(ctx, id.Group, ids[0], r.Lost); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DropShardResponse{Status: s.status(g)}, nil
}

// shardOf says which shard a group is; false for a group that is on one node.
func (s *Service) shardOf(g *replication.Group) (id replication.Identity, ok bool) {
	id, ok = g.Shard().Identity()
	return id, ok && s.opts.Shards != nil
}

// demote demotes a group of this node; a shard together with all others of its group.
func (s *Service) demote(ctx context.Context, g *replication.Group) (*sidecarpb.DemoteResponse, error) {
	id, ok := s.shardOf(g)
	if !ok {
		final, err := g.Demote()
		return &sidecarpb.DemoteResponse{FinalOrdinal: final}, err
	}
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	at, err := s.opts.Shards.Demote(ctx, id.Group)
	if err != nil {
		return nil, err
	}
	response := &sidecarpb.DemoteResponse{FinalOrdinal: g.Status().DurableOrdinal}
	if !at.IsZero() {
		response.FinalEpoch = &at.Number
	}
	return response, nil
}

// whole does something that a group of this node does alone, or as a shard together with all others.
func (s *Service) whole(ctx context.Context, name string, alone func(*replication.Group) (bool, error),
	together func(n *shards.Node, ctx context.Context, group string) (bool, error)) (bool, error) {
	g, err := s.opts.Site.Group(name)
	if err != nil {
		return false, toStatus(err)
	}
	var changed bool
	if id, ok := s.shardOf(g); ok {
		ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
		defer cancel()
		changed, err = together(s.opts.Shards, ctx, id.Group)
	} else {
		changed, err = alone(g)
	}
	if err != nil {
		return false, toStatus(err)
	}
	return changed, nil
}

// status is the status of a group, with that of the shards of its group.
func (s *Service) status(g *replication.Group) *sidecarpb.GroupStatus {
	out := statusToAPI(g.Status())
	id, ok := g.Shard().Identity()
	if !ok {
		return out
	}
	out.Shard = &sidecarpb.ShardStatus{Group: id.Group, Id: uint32(id.ID), EpochMillis: id.EpochMillis}
	for _, number := range id.Config.Shards {
		out.Shard.Numbers = append(out.Shard.Numbers, uint32(number))
	}
	if s.opts.Shards == nil {
		return out
	}
	list, silent := s.opts.Shards.Places(id.Group)
	out.Shard.SilentNodes = silent
	for _, p := range list {
		out.Shard.Shards = append(out.Shard.Shards, placeToAPI(p))
	}
	return out
}

// SiteNodes implements sidecarpb.SidecarServer.
func (s *Service) SiteNodes(ctx context.Context,
	_ *sidecarpb.SiteNodesRequest) (*sidecarpb.SiteNodesResponse, error) {
	err := shards.ErrAlone
	var answering, silent []string
	if s.opts.Shards != nil {
		answering, silent, err = s.opts.Shards.Others(ctx)
	}
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%v: start its replicator with --site-node and --node; the "+
			"chart does it with a gateway (replication.gateway.enabled)", err)
	}
	return &sidecarpb.SiteNodesResponse{Node: s.opts.Shards.Name(), Answering: answering, Silent: silent}, nil
}

func placeToAPI(p shards.Place) *sidecarpb.ShardPlace {
	out := &sidecarpb.ShardPlace{Id: uint32(p.ID), Node: p.Node, GroupName: p.GroupName, Role: roles[p.Role.Side()],
		Joined: p.Joined, Closed: p.Closed, Demoted: p.Role == core.RoleDemoted, Suspended: p.Suspended}
	if !p.Shown.IsZero() {
		out.ShownEpoch = &p.Shown.Number
	}
	if !p.Newest.IsZero() {
		out.NewestEpoch = &p.Newest.Number
	}
	return out
}
