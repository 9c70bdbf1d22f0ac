package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// AddVolume implements sidecarpb.SidecarServer.
func (s *Service) AddVolume(_ context.Context, r *sidecarpb.AddVolumeRequest) (*sidecarpb.AddVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	group, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.NotFound, "there is no volume %q in the pool of this node; see `slipctl "+
			"volume list` here, create it with `slipctl volume create`, or give this command at the node that has the "+
			"volume, of the site where group %s is primary", r.VolumeId, r.Group)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	if err := s.admit(group, rec, r.Move); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.AddVolumeResponse{}, nil
}

// admit makes a volume a member of a group, with move also one of another group. The caller holds attachMu.
func (s *Service) admit(group *replication.Group, rec *blockdev.VolumeRecord, move bool) error {
	if !rec.Replicable {
		return sidecarpb.Refusal(codes.FailedPrecondition, sidecarpb.ReasonNotReplicable, fmt.Sprintf(
			"volume %s is not replicable; it was created without slipstream.dev/replicable", rec.ID))
	}
	other, err := s.opts.Site.GroupOf(rec.ID)
	switch {
	case err != nil || other == group: // the group itself refuses a volume that it must not take
		return s.putIn(group, rec)
	case move:
		return s.move(other, group, rec.ID)
	}
	return status.Errorf(codes.FailedPrecondition, "volume %s is in group %s; take it out there first with `slipctl "+
		"group remove %[2]s %[1]s` at this site, or move it with --move", rec.ID, other.Name())
}

// putIn makes a volume a member. It is in no group, or in this one already.
func (s *Service) putIn(group *replication.Group, rec *blockdev.VolumeRecord) error {
	var err error
	if a := s.attached[rec.ID]; a == nil || a.group != nil {
		err = group.AddVolume(rec, nil)
	} else {
		err = a.moveInto(group, rec)
	}
	if err != nil {
		return err
	}
	return s.intend(rec.ID, "")
}

// move takes a volume out of one group and puts it into another. In between it has no group. That it is to have one is
// in its record from the beginning, so that a crash does not leave it so.
func (s *Service) move(from, to *replication.Group, id string) error {
	if err := to.CheckWritable(); err != nil {
		return err
	}
	if err := s.intend(id, to.Name()); err != nil {
		return err
	}
	if err := s.takeOut(from, id); err != nil {
		return err
	}
	rec, err := s.opts.Pool.Get(id)
	if err != nil {
		return err
	}
	return s.putIn(to, rec)
}

// intend notes the group that a volume is on its way to; empty for none.
func (s *Service) intend(id, group string) error {
	_, err := s.opts.Pool.Update(id, func(r *blockdev.VolumeRecord) error {
		r.MoveTo = group
		return nil
	})
	return err
}

// continueMoves completes the moves that an earlier process began. What cannot be completed now stays noted for the
// next start; the volume is served meanwhile, in its old group or in none.
func (s *Service) continueMoves() {
	recs, err := s.opts.Pool.List()
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", s.opts.Pool.Dir())
	}
	for _, rec := range recs {
		if rec.MoveTo == "" || s.ctx.Err() != nil {
			continue
		}
		if err := s.continueMove(rec.ID); err != nil {
			klog.ErrorS(err, "The volume's move to another group is not complete; move it again", "volume", rec.ID, "to",
				rec.MoveTo)
		} else {
			klog.InfoS("Completed the move to another group that was interrupted", "volume", rec.ID, "to", rec.MoveTo)
		}
	}
}

func (s *Service) continueMove(id string) error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(id)
	if err != nil || rec.MoveTo == "" { // a call completed it meanwhile
		return err
	}
	to, err := s.opts.Site.Group(rec.MoveTo)
	if err != nil {
		return err
	}
	from, err := s.opts.Site.GroupOf(id)
	if err == nil && from != to {
		return s.move(from, to, id)
	}
	return s.putIn(to, rec)
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

// flushBoth is a device whose flush also flushes another device.
type flushBoth struct {
	blockdev.Device
	old *blockdev.Image
}

func (f flushBoth) Flush() error { return errors.Join(f.Device.Flush(), f.old.Flush()) }

// RemoveVolume implements sidecarpb.SidecarServer.
func (s *Service) RemoveVolume(_ context.Context,
	r *sidecarpb.RemoveVolumeRequest) (*sidecarpb.RemoveVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, recErr := s.opts.Pool.Get(r.VolumeId)
	group, err := s.opts.Site.Group(r.Group)
	// Every member's record names its group, so a record that can be read tells it of one that is not open, too.
	absent := errors.Is(err, replication.ErrNotOpen) && (errors.Is(recErr, blockdev.ErrNoVolume) ||
		recErr == nil && rec.Group != r.Group)
	if err != nil && !absent {
		return nil, toStatus(err)
	}
	if recErr == nil && rec.MoveTo != "" {
		if err := s.intend(rec.ID, ""); err != nil {
			return nil, toStatus(err)
		}
	}
	if absent {
		return &sidecarpb.RemoveVolumeResponse{}, nil
	}
	if err := s.takeOut(group, r.VolumeId); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.RemoveVolumeResponse{}, nil
}

// takeOut takes a volume out of its group. One that is attached is served from its image from then on: what its
// application does meanwhile waits for the exchange.
func (s *Service) takeOut(group *replication.Group, id string) error {
	a := s.attached[id]
	if a == nil || a.group != group {
		return group.RemoveVolume(id, nil)
	}
	image, err := s.opts.Pool.OpenImage(id)
	if err != nil {
		return err
	}
	err = group.RemoveVolume(id, func(leave func() error) error {
		return a.shim.Exchange(func() (blockdev.Device, error) {
			if err := leave(); err != nil {
				return nil, err
			}
			a.group, a.image = nil, image
			return image, nil
		})
	})
	if a.image != image {
		err = errors.Join(err, image.Close())
	}
	return err
}

// ResizeVolume implements sidecarpb.SidecarServer.
func (s *Service) ResizeVolume(_ context.Context,
	r *sidecarpb.ResizeVolumeRequest) (*sidecarpb.ResizeVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	group, err := s.opts.Site.GroupOf(r.VolumeId)
	switch {
	case err == nil:
		err = group.Resize(r.VolumeId, r.SizeBytes) // also when it has the size: the peer may not have heard of it
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
