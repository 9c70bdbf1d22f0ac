package sidecar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// A volume of a view is served as any other: a shim, whose descriptor the keeper has, too. Its name there is its
// blockdev.ViewVolumeID.

// GroupPoints implements sidecarpb.SidecarServer.
func (s *Service) GroupPoints(_ context.Context,
	r *sidecarpb.GroupPointsRequest) (*sidecarpb.GroupPointsResponse, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	points, err := g.Points()
	if err != nil {
		return nil, toStatus(err)
	}
	response := &sidecarpb.GroupPointsResponse{Oldest: pointToAPI(points.Oldest), Newest: pointToAPI(points.Newest)}
	for _, b := range points.Bookmarks {
		available := b.Ordinal >= points.Oldest.Ordinal && b.Ordinal <= points.Newest.Ordinal
		response.Bookmarks = append(response.Bookmarks, bookmarkToAPI(b, available))
	}
	return response, nil
}

// BookmarkGroup implements sidecarpb.SidecarServer.
func (s *Service) BookmarkGroup(ctx context.Context, r *sidecarpb.BookmarkGroupRequest) (*sidecarpb.Bookmark, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if id, ok := s.shardOf(g); ok {
		return s.bookmarkShards(ctx, g, id, r.Label)
	}
	b, err := g.Bookmark(r.Label)
	if err != nil {
		return nil, toStatus(err)
	}
	return bookmarkToAPI(b, true), nil
}

func bookmarkToAPI(b core.Bookmark, available bool) *sidecarpb.Bookmark {
	return &sidecarpb.Bookmark{Label: b.Label, Available: available,
		Point: pointToAPI(replication.RecoveryPoint{Ordinal: b.Ordinal, UnixNanos: b.UnixNanos})}
}

func pointToAPI(p replication.RecoveryPoint) *sidecarpb.RecoveryPoint {
	return &sidecarpb.RecoveryPoint{Ordinal: p.Ordinal, UnixNanos: known(p.UnixNanos)}
}

// known is a time, absent where it is not known.
func known(nanos int64) *int64 {
	if nanos == 0 {
		return nil
	}
	return &nanos
}

