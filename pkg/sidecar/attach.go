package sidecar

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

const (
	// maxDirtyBytes bounds what the page cache of one shim may hold unwritten, and with it the time of a flush.
	maxDirtyBytes = 256 << 20
	// keeperPatience is how long a call waits for the keeper, which may be starting, after the node did.
	keeperPatience = 15 * time.Second
	// adoptInterval is how often the keeper is asked for descriptors until it has answered once.
	adoptInterval = 200 * time.Millisecond
)

// attachment is a volume that is served.
type attachment struct {
	shim *shim.Server
	// group is nil for a volume served from its image alone, which then is open here.
	group *replication.Group
	image *blockdev.Image
}

// AttachVolume implements sidecarpb.SidecarServer.
func (s *Service) AttachVolume(ctx context.Context,
	r *sidecarpb.AttachVolumeRequest) (*sidecarpb.AttachVolumeResponse, error) {
	if err := s.waitAdopted(ctx, r.VolumeId); err != nil {
		return nil, err
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	if !rec.Replicable {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not replicable; attach its image directly", rec.ID)
	}
	a := s.attached[rec.ID]
	if a == nil && s.unserved[rec.ID] {
		return nil, status.Errorf(codes.Unavailable,
			"volume %s is attached since before this replicator was started, and is served again when its group %s is open; "+
				"see slipctl group list", rec.ID, rec.Group)
	}
	if a == nil {
		if a, err = s.attach(ctx, rec); err != nil {
			return nil, toStatus(err)
		}
	}
	return &sidecarpb.AttachVolumeResponse{
		Path: a.shim.Path(), SizeBytes: a.device().Size(), DirectIo: rec.Order == blockdev.OrderAck,
		BlockSizeBytes: uint32(rec.BlockSizeBytes),
	}, nil
}

// waitAdopted waits until the keeper has given back what it holds. A volume that is among that must be adopted, not
// mounted a second time.
func (s *Service) waitAdopted(ctx context.Context, id string) error {
	if s.opts.Keeper == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	select {
	case <-s.adopted:
		return nil
	case <-ctx.Done():
		return status.Errorf(codes.Unavailable, "volume %s: the keeper has not yet said what it holds; is the keeper "+
			"running?", id)
	}
}

func (a *attachment) device() blockdev.Device { return a.shim.Device() }

// openDevice returns what serves a volume: its group, or its image alone.
func (s *Service) openDevice(rec *blockdev.VolumeRecord, adopting bool) (*attachment, blockdev.Device, error) {
	group, err := s.opts.Site.GroupOf(rec.ID)
	switch {
	case err == nil:
		attach := group.Attach
		if adopting {
			attach = group.Reattach
		}
		v, err := attach(rec.ID)
		return &attachment{group: group}, v, err
	case !errors.Is(err, replication.ErrNotFound):
		return nil, nil, err
	case rec.Group != "":
		// Served from its image alone, the group would miss its writes.
		return nil, nil, status.Errorf(codes.FailedPrecondition, "volume %s is half way into group %s, or out of it; repeat "+
			"that (slipctl group add or remove %[2]s %[1]s)", rec.ID, rec.Group)
	}
	image, err := s.opts.Pool.OpenImage(rec.ID)
	return &attachment{image: image}, image, err
}

func (a *attachment) closeDevice(id string) error {
	if a.group != nil {
		return a.group.Detach(id)
	}
	return errors.Join(a.image.Flush(), a.image.Close())
}

func (s *Service) shimConfig(rec *blockdev.VolumeRecord) shim.Config {
	cfg := shim.Config{MountPoint: filepath.Join(s.opts.ShimDir, rec.ID), VolumeID: rec.ID, Mode: shim.ModeFlush,
		Limits: limitsOf(rec)}
	if rec.Order == blockdev.OrderAck {
		cfg.Mode = shim.ModeAck
	}
	if s.opts.Metrics != nil {
		cfg.Observe = s.opts.Metrics.observe
	}
	return cfg
}

func (s *Service) attach(ctx context.Context, rec *blockdev.VolumeRecord) (*attachment, error) {
	if s.opts.Keeper == nil {
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %s: this replicator has no keeper socket, so it cannot attach", rec.ID)
	}
	a, dev, err := s.openDevice(rec, false)
	if err != nil {
		return nil, err
	}
	a.shim, err = shim.Mount(s.shimConfig(rec), dev)
	if err != nil {
		return nil, errors.Join(err, a.closeDevice(rec.ID))
	}
	if err := shim.TuneBDI(a.shim.State().Device, maxDirtyBytes); err != nil {
		klog.ErrorS(err, "The volume works, but writeback is slow", "volume", rec.ID)
	}
	if err := s.keep(ctx, rec.ID, a.shim); err != nil {
		// Without the keeper a restart of the replicator would cause I/O errors for the application.
		err = status.Errorf(codes.Unavailable, "volume %s: the keeper did not take its descriptor: %v; is the keeper "+
			"running?", rec.ID, err)
		return nil, errors.Join(err, a.shim.Unmount(), a.closeDevice(rec.ID))
	}
	s.serve(rec, a)
	return a, nil
}

func (s *Service) keep(ctx context.Context, id string, srv *shim.Server) error {
	meta, err := srv.State().Marshal()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	return s.opts.Keeper.Add(ctx, id, meta, srv.FD())
}

// serve adds an attached volume. It removes the volume when its shim ends without a call, because it was unmounted or
// aborted from outside.
func (s *Service) serve(rec *blockdev.VolumeRecord, a *attachment) {
	id := rec.ID
	s.attached[id] = a
	s.opts.Metrics.serves(rec, a.shim)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		select {
		case <-s.ctx.Done():
			return
		case <-a.shim.Done():
		}
		s.attachMu.Lock()
		defer s.attachMu.Unlock()
		if s.attached[id] != a {
			return // detached by a call
		}
		klog.InfoS("Shim ended", "volume", id, "err", a.shim.Err())
		if err := s.drop(s.ctx, id, a); err != nil {
			klog.ErrorS(err, "Detaching a volume whose shim ended", "volume", id)
		}
	}()
}

