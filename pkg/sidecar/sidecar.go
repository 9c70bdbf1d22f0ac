// Package sidecar is the gRPC service of the replicator, which the CSI driver and slipctl call over a Unix socket. It
// also has the shims that serve attached volumes, and the metrics. It converts between the API and package replication,
// which has the groups.
//
// A replicable volume is attached by mounting a shim for it; the shim's /dev/fuse descriptor is also given to the
// keeper (in the driver's process), so that the next replicator can go on where this one was killed. A volume in a
// group is served by the group (image + journal), one without a group straight from its image; it can be put into a
// group, taken out and moved while it is attached.
//
// # Concurrency
//
// The service's methods may run at the same time. Those that attach, detach or move volumes exclude each other.
package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/shards"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Options configure a Service.
type Options struct {
	SiteName string
	Version  string
	Site     *replication.Site
	Pool     *blockdev.Pool
	// ShimDir is the directory with a mount point for each attached volume.
	ShimDir string
	// Keeper keeps the shims' descriptors; nil for a site that attaches nothing.
	Keeper  *keeper.Holder
	Metrics *Metrics
	// Shards works on the groups that are on several nodes; nil for none.
	Shards *shards.Node
}

// Service implements sidecarpb.SidecarServer.
type Service struct {
	sidecarpb.UnimplementedSidecarServer
	opts Options

	// attachMu is held while a volume is attached, detached, adopted or moved.
	attachMu sync.Mutex
	attached map[string]*attachment // by volume id
	// shown are the volumes of views, by blockdev.ViewVolumeID.
	shown map[string]*shim.Server
	// unserved are volumes whose descriptors the keeper holds, and whose groups are not open.
	unserved map[string]bool
	// adopted is closed when the volumes of an earlier replicator are attached again.
	adopted chan struct{}

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// New returns a service and starts adopting the volumes whose descriptors the keeper holds: those of a replicator that
// ended without detaching them. Their I/O waits in the kernel until then.
func New(opts Options) *Service {
	s := &Service{opts: opts, attached: map[string]*attachment{}, shown: map[string]*shim.Server{},
		unserved: map[string]bool{}, adopted: make(chan struct{})}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if opts.Shards != nil {
		opts.Shards.SetViewer(s)
	}
	if opts.Keeper != nil {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.adoptLoop()
		}()
	} else {
		s.continueMoves()
	}
	return s
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) { sidecarpb.RegisterSidecarServer(r, s) }

// Close stops serving without detaching anything: I/O waits for the next replicator, which finds the descriptors at the
// keeper.
func (s *Service) Close() error {
	s.stop()
	s.wg.Wait()
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	var errs []error
	for id, a := range s.attached {
		s.forget(id)
		errs = append(errs, a.shim.Close())
	}
	for key, srv := range s.shown {
		delete(s.shown, key)
		errs = append(errs, srv.Close())
	}
	return errors.Join(errs...)
}

// Probe implements sidecarpb.SidecarServer.
func (s *Service) Probe(context.Context, *sidecarpb.ProbeRequest) (*sidecarpb.ProbeResponse, error) {
	return &sidecarpb.ProbeResponse{Ready: true, Site: s.opts.SiteName, Version: s.opts.Version}, nil
}

// CreateGroup implements sidecarpb.SidecarServer.
func (s *Service) CreateGroup(_ context.Context,
	r *sidecarpb.CreateGroupRequest) (*sidecarpb.CreateGroupResponse, error) {
	spec := replication.GroupSpec{Name: r.Name}
	changeSettings(&spec.Settings, r.Settings)
	g, err := s.opts.Site.CreateGroup(spec)
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.CreateGroupResponse{GroupId: g.ID()}, nil
}

// DeleteGroup implements sidecarpb.SidecarServer.
func (s *Service) DeleteGroup(_ context.Context,
	r *sidecarpb.DeleteGroupRequest) (*sidecarpb.DeleteGroupResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	if err := s.opts.Site.DeleteGroup(r.Name, r.Force); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DeleteGroupResponse{}, nil
}

