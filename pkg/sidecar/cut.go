package sidecar

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// CutGroup implements sidecarpb.SidecarServer.
func (s *Service) CutGroup(ctx context.Context, r *sidecarpb.CutGroupRequest) (*sidecarpb.CutGroupResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	var targets []replication.CutTarget
	for _, t := range r.Targets {
		if err := blockdev.ValidateID(t.GetSnapshotId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "snapshot %v", err)
		}
		targets = append(targets, replication.CutTarget{VolumeID: t.GetVolumeId(), SnapshotID: t.GetSnapshotId()})
	}
	cut, err := g.Cut(ctx, targets)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.CutGroupResponse{Timeline: cut.Timeline, Ordinal: cut.Ordinal, UnixNanos: cut.UnixNanos}, nil
}

// ListCuts implements sidecarpb.SidecarServer.
func (s *Service) ListCuts(context.Context, *sidecarpb.ListCutsRequest) (*sidecarpb.ListCutsResponse, error) {
	resp := &sidecarpb.ListCutsResponse{}
	for _, g := range s.opts.Site.Groups() {
		for _, c := range g.Cuts() {
			resp.Cuts = append(resp.Cuts, cutToAPI(g.Name(), c))
		}
	}
	return resp, nil
}

// ReleaseCut implements sidecarpb.SidecarServer.
func (s *Service) ReleaseCut(_ context.Context, r *sidecarpb.ReleaseCutRequest) (*sidecarpb.ReleaseCutResponse, error) {
	if err := blockdev.ValidateID(r.SnapshotId); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot %v", err)
	}
	for _, g := range s.opts.Site.Groups() {
		if err := g.ReleaseCut(r.SnapshotId); err != nil {
			return nil, toStatus(err)
		}
	}
	return &sidecarpb.ReleaseCutResponse{}, nil
}