// forget removes an attached volume.
func (s *Service) forget(id string) {
	delete(s.attached, id)
	s.opts.Metrics.ends(id)
}

// drop forgets a volume whose shim has ended.
func (s *Service) drop(ctx context.Context, id string, a *attachment) error {
	s.forget(id)
	ctx, cancel := context.WithTimeout(ctx, keeperPatience)
	defer cancel()
	if err := s.opts.Keeper.Remove(ctx, id); err != nil {
		klog.ErrorS(err, "The keeper still holds an unneeded descriptor; it is dropped when the keeper is back",
			"volume", id)
	}
	return a.closeDevice(id)
}

// DetachVolume implements sidecarpb.SidecarServer.
func (s *Service) DetachVolume(ctx context.Context,
	r *sidecarpb.DetachVolumeRequest) (*sidecarpb.DetachVolumeResponse, error) {
	if err := blockdev.ValidateID(r.VolumeId); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "volume %v", err)
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	a := s.attached[r.VolumeId]
	if a == nil {
		// A crash between the mount and the keeper's answer may have left the mount.
		if err := shim.Unmount(filepath.Join(s.opts.ShimDir, r.VolumeId)); err != nil {
			return nil, toStatus(err)
		}
		delete(s.unserved, r.VolumeId)
		return &sidecarpb.DetachVolumeResponse{}, nil
	}
	if err := a.shim.Unmount(); errors.Is(err, unix.EBUSY) {
		return nil, toStatus(fmt.Errorf("volume %s: %w; detach its loop device first", r.VolumeId, err))
	} else if err != nil {
		return nil, toStatus(err)
	}
	if err := s.drop(ctx, r.VolumeId, a); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.DetachVolumeResponse{}, nil
}

