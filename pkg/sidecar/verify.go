package sidecar

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/shards"
)

// Verify implements sidecarpb.SidecarServer.
func (s *Service) Verify(ctx context.Context, r *sidecarpb.VerifyRequest) (*sidecarpb.VerifyResponse, error) {
	_, err := s.whole(ctx, r.Group, func(g *replication.Group) (bool, error) { return true, g.Verify() },
		(*shards.Node).Verify)
	if err != nil {
		return nil, err
	}
	return &sidecarpb.VerifyResponse{}, nil
}

// Repair implements sidecarpb.SidecarServer.
func (s *Service) Repair(_ context.Context, r *sidecarpb.RepairRequest) (*sidecarpb.RepairResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	extents, err := g.Repair()
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RepairResponse{Extents: extents}, nil
}

func verifyToAPI(v *replication.VerifyStatus) *sidecarpb.VerifyStatus {
	out := &sidecarpb.VerifyStatus{
		Running: v.Running, DoneBytes: uint64(max(v.DoneBytes, 0)), TotalBytes: uint64(max(v.TotalBytes, 0)),
		FinishedUnixNanos: v.FinishedUnixNanos, Ordinal: v.Ordinal, DifferenceCount: v.DifferenceCount, Error: v.Error,
		UpdatedUnixNanos: v.UpdatedUnixNanos,
	}
	for _, d := range v.Differences {
		out.Differences = append(out.Differences, &sidecarpb.VolumeExtent{VolumeId: d.VolumeID, OffsetBytes: d.OffsetBytes,
			LengthBytes: d.LengthBytes})
	}
	return out
}
