package sidecar

import (
	"context"
	"errors"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
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
	at := epoch.ID{}
	if r.Epoch != "" {
		if at, err = epoch.ParseID(r.Epoch); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "group %s: %v", r.Group, err)
		}
	}
	cut, err := g.CutAt(ctx, targets, at)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.CutGroupResponse{Timeline: cut.Timeline, Ordinal: cut.Ordinal, UnixNanos: cut.UnixNanos}, nil
}

// FixGroup implements sidecarpb.SidecarServer.
func (s *Service) FixGroup(ctx context.Context, r *sidecarpb.FixGroupRequest) (*sidecarpb.FixGroupResponse, error) {
	group, err := s.groupOverNodes(r.VolumeId)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
	defer cancel()
	fixed, err := s.opts.Shards.Fix(ctx, group)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.FixGroupResponse{Epoch: fixed.Epoch.String(), Holder: strconv.FormatUint(uint64(fixed.Holder), 16)},
		nil
}

// ReleaseGroup implements sidecarpb.SidecarServer.
func (s *Service) ReleaseGroup(_ context.Context,
	r *sidecarpb.ReleaseGroupRequest) (*sidecarpb.ReleaseGroupResponse, error) {
	holder, err := strconv.ParseUint(r.Holder, 16, 64)
	if err != nil || holder == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "holder %.80q is not that of a call of FixGroup", r.Holder)
	}
	group, err := s.groupOverNodes(r.VolumeId)
	if err != nil {
		return nil, err
	}
	s.opts.Shards.Release(group, epoch.Life(holder))
	return &sidecarpb.ReleaseGroupResponse{}, nil
}

// groupOverNodes is the group over several nodes that a volume of this one is in.
func (s *Service) groupOverNodes(volumeID string) (string, error) {
	g, err := s.opts.Site.GroupOf(volumeID)
	if errors.Is(err, replication.ErrNotFound) {
		return "", status.Error(codes.FailedPrecondition, err.Error())
	}
	if err != nil {
		return "", toStatus(err)
	}
	id, ok := s.shardOf(g)
	if !ok {
		return "", status.Errorf(codes.FailedPrecondition, "volume %s is in group %s, which is no shard of a group over "+
			"several nodes (slipctl group create --shard-of)", volumeID, g.Name())
	}
	return id.Group, nil
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
