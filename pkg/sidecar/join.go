package sidecar

import (
	"context"
	"errors"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// JoinGroup implements sidecarpb.SidecarServer. A volume that is refused may leave the group that was made for it; the
// caller deletes the group with the volume.
func (s *Service) JoinGroup(_ context.Context, r *sidecarpb.JoinGroupRequest) (*sidecarpb.JoinGroupResponse, error) {
	// Without attachMu: it takes as long as the preallocation of a journal.
	made, err := s.makeGroupToJoin(r)
	if err != nil {
		return nil, toStatus(err)
	}
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	// Also one that this call has made may have been deleted, or changed, meanwhile.
	group, err := s.opts.Site.Group(r.Group)
	if err != nil {
		return nil, toStatus(err)
	}
	if (r.OnlyNew && !made) || !fits(group, rec, r) {
		return &sidecarpb.JoinGroupResponse{Unfit: s.status(group)}, nil
	}
	if err := s.admit(group, rec, false); err != nil {
		return nil, toStatus(err)
	}
	return &sidecarpb.JoinGroupResponse{}, nil
}

// makeGroupToJoin makes the group of a request if it is missing and the request asks for that, and reports whether it
// did.
func (s *Service) makeGroupToJoin(r *sidecarpb.JoinGroupRequest) (made bool, err error) {
	if _, err := s.opts.Site.Group(r.Group); !errors.Is(err, replication.ErrNotFound) || !r.Create {
		return false, err
	}
	spec := replication.GroupSpec{Name: r.Group}
	changeSettings(&spec.Settings, r.Settings)
	_, err = s.opts.Site.CreateGroup(spec)
	return err == nil, err
}

// fits reports whether a group has the settings that a request gives, and no volume of another namespace than it
// allows.
func fits(group *replication.Group, rec *blockdev.VolumeRecord, r *sidecarpb.JoinGroupRequest) bool {
	have := group.Settings()
	want := have
	changeSettings(&want, r.Settings)
	if want != have {
		return false
	}
	if r.Namespace == "" || rec.Group == group.Name() {
		return true
	}
	return !slices.ContainsFunc(group.Status().Volumes, func(v replication.VolumeStatus) bool {
		return v.Claim.Namespace != "" && v.Claim.Namespace != r.Namespace
	})
}