// ListGroups implements sidecarpb.SidecarServer.
func (s *Service) ListGroups(_ context.Context, r *sidecarpb.ListGroupsRequest) (*sidecarpb.ListGroupsResponse, error) {
	resp := &sidecarpb.ListGroupsResponse{}
	for _, g := range s.opts.Site.Groups() {
		if r.Name == "" || r.Name == g.Name() {
			resp.Groups = append(resp.Groups, s.status(g))
		}
	}
	for dir, err := range s.opts.Site.Broken() {
		if st := replication.RollingBackStatus(err); st != nil {
			if r.Name == "" || r.Name == st.Name {
				resp.Groups = append(resp.Groups, statusToAPI(st))
			}
			continue
		}
		name := cmp.Or(s.opts.Site.BrokenName(dir), dir)
		if r.Name == "" || r.Name == name {
			resp.Groups = append(resp.Groups, &sidecarpb.GroupStatus{
				Name: name, State: sidecarpb.GroupState_GROUP_STATE_FAILED, StateReason: untrusted.Reason(err.Error()),
			})
		}
	}
	if r.Name != "" && len(resp.Groups) == 0 {
		return nil, status.Errorf(codes.NotFound, "group %q does not exist at %s", r.Name, s.opts.SiteName)
	}
	return resp, nil
}

// statusOf is the status of a group, also while its images are being restored.
func (s *Service) statusOf(name string) (*sidecarpb.GroupStatus, error) {
	g, err := s.opts.Site.Group(name)
	if err == nil {
		return s.status(g), nil
	}
	if st := replication.RollingBackStatus(err); st != nil {
		return statusToAPI(st), nil
	}
	return nil, err
}

// WatchGroup implements sidecarpb.SidecarServer.
func (s *Service) WatchGroup(r *sidecarpb.WatchGroupRequest,
	stream grpc.ServerStreamingServer[sidecarpb.GroupStatus]) error {
	const least, usual = 10 * time.Millisecond, time.Second
	interval := time.Duration(r.IntervalMillis) * time.Millisecond
	if interval <= 0 {
		interval = usual
	}
	ticker := time.NewTicker(max(interval, least))
	defer ticker.Stop()
	for {
		st, err := s.statusOf(r.Name)
		if err != nil {
			return toStatus(err)
		}
		if err := stream.Send(st); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-s.ctx.Done():
			return status.Error(codes.Unavailable, "the replicator is stopping; watch again when it is back")
		case <-ticker.C:
		}
	}
}

// Promote implements sidecarpb.SidecarServer.
func (s *Service) Promote(ctx context.Context, r *sidecarpb.PromoteRequest) (*sidecarpb.PromoteResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	point, given, err := pointOfPromotion(r).parse(r.Group)
	if err != nil {
		return nil, err
	}
	if given {
		_, err = g.PromoteAt(ctx, point)
	} else {
		err = s.promote(ctx, g, r)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	if g, err = s.opts.Site.Group(r.Group); err != nil { // another one after a promotion in the middle of a sync
		return nil, toStatus(err)
	}
	st := s.status(g)
	return &sidecarpb.PromoteResponse{Loss: st.Loss, Status: st}, nil
}

// Demote implements sidecarpb.SidecarServer.
func (s *Service) Demote(ctx context.Context, r *sidecarpb.DemoteRequest) (*sidecarpb.DemoteResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	response, err := s.demote(ctx, g)
	if err != nil {
		return nil, toStatus(err)
	}
	return response, nil
}

// RecordFormat implements sidecarpb.SidecarServer.
func (s *Service) RecordFormat(_ context.Context,
	r *sidecarpb.RecordFormatRequest) (*sidecarpb.RecordFormatResponse, error) {
	g, err := s.opts.Site.GroupOf(r.VolumeId)
	if errors.Is(err, replication.ErrNotFound) {
		return &sidecarpb.RecordFormatResponse{}, nil
	}
	if err == nil {
		err = g.RecordFormat(r.VolumeId, r.FormatJson)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RecordFormatResponse{}, nil
}

// LogCalls is a gRPC interceptor that logs calls that change something, and errors.
func LogCalls(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	start := time.Now()
	resp, err := handler(ctx, req)
	switch req.(type) {
	case *sidecarpb.ProbeRequest, *sidecarpb.ListGroupsRequest, *sidecarpb.ListCutsRequest,
		*sidecarpb.ListViewsRequest, *sidecarpb.GroupPointsRequest:
		if err == nil {
			return resp, nil
		}
	}
	klog.InfoS("Call", "method", info.FullMethod, "request", fmt.Sprint(req), "took", time.Since(start), "err", err)
	return resp, err
}
