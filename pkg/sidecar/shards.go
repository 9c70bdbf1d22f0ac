package sidecar

import (
	"context"
	"errors"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/shards"
)

// forceTimeout is how long a forced promotion of a group over several nodes takes at most.
const forceTimeout = 2 * time.Minute

// promote promotes a group of this node; the copy of a shard together with those of all others of its group.
func (s *Service) promote(ctx context.Context, g *replication.Group, r *sidecarpb.PromoteRequest) error {
	id, ok := g.Shard().Identity()
	if !ok || id.Role != core.RoleSecondary || s.opts.Shards == nil {
		waiting, cancel := context.WithTimeout(ctx, time.Duration(r.TimeoutMillis)*time.Millisecond)
		defer cancel()
		_, err := g.PromoteWithin(waiting, r.Force)
		return err
	}
	const again = 100 * time.Millisecond
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, max(forceTimeout, time.Duration(r.TimeoutMillis)*time.Millisecond))
	defer cancel()
	for {
		err := s.opts.Shards.Promote(ctx, id.Group, r.Force)
		wait := !r.Force && errors.Is(err, core.ErrNotYet) &&
			time.Since(began) < time.Duration(r.TimeoutMillis)*time.Millisecond
		if !wait {
			return err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return err
		}
	}
}

// status is the status of a group, with that of the shards of its group.
func (s *Service) status(g *replication.Group) *sidecarpb.GroupStatus {
	out := statusToAPI(g.Status())
	id, ok := g.Shard().Identity()
	if !ok {
		return out
	}
	out.Shard = &sidecarpb.ShardStatus{Group: id.Group, Id: uint32(id.ID), EpochMillis: id.EpochMillis}
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

func placeToAPI(p shards.Place) *sidecarpb.ShardPlace {
	out := &sidecarpb.ShardPlace{Id: uint32(p.ID), Node: p.Node, GroupName: p.GroupName, Role: roles[p.Role.Side()],
		Joined: p.Joined}
	if !p.Shown.IsZero() {
		out.ShownEpoch = &p.Shown.Number
	}
	if !p.Newest.IsZero() {
		out.NewestEpoch = &p.Newest.Number
	}
	return out
}
