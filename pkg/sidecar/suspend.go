package sidecar

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Suspend implements sidecarpb.SidecarServer.
func (s *Service) Suspend(_ context.Context, r *sidecarpb.SuspendRequest) (*sidecarpb.SuspendResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	changed, err := g.Suspend()
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.SuspendResponse{Changed: changed}, nil
}

// Resume implements sidecarpb.SidecarServer.
func (s *Service) Resume(_ context.Context, r *sidecarpb.ResumeRequest) (*sidecarpb.ResumeResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	changed, err := g.Resume()
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.ResumeResponse{Changed: changed}, nil
}
