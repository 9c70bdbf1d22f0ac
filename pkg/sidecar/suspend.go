package sidecar

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/shards"
)

// Suspend implements sidecarpb.SidecarServer.
func (s *Service) Suspend(ctx context.Context, r *sidecarpb.SuspendRequest) (*sidecarpb.SuspendResponse, error) {
	changed, err := s.whole(ctx, r.Group, (*replication.Group).Suspend, (*shards.Node).Suspend)
	if err != nil {
		return nil, err
	}
	return &sidecarpb.SuspendResponse{Changed: changed}, nil
}

// Resume implements sidecarpb.SidecarServer.
func (s *Service) Resume(ctx context.Context, r *sidecarpb.ResumeRequest) (*sidecarpb.ResumeResponse, error) {
	changed, err := s.whole(ctx, r.Group, (*replication.Group).Resume, (*shards.Node).Resume)
	if err != nil {
		return nil, err
	}
	return &sidecarpb.ResumeResponse{Changed: changed}, nil
}
