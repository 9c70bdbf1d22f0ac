package sidecar

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// givenPoint is the recovery point of a request: one at most of an ordinal, a time and a bookmark.
type givenPoint struct {
	ordinal  *uint64
	nanos    *int64
	bookmark *string
}

// parse checks what a caller gave. given: it gave a point.
func (p givenPoint) parse(group string) (point replication.Point, given bool, err error) {
	switch {
	case p.ordinal != nil && *p.ordinal == 0:
		return point, true, status.Errorf(codes.InvalidArgument, "group %s: point: ordinals begin with 1", group)
	case p.ordinal != nil:
		point.Ordinal = *p.ordinal
	case p.bookmark != nil:
		if err := core.CheckLabel(*p.bookmark); err != nil {
			return point, true, status.Errorf(codes.InvalidArgument, "group %s: %v", group, err)
		}
		point.Bookmark = *p.bookmark
	case p.nanos != nil:
		point.At = time.Unix(0, *p.nanos)
	default:
		return point, false, nil
	}
	return point, true, nil
}

func pointOfPromotion(r *sidecarpb.PromoteRequest) (p givenPoint) {
	switch point := r.Point.(type) {
	case *sidecarpb.PromoteRequest_Ordinal:
		p.ordinal = &point.Ordinal
	case *sidecarpb.PromoteRequest_AtUnixNanos:
		p.nanos = &point.AtUnixNanos
	case *sidecarpb.PromoteRequest_Bookmark:
		p.bookmark = &point.Bookmark
	}
	return p
}

func pointOfView(r *sidecarpb.CreateViewRequest) (p givenPoint) {
	switch point := r.Point.(type) {
	case *sidecarpb.CreateViewRequest_Ordinal:
		p.ordinal = &point.Ordinal
	case *sidecarpb.CreateViewRequest_AtUnixNanos:
		p.nanos = &point.AtUnixNanos
	case *sidecarpb.CreateViewRequest_Bookmark:
		p.bookmark = &point.Bookmark
	}
	return p
}

// CommitTrial implements sidecarpb.SidecarServer.
func (s *Service) CommitTrial(ctx context.Context, r *sidecarpb.CommitTrialRequest) (*sidecarpb.CommitTrialResponse,
	error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	changed := g.Trial() != nil
	tailID, err := g.CommitTrial(ctx, r.Discard)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.CommitTrialResponse{Changed: changed, TailId: tailID, Status: statusToAPI(g.Status())}, nil
}

// RollBackTrial implements sidecarpb.SidecarServer. No volume is attached meanwhile.
func (s *Service) RollBackTrial(ctx context.Context,
	r *sidecarpb.RollBackTrialRequest) (*sidecarpb.RollBackTrialResponse, error) {
	if err := s.waitAdopted(ctx, "group "+r.Group); err != nil {
		return nil, err
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	changed := g.Trial() != nil
	if err := g.RollBackTrial(ctx); err != nil {
		return nil, toStatus(err)
	}
	if g, err = s.opts.Site.Group(r.Group); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RollBackTrialResponse{Changed: changed, Status: statusToAPI(g.Status())}, nil
}

func trialToAPI(t *core.Trial) *sidecarpb.TrialStatus {
	if t == nil {
		return nil
	}
	out := &sidecarpb.TrialStatus{Ordinal: t.Ordinal, UnixNanos: known(t.UnixNanos), SinceUnixNanos: t.SinceUnixNanos,
		UndoneWrites: t.Undone.Writes, UndoneBytes: t.Undone.Bytes}
	if t.Held != nil {
		out.HeldOrdinal = &t.Held.Ordinal
	}
	return out
}
