package sidecar

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Yield implements sidecarpb.SidecarServer.
func (s *Service) Yield(ctx context.Context, r *sidecarpb.YieldRequest) (*sidecarpb.YieldResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if id, ok := s.shardOf(g); ok {
		return s.yieldShards(ctx, g, id, r.DryRun)
	}
	plan, err := g.PlanYield(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	response := &sidecarpb.YieldResponse{Yield: planToAPI(plan)}
	if !r.DryRun {
		y, err := g.Yield(ctx)
		if err != nil {
			return nil, toStatus(err)
		}
		response.Yield = mergeYield(response.Yield, yieldToAPI(y))
	}
	response.Status = s.status(g)
	return response, nil
}

// yieldShards has all shards of a group give way.
func (s *Service) yieldShards(ctx context.Context, g *replication.Group, id replication.Identity,
	dryRun bool) (*sidecarpb.YieldResponse, error) {
	list, err := s.opts.Shards.Yield(ctx, id.Group, dryRun)
	if err != nil {
		return nil, toStatus(err)
	}
	response := &sidecarpb.YieldResponse{Status: s.status(g)}
	for _, y := range list {
		out := &sidecarpb.ShardYield{Id: uint32(y.ID), Node: y.Node, GroupName: y.GroupName, Yield: planToAPI(y.Plan)}
		if y.ID == id.ID {
			response.Yield = out.Yield
		}
		response.Shards = append(response.Shards, out)
	}
	return response, nil
}

// mergeYield adds what a yield has come to to what was counted before it.
func mergeYield(plan, now *sidecarpb.YieldStatus) *sidecarpb.YieldStatus {
	if now == nil || plan == nil {
		return now
	}
	now.Writes, now.Bytes, now.Partial = plan.Writes, plan.Bytes, plan.Partial
	now.FirstUnixNanos, now.LastUnixNanos = plan.FirstUnixNanos, plan.LastUnixNanos
	now.VolumeIds, now.SizeBytes = plan.VolumeIds, plan.SizeBytes
	return now
}

func planToAPI(p *replication.YieldPlan) *sidecarpb.YieldStatus {
	if p == nil {
		return nil
	}
	y := yieldToAPI(&p.Yield)
	y.Writes, y.Bytes, y.Partial = p.Tail.Writes, p.Tail.Bytes, p.Tail.Partial
	y.FirstUnixNanos, y.LastUnixNanos = p.Tail.FirstUnixNanos, p.Tail.LastUnixNanos
	y.VolumeIds, y.SizeBytes = p.VolumeIDs, p.SizeBytes
	return y
}

func yieldToAPI(y *core.Yield) *sidecarpb.YieldStatus {
	if y == nil {
		return nil
	}
	return &sidecarpb.YieldStatus{
		Stage: string(y.Stage), Timeline: y.Timeline, ForkOrdinal: y.Fork, HeadOrdinal: y.Head, All: y.All, Reason: y.Reason,
		TailBytes: y.TailBytes, CopiedBytes: y.CopiedBytes,
	}
}

// ListTails implements sidecarpb.SidecarServer.
func (s *Service) ListTails(_ context.Context, r *sidecarpb.ListTailsRequest) (*sidecarpb.ListTailsResponse, error) {
	list, err := s.opts.Site.Tails(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	response := &sidecarpb.ListTailsResponse{}
	for _, t := range list {
		out := &sidecarpb.Tail{
			Id: t.ID, Group: t.Cut.Group, Timeline: t.Cut.Timeline, ForkOrdinal: t.ForkOrdinal, HeadOrdinal: t.Cut.Ordinal,
			Writes: t.Writes, Bytes: t.Bytes, FirstUnixNanos: t.FirstUnixNanos, LastUnixNanos: t.LastUnixNanos,
			Partial: t.Partial, TakenUnixNanos: t.Cut.UnixNanos,
		}
		for _, rec := range t.Snapshots {
			out.Snapshots = append(out.Snapshots, &sidecarpb.TailSnapshot{
				SnapshotId: rec.ID, VolumeId: rec.SourceVolumeID, SizeBytes: rec.SizeBytes, State: string(rec.State),
			})
		}
		response.Tails = append(response.Tails, out)
	}
	return response, nil
}

// DeleteTail implements sidecarpb.SidecarServer.
func (s *Service) DeleteTail(_ context.Context, r *sidecarpb.DeleteTailRequest) (*sidecarpb.DeleteTailResponse, error) {
	if err := blockdev.ValidateID(r.Id); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "tail %v", err)
	}
	if err := s.opts.Site.DeleteTail(r.Id); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DeleteTailResponse{}, nil
}

// Relocate implements sidecarpb.SidecarServer.
func (s *Service) Relocate(ctx context.Context, r *sidecarpb.RelocateRequest) (*sidecarpb.RelocateResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if r.TimeoutMillis > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutMillis)*time.Millisecond)
		defer cancel()
	}
	var moved replication.Relocated
	if id, ok := s.shardOf(g); ok {
		moved.Took, err = s.opts.Shards.Relocate(ctx, id.Group)
		moved.FinalOrdinal = g.Status().DurableOrdinal
	} else {
		moved, err = g.Relocate(ctx)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RelocateResponse{
		Status: s.status(g), FinalOrdinal: moved.FinalOrdinal, TookMillis: moved.Took.Milliseconds(),
	}, nil
}