// CreateView implements sidecarpb.SidecarServer.
func (s *Service) CreateView(ctx context.Context, r *sidecarpb.CreateViewRequest) (*sidecarpb.View, error) {
	g, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if st := g.Status(); r.Test && st.Role != core.RoleSecondary {
		return nil, status.Errorf(codes.FailedPrecondition,
			"group %s is %v at %s, and a test failover opens a copy; start it at the peer: `slipctl group test start %[1]s` at "+
				"%[4]s; to look at what is here: `slipctl view create %[1]s`", r.Group, st.Role, s.opts.SiteName,
			cmp.Or(st.Peer, "a site that has a copy"))
	}
	spec := replication.ViewSpec{Name: r.Name, Writable: r.Writable || r.Test, Test: r.Test, LimitBytes: r.LimitBytes}
	var given bool
	if spec.Point, given, err = pointOfView(r).parse(r.Group); err != nil {
		return nil, err
	}
	if id, ok := s.shardOf(g); ok && (!given || bookmarkOfShards(g, spec.Point.Bookmark)) {
		return s.createViews(ctx, g, id, spec)
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	view, err := s.createView(ctx, g, spec)
	if err != nil {
		return nil, toStatus(err)
	}
	return s.viewToAPI(view.Status()), nil
}

// createView makes and serves a view. The caller holds attachMu.
func (s *Service) createView(ctx context.Context, g *replication.Group,
	spec replication.ViewSpec) (*replication.View, error) {
	view, err := g.CreateView(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := s.show(ctx, view); err != nil {
		// What was served of it is taken away again with it.
		return nil, errors.Join(err, s.deleteView(ctx, g, view))
	}
	return view, nil
}

// AttachView implements sidecarpb.SidecarServer.
func (s *Service) AttachView(ctx context.Context, r *sidecarpb.AttachViewRequest) (*sidecarpb.View, error) {
	if err := s.waitAdopted(ctx, "view "+r.Name); err != nil {
		return nil, err
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	view, _, err := s.view(r.Group, r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	if st := view.Status(); st.Failed != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "view %s of group %s shows nothing any more: %v; delete it",
			r.Name, r.Group, st.Failed)
	}
	if err := s.show(ctx, view); err != nil {
		return nil, toStatus(err)
	}
	return s.viewToAPI(view.Status()), nil
}

// ListViews implements sidecarpb.SidecarServer.
func (s *Service) ListViews(_ context.Context, r *sidecarpb.ListViewsRequest) (*sidecarpb.ListViewsResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	groups := s.opts.Site.Groups()
	if r.Group != "" {
		g, err := s.opts.Site.Group(r.Group)
		if err != nil {
			return nil, toStatus(err)
		}
		groups = []*replication.Group{g}
	}
	resp := &sidecarpb.ListViewsResponse{}
	for _, g := range groups {
		for _, st := range g.Views() {
			resp.Views = append(resp.Views, s.viewToAPI(st))
		}
	}
	return resp, nil
}

// DeleteView implements sidecarpb.SidecarServer.
func (s *Service) DeleteView(ctx context.Context, r *sidecarpb.DeleteViewRequest) (*sidecarpb.DeleteViewResponse,
	error) {
	if err := s.waitAdopted(ctx, "view "+r.Name); err != nil {
		return nil, err
	}
	if group, ok := s.viewOfShards(r.Group, r.Name); ok {
		ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
		defer cancel()
		if err := s.opts.Shards.CloseViews(ctx, group, r.Name); err != nil {
			return nil, toStatus(err)
		}
		return &sidecarpb.DeleteViewResponse{}, nil
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	view, g, err := s.view(r.Group, r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := s.deleteView(ctx, g, view); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DeleteViewResponse{}, nil
}

func (s *Service) view(group, name string) (*replication.View, *replication.Group, error) {
	g, err := s.opts.Site.Group(group)
	if err != nil {
		return nil, nil, err
	}
	view, err := g.View(name)
	return view, g, err
}

func (s *Service) viewToAPI(st replication.ViewStatus) *sidecarpb.View {
	v := &sidecarpb.View{
		Group: st.Group, Name: st.Name, Id: st.ID, Timeline: st.Timeline, Ordinal: st.Ordinal,
		PointUnixNanos: known(st.PointUnixNanos), CreatedUnixNanos: st.CreatedUnixNanos, Writable: st.Writable, Test: st.Test,
		UsedBytes: st.UsedBytes, LimitBytes: st.LimitBytes,
	}
	if st.Failed != nil {
		v.Failed = untrusted.Reason(st.Failed.Error())
	}
	shardsOfView(v, st)
	for _, m := range st.Volumes {
		volume := &sidecarpb.ViewVolume{VolumeId: m.VolumeID, SizeBytes: m.SizeBytes,
			BlockSizeBytes: uint32(m.BlockSizeBytes), FsType: m.FSType,
			CsiVolumeId: blockdev.ViewVolumeID(st.ID, m.Index)}
		if srv := s.shown[blockdev.ViewVolumeID(st.ID, m.Index)]; srv != nil {
			volume.Path = srv.Path()
		}
		v.Volumes = append(v.Volumes, volume)
	}
	return v
}

// viewMount is where a volume of a view is mounted: in a directory that has not the name of a volume, and in which the
// driver looks for none.
func (s *Service) viewMount(key string) string {
	return filepath.Join(s.opts.ShimDir, blockdev.ServedDir, key)
}

func (s *Service) viewShim(key string) shim.Config {
	return shim.Config{MountPoint: s.viewMount(key), VolumeID: key, Mode: shim.ModeFlush}
}

// show serves the volumes of a view that are not served. After an error some may be. The caller holds attachMu.
func (s *Service) show(ctx context.Context, view *replication.View) error {
	st := view.Status()
	if s.opts.Keeper == nil {
		return status.Errorf(codes.FailedPrecondition, "view %s: this replicator has no keeper socket, so it cannot attach",
			st.Name)
	}
	for _, m := range view.Volumes() {
		key := blockdev.ViewVolumeID(st.ID, m.Index)
		if s.shown[key] != nil {
			continue
		}
		srv, err := shim.Mount(s.viewShim(key), m)
		if err != nil {
			return fmt.Errorf("view %s: volume %s: %w", st.Name, m.VolumeID, err)
		}
		if err := shim.TuneBDI(srv.State().Device, maxDirtyBytes); err != nil {
			klog.ErrorS(err, "The view works, but writeback is slow", "view", st.Name, "volume", m.VolumeID)
		}
		if err := s.keep(ctx, key, srv); err != nil {
			err = status.Errorf(codes.Unavailable, "view %s: volume %s: the keeper did not take its descriptor: %v; is the "+
				"keeper running?", st.Name, m.VolumeID, err)
			return errors.Join(err, srv.Unmount())
		}
		s.shows(key, srv)
	}
	return nil
}

// shows adds a served volume of a view. It removes it when its shim ends without a call.
func (s *Service) shows(key string, srv *shim.Server) {
	s.shown[key] = srv
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		select {
		case <-s.ctx.Done():
			return
		case <-srv.Done():
		}
		s.attachMu.Lock()
		defer s.attachMu.Unlock()
		if s.shown[key] == srv {
			klog.InfoS("Shim of a view ended", "volume", key, "err", srv.Err())
			s.hide(s.ctx, key)
		}
	}()
}

// hide forgets a volume of a view whose shim has ended.
func (s *Service) hide(ctx context.Context, key string) {
	delete(s.shown, key)
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	if err := s.opts.Keeper.Remove(ctx, key); err != nil {
		klog.ErrorS(err, "The keeper still holds a descriptor of a view that is not served; it is dropped when the keeper "+
			"is back", "volume", key)
	}
}

// deleteView ends the serving of a view and deletes it. The caller holds attachMu.
func (s *Service) deleteView(ctx context.Context, g *replication.Group, view *replication.View) error {
	st := view.Status()
	for _, m := range view.Volumes() {
		key := blockdev.ViewVolumeID(st.ID, m.Index)
		srv := s.shown[key]
		if srv == nil {
			// A crash between the mount and the keeper's answer may have left the mount.
			if err := shim.Unmount(s.viewMount(key)); err != nil {
				return err
			}
			delete(s.unserved, key)
			continue
		}
		if err := srv.Unmount(); errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("view %s of group %s: volume %s: %w; unmount the view on this node, then `slipctl view delete %s "+
				"%s` there detaches its devices and goes on", st.Name, st.Group, m.VolumeID, err, st.Group, st.Name)
		} else if err != nil {
			return err
		}
		s.hide(ctx, key)
	}
	return g.DeleteView(st.Name)
}

// adoptView serves a volume of a view again that an earlier replicator served. The caller holds attachMu, and closes
// the descriptor after an error.
func (s *Service) adoptView(e keeper.Entry, state shim.State, viewID string, index uint32) error {
	device, err := s.opts.Site.ViewVolume(viewID, index)
	if errors.Is(err, replication.ErrNotFound) && len(s.opts.Site.Broken()) == 0 {
		// No process will serve it again. Its users get errors; without this they would wait forever.
		klog.ErrorS(err, "A view is gone and is still attached: its connection is ended", "volume", e.Name)
		ctx, cancel := context.WithTimeout(s.ctx, keeperPatience)
		defer cancel()
		return errors.Join(shim.Abort(state.Device), s.opts.Keeper.Remove(ctx, e.Name), err)
	}
	if err != nil {
		return err
	}
	srv, err := shim.Adopt(e.File, state, s.viewShim(e.Name), device)
	if errors.Is(err, shim.ErrUnmounted) {
		ctx, cancel := context.WithTimeout(s.ctx, keeperPatience)
		defer cancel()
		klog.InfoS("The volume of a view was unmounted meanwhile", "volume", e.Name)
		return errors.Join(s.opts.Keeper.Remove(ctx, e.Name), e.File.Close())
	}
	if err != nil {
		return err
	}
	s.shows(e.Name, srv)
	return s.keep(s.ctx, e.Name, srv) // from now on this process tells the keeper about changes
}