// adoptLoop asks the keeper, until it has answered once, for the descriptors of volumes that an earlier replicator
// served.
func (s *Service) adoptLoop() {
	for {
		ctx, cancel := context.WithTimeout(s.ctx, keeperPatience)
		entries, err := s.opts.Keeper.Fetch(ctx)
		cancel()
		if err == nil {
			s.adoptAll(entries)
			close(s.adopted)
			s.continueMoves()
			s.adoptLater()
			return
		}
		if !pause.For(s.ctx, adoptInterval) {
			return
		}
	}
}

func (s *Service) adoptAll(entries []keeper.Entry) {
	for _, e := range entries {
		if err := s.adopt(e); err != nil {
			klog.ErrorS(err, "Volume cannot be served again; its I/O waits until its group can be opened", "volume", e.Name)
		}
	}
}

// adoptLaterInterval is the time between two checks for groups that opened after their volumes could not be served.
const adoptLaterInterval = time.Second

// adoptLater serves volumes again whose groups were opened later, which the site does by itself when there is space
// again.
func (s *Service) adoptLater() {
	for {
		s.attachMu.Lock()
		left, ready := len(s.unserved), false
		for id := range s.unserved {
			ready = ready || s.openHere(id)
		}
		s.attachMu.Unlock()
		if left == 0 {
			return
		}
		if ready {
			ctx, cancel := context.WithTimeout(s.ctx, keeperPatience)
			entries, err := s.opts.Keeper.Fetch(ctx)
			cancel()
			if err == nil {
				s.adoptAll(entries)
			}
		}
		if !pause.For(s.ctx, adoptLaterInterval) {
			return
		}
	}
}

// openHere reports whether the group of a volume, or of a view's volume, is open.
func (s *Service) openHere(id string) bool {
	if viewID, index, ok := blockdev.ParseViewVolumeID(id); ok {
		_, err := s.opts.Site.ViewVolume(viewID, index)
		return err == nil
	}
	_, err := s.opts.Site.GroupOf(id)
	return err == nil
}

// adopt serves a volume again. One that it cannot serve is in unserved.
func (s *Service) adopt(e keeper.Entry) (err error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	if s.attached[e.Name] != nil || s.shown[e.Name] != nil {
		return e.File.Close()
	}
	defer func() {
		if err != nil && s.attached[e.Name] == nil && s.shown[e.Name] == nil {
			s.unserved[e.Name] = true
		} else {
			delete(s.unserved, e.Name)
		}
	}()
	fail := func(err error) error { return errors.Join(err, e.File.Close()) }
	state, err := shim.ParseState(e.Meta)
	if err != nil {
		return fail(err)
	}
	if viewID, index, ok := blockdev.ParseViewVolumeID(e.Name); ok {
		if err := s.adoptView(e, state, viewID, index); err != nil && s.shown[e.Name] == nil {
			return fail(err)
		}
		return nil
	}
	rec, err := s.opts.Pool.Get(e.Name)
	if err != nil {
		return fail(err)
	}
	a, dev, err := s.openDevice(rec, true)
	if err != nil {
		return fail(err)
	}
	a.shim, err = shim.Adopt(e.File, state, s.shimConfig(rec), dev)
	if errors.Is(err, shim.ErrUnmounted) {
		ctx, cancel := context.WithTimeout(s.ctx, keeperPatience)
		defer cancel()
		klog.InfoS("The volume was unmounted meanwhile", "volume", e.Name)
		return errors.Join(s.opts.Keeper.Remove(ctx, e.Name), a.closeDevice(e.Name), e.File.Close())
	}
	if err != nil {
		return fail(errors.Join(err, a.closeDevice(e.Name)))
	}
	s.serve(rec, a)
	// From now on this process tells the keeper about changes.
	return s.keep(s.ctx, e.Name, a.shim)
}
