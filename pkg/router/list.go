package router

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// page is a part of one node's list.
type page[E any] struct {
	entries []E
	more    bool // the node has entries after these
}

// merge makes one list of all nodes' lists. Nodes list by id, and their tokens say after which id to go on
// (driver.ListTokenAfter); so one token goes on in all of them, stays good while objects come and go, and means the
// same to another router.
//
// A node that is silent, and not retired, fails the list: without it, what it holds would look deleted.
func merge[E any](ctx context.Context, r *Router, limit int32, id func(E) string,
	fetch func(context.Context, *node) (page[E], error)) ([]E, string, error) {
	nodes, err := r.nodes.all()
	if err != nil {
		return nil, "", err
	}
	pages := make([]page[E], len(nodes))
	group, ctx := errgroup.WithContext(ctx)
	for i, n := range nodes {
		if n.retired && !n.ready() {
			continue
		}
		if n.conn == nil {
			return nil, "", n.errUnreachable()
		}
		group.Go(func() (err error) {
			pages[i], err = fetch(ctx, n)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, "", err
	}
	// Past the end of a page that is not its node's last, that node may have entries that belong in between.
	var bound string
	var all []E
	for _, p := range pages {
		all = append(all, p.entries...)
		if n := len(p.entries); p.more && n > 0 {
			if last := id(p.entries[n-1]); bound == "" || last < bound {
				bound = last
			}
		}
	}
	slices.SortStableFunc(all, func(a, b E) int { return strings.Compare(id(a), id(b)) })
	more := bound != ""
	if more {
		all = slices.DeleteFunc(all, func(e E) bool { return id(e) > bound })
	}
	if limit > 0 && len(all) > int(limit) {
		all, more = all[:limit], true
	}
	if !more || len(all) == 0 {
		return all, "", nil
	}
	return all, plugin.ListTokenAfter(id(all[len(all)-1])), nil
}

func checkLimit(limit int32) error {
	if limit < 0 {
		return status.Errorf(codes.InvalidArgument, "max_entries %d is negative", limit)
	}
	return nil
}

func (s *controllerServer) ListVolumes(ctx context.Context,
	req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if err := checkLimit(req.GetMaxEntries()); err != nil {
		return nil, err
	}
	entries, next, err := merge(ctx, s.r, req.GetMaxEntries(),
		func(e *csi.ListVolumesResponse_Entry) string { return e.GetVolume().GetVolumeId() },
		func(ctx context.Context, n *node) (page[*csi.ListVolumesResponse_Entry], error) {
			response, err := n.controller.ListVolumes(ctx, req)
			return page[*csi.ListVolumesResponse_Entry]{response.GetEntries(), response.GetNextToken() != ""}, err
		})
	if err != nil {
		return nil, err
	}
	return &csi.ListVolumesResponse{Entries: entries, NextToken: next}, nil
}

func (s *controllerServer) ControllerListVolumeHealth(ctx context.Context,
	req *csi.ControllerListVolumeHealthRequest) (*csi.ControllerListVolumeHealthResponse, error) {
	if err := checkLimit(req.GetMaxEntries()); err != nil {
		return nil, err
	}
	entries, next, err := merge(ctx, s.r, req.GetMaxEntries(), (*csi.VolumeHealth).GetVolumeId,
		func(ctx context.Context, n *node) (page[*csi.VolumeHealth], error) {
			response, err := n.controller.ControllerListVolumeHealth(ctx, req)
			return page[*csi.VolumeHealth]{response.GetEntries(), response.GetNextToken() != ""}, err
		})
	if err != nil {
		return nil, err
	}
	return &csi.ControllerListVolumeHealthResponse{Entries: entries, NextToken: next}, nil
}

// ListSnapshots asks one node for one snapshot, and all of them otherwise: a snapshot may outlive its volume.
func (s *controllerServer) ListSnapshots(ctx context.Context,
	req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if err := checkLimit(req.GetMaxEntries()); err != nil {
		return nil, err
	}
	if id := req.GetSnapshotId(); id != "" {
		at, err := s.r.locate(ctx, locatepb.Key_SNAPSHOT_ID, id, fmt.Sprintf("snapshot %.80q", id))
		if err != nil {
			return nil, err
		}
		if at == nil {
			return &csi.ListSnapshotsResponse{}, nil
		}
		return at.controller.ListSnapshots(ctx, req)
	}
	entries, next, err := merge(ctx, s.r, req.GetMaxEntries(),
		func(e *csi.ListSnapshotsResponse_Entry) string { return e.GetSnapshot().GetSnapshotId() },
		func(ctx context.Context, n *node) (page[*csi.ListSnapshotsResponse_Entry], error) {
			response, err := n.controller.ListSnapshots(ctx, req)
			return page[*csi.ListSnapshotsResponse_Entry]{response.GetEntries(), response.GetNextToken() != ""}, err
		})
	if err != nil {
		return nil, err
	}
	return &csi.ListSnapshotsResponse{Entries: entries, NextToken: next}, nil
}

// GetCapacity is the capacity of the nodes in the topology segment: the sum of what is available, and the largest
// volume that one of them has room for. What a silent node has cannot be used now and does not count; when all are
// silent, that is the answer.
func (s *controllerServer) GetCapacity(ctx context.Context,
	req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	nodes, err := s.r.nodes.all()
	if err != nil {
		return nil, err
	}
	nodes = slices.DeleteFunc(nodes, func(n *node) bool { return n.retired || !inSegment(n, req.GetAccessibleTopology()) })
	answers := make([]*csi.GetCapacityResponse, len(nodes))
	errs := make([]error, len(nodes))
	var group errgroup.Group
	for i, n := range nodes {
		group.Go(func() error {
			if n.conn == nil {
				errs[i] = n.errUnreachable()
				return nil
			}
			ctx, cancel := context.WithTimeout(ctx, locateTimeout)
			defer cancel()
			answers[i], errs[i] = n.controller.GetCapacity(ctx, req)
			return nil
		})
	}
	_ = group.Wait() // errors are in errs
	total := &csi.GetCapacityResponse{}
	answered := len(nodes) == 0
	for i, a := range answers {
		if err := errs[i]; err != nil {
			if code := status.Code(err); code == codes.InvalidArgument || ctx.Err() != nil {
				return nil, err // of the request, not of the node
			}
			continue
		}
		answered = true
		total.AvailableCapacity += a.GetAvailableCapacity()
		if m := a.GetMaximumVolumeSize(); m != nil && m.GetValue() >= total.GetMaximumVolumeSize().GetValue() {
			total.MaximumVolumeSize = wrapperspb.Int64(m.GetValue())
		}
		if m := a.GetMinimumVolumeSize(); m != nil {
			total.MinimumVolumeSize = m
		}
	}
	if !answered {
		return nil, errs[0]
	}
	return total, nil
}
