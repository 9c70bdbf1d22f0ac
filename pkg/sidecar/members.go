package sidecar

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// AddVolume implements sidecarpb.SidecarServer.
func (s *Service) AddVolume(_ context.Context, r *sidecarpb.AddVolumeRequest) (*sidecarpb.AddVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	group, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if other, err := s.opts.Site.GroupOf(rec.ID); err == nil && other != group {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is in group %s; remove it there first", rec.ID, other.Name())
	}
	if !rec.Replicable {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not replicable; it was created without slipstream.dev/replicable", rec.ID)
	}
	a := s.attached[rec.ID]
	if a == nil || a.group != nil {
		err = group.AddVolume(rec, nil)
	} else {
		err = a.moveInto(group, rec)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.AddVolumeResponse{}, nil
}

// moveInto puts a volume that is served from its image into a group, under load.
//
// Writes go through the journal from the exchange on, but those before it may still be in the image's page cache. Until
// that is synced, a flush has to cover both.
func (a *attachment) moveInto(group *replication.Group, rec *blockdev.VolumeRecord) error {
	old := a.image
	err := group.AddVolume(rec, func(v *replication.Volume) error {
		a.shim.Swap(flushBoth{Device: v, old: old})
		if err := old.Flush(); err != nil {
			a.shim.Swap(old)
			return err
		}
		a.shim.Swap(v)
		return nil
	})
	if err != nil {
		return err
	}
	if _, err := group.Attach(rec.ID); err != nil {
		return err
	}
	a.group, a.image = group, nil
	return old.Close()
}

// flushBoth is a device whose flush covers another one too.
type flushBoth struct {
	blockdev.Device
	old *blockdev.Image
}

func (f flushBoth) Flush() error { return errors.Join(f.Device.Flush(), f.old.Flush()) }

// RemoveVolume implements sidecarpb.SidecarServer.
func (s *Service) RemoveVolume(_ context.Context, r *sidecarpb.RemoveVolumeRequest) (*sidecarpb.RemoveVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	group, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if err := group.RemoveVolume(r.VolumeId); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RemoveVolumeResponse{}, nil
}

// ResizeVolume implements sidecarpb.SidecarServer.
func (s *Service) ResizeVolume(_ context.Context, r *sidecarpb.ResizeVolumeRequest) (*sidecarpb.ResizeVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	group, err := s.opts.Site.GroupOf(r.VolumeId)
	switch {
	case err == nil:
		if r.SizeBytes > rec.SizeBytes {
			err = group.Resize(r.VolumeId, r.SizeBytes)
		}
	case errors.Is(err, replication.ErrNotFound):
		err = nil
		if r.SizeBytes > rec.SizeBytes {
			_, err = s.opts.Pool.Grow(r.VolumeId, r.SizeBytes)
		}
		if a := s.attached[r.VolumeId]; err == nil && a != nil {
			err = a.image.Grow(max(r.SizeBytes, rec.SizeBytes))
		}
	}
	if err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.ResizeVolumeResponse{SizeBytes: max(r.SizeBytes, rec.SizeBytes)}, nil
}
