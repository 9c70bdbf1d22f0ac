package sidecar

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// ModifyGroup implements sidecarpb.SidecarServer. It does not wait for volumes that are attached or moved meanwhile.
func (s *Service) ModifyGroup(ctx context.Context,
	r *sidecarpb.ModifyGroupRequest) (*sidecarpb.ModifyGroupResponse, error) {
	g, err := s.opts.Site.Group(r.Name)
	if err != nil {
		return nil, toStatus(err)
	}
	_, before := s.shardOf(g)
	if err := g.Modify(func(next *core.Settings) { changeSettings(next, r.Settings) }); err != nil {
		return nil, toStatus(err)
	}
	// What has just become a shard has the interval of its own until it has joined.
	if id, ok := s.shardOf(g); ok && before && r.Settings != nil && r.Settings.EpochMillis != nil {
		ctx, cancel := context.WithTimeout(ctx, wholeTimeout)
		defer cancel()
		if _, err := s.opts.Shards.SetEpochInterval(ctx, id.Group, *r.Settings.EpochMillis); err != nil {
			return nil, toStatus(err)
		}
	}
	return &sidecarpb.ModifyGroupResponse{Status: s.status(g)}, nil
}

// ModifyVolume implements sidecarpb.SidecarServer.
func (s *Service) ModifyVolume(_ context.Context,
	r *sidecarpb.ModifyVolumeRequest) (*sidecarpb.ModifyVolumeResponse, error) {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	rec, err := s.opts.Pool.Get(r.VolumeId)
	if err != nil {
		return nil, toStatus(err)
	}
	if !rec.Replicable {
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %s is not replicable: the replicator does not serve its I/O", rec.ID)
	}
	if r.Order != nil {
		if err := s.setOrder(rec, blockdev.Order(*r.Order)); err != nil {
			return nil, toStatus(err)
		}
	}
	if r.Claim != nil {
		if err := s.setClaim(rec, claimFromAPI(r.Claim)); err != nil {
			return nil, toStatus(err)
		}
	}
	if r.IoBytesPerSecond != nil || r.Iops != nil {
		if err := s.setLimits(rec.ID, r.IoBytesPerSecond, r.Iops); err != nil {
			return nil, toStatus(err)
		}
	}
	return &sidecarpb.ModifyVolumeResponse{}, nil
}

// setClaim changes the record first, as setOrder does.
func (s *Service) setClaim(rec *blockdev.VolumeRecord, claim *blockdev.ClaimRecord) error {
	if err := claim.Validate(); err != nil {
		return status.Errorf(codes.InvalidArgument, "volume %s: %v", rec.ID, err)
	}
	if rec.Secondary {
		return status.Errorf(codes.FailedPrecondition, "volume %s is a secondary copy: its claim is its primary's", rec.ID)
	}
	if !rec.Claim.Equal(claim) {
		if _, err := s.opts.Pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
			r.Claim = claim
			return nil
		}); err != nil {
			return err
		}
	}
	return s.repeatInGroup(rec.ID, func(g *replication.Group) error { return g.SetClaim(rec.ID, claim) })
}

func claimFromAPI(c *sidecarpb.Claim) *blockdev.ClaimRecord {
	return &blockdev.ClaimRecord{Name: c.GetName(), Namespace: c.GetNamespace(), Volume: c.GetVolume(),
		Block: c.GetBlock(),
		Manifest: &blockdev.ClaimManifest{StorageClass: c.GetStorageClass(), AccessModes: c.GetAccessModes(),
			RequestBytes: c.GetRequestBytes(), Labels: c.GetLabels()}}
}

func claimToAPI(c *blockdev.ClaimRecord) *sidecarpb.Claim {
	m := c.Manifest
	if m == nil {
		return nil
	}
	return &sidecarpb.Claim{Name: c.Name, Namespace: c.Namespace, Volume: c.Volume, Block: c.Block,
		StorageClass: m.StorageClass, AccessModes: m.AccessModes, RequestBytes: m.RequestBytes, Labels: m.Labels}
}

// setLimits changes those limits of a volume's I/O that are given, also while it is attached.
func (s *Service) setLimits(id string, bytesPerSecond, iops *int64) error {
	if (bytesPerSecond != nil && *bytesPerSecond < 0) || (iops != nil && *iops < 0) {
		return status.Errorf(codes.InvalidArgument, "volume %s: a limit of its I/O is negative: 0 is no limit", id)
	}
	rec, err := s.opts.Pool.Update(id, func(r *blockdev.VolumeRecord) error {
		if bytesPerSecond != nil {
			r.IOBytesPerSecond = *bytesPerSecond
		}
		if iops != nil {
			r.IOPS = *iops
		}
		return nil
	})
	if err != nil {
		return err
	}
	if a := s.attached[id]; a != nil {
		a.shim.SetLimits(limitsOf(rec))
	}
	return nil
}

func limitsOf(rec *blockdev.VolumeRecord) shim.Limits {
	return shim.Limits{BytesPerSecond: rec.IOBytesPerSecond, OperationsPerSecond: rec.IOPS}
}

// setOrder changes the record first: it decides how the volume is attached next, and the group's members repeat it.
func (s *Service) setOrder(rec *blockdev.VolumeRecord, order blockdev.Order) error {
	switch {
	case order != blockdev.OrderFlush && order != blockdev.OrderAck:
		return status.Errorf(codes.InvalidArgument, "volume %s: order %q is neither %s nor %s", rec.ID, order,
			blockdev.OrderFlush, blockdev.OrderAck)
	case rec.Secondary:
		return status.Errorf(codes.FailedPrecondition, "volume %s is a secondary copy: its order is its primary's", rec.ID)
	case order != rec.Order && s.attached[rec.ID] != nil:
		return status.Errorf(codes.FailedPrecondition, "volume %s is attached, and its order decides how: unstage it first",
			rec.ID)
	}
	_, err := s.opts.Pool.Update(rec.ID, func(r *blockdev.VolumeRecord) error {
		r.Order = order
		return nil
	})
	if err != nil {
		return err
	}
	return s.repeatInGroup(rec.ID, func(g *replication.Group) error { return g.SetOrder(rec.ID, order) })
}

// repeatInGroup has the group of a volume take over what the volume's record says. A volume in no group is a success.
func (s *Service) repeatInGroup(id string, repeat func(*replication.Group) error) error {
	group, err := s.opts.Site.GroupOf(id)
	if errors.Is(err, replication.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return repeat(group)
}
