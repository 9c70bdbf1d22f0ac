package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// CutGroup clones the images, or copies them at once where the file system cannot.
func (s *fakeSidecar) CutGroup(ctx context.Context, r *sidecarpb.CutGroupRequest) (*sidecarpb.CutGroupResponse, error) {
	done, err := s.begin("CutGroup", r.GetGroup())
	if err != nil {
		return nil, err
	}
	defer done()
	g, ok := s.groups[r.GetGroup()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	pool, err := s.pool()
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	s.ordinal++
	cut := blockdev.SnapshotCut{Group: g.GetName(), GroupID: g.GetGroupId(), Timeline: "t", Ordinal: s.ordinal,
		UnixNanos: int64(s.ordinal)}
	for _, t := range r.GetTargets() {
		if !slices.ContainsFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool {
			return v.GetVolumeId() == t.GetVolumeId()
		}) {
			return nil, status.Errorf(codes.FailedPrecondition, "volume %s is not in the group", t.GetVolumeId())
		}
		rec, err := pool.GetSnapshot(t.GetSnapshotId())
		if err != nil {
			return nil, err
		}
		if rec.State != blockdev.SnapshotCreating {
			return nil, fmt.Errorf("test: a cut for snapshot %s, which is %s", rec.ID, rec.State)
		}
		source, _ := pool.ImagePath(t.GetVolumeId())
		target, _ := pool.SnapshotImagePath(rec.ID)
		err = blockdev.CloneImage(s.node.mem, source, target, rec.SizeBytes, rec.SizeBytes)
		if errors.Is(err, errors.ErrUnsupported) {
			err = (&blockdev.ImageCopy{FS: s.node.mem, Source: source, Target: target, SourceBytes: rec.SizeBytes,
				TargetBytes: rec.SizeBytes}).Run(ctx)
		}
		if err != nil {
			return nil, err
		}
		if _, err := pool.UpdateSnapshot(rec.ID, func(r *blockdev.SnapshotRecord) error {
			r.State, r.Cut, r.Method, r.CopiedBytes = blockdev.SnapshotReady, cut, blockdev.MethodReflink, r.SizeBytes
			return nil
		}); err != nil {
			return nil, err
		}
	}
	return &sidecarpb.CutGroupResponse{Timeline: cut.Timeline, Ordinal: cut.Ordinal, UnixNanos: cut.UnixNanos}, nil
}

func (s *fakeSidecar) ReleaseCut(_ context.Context,
	r *sidecarpb.ReleaseCutRequest) (*sidecarpb.ReleaseCutResponse, error) {
	done, err := s.begin("ReleaseCut", r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	defer done()
	return &sidecarpb.ReleaseCutResponse{}, nil
}

// pool opens the node's pool beside the driver.
func (s *fakeSidecar) pool() (*blockdev.Pool, error) {
	return blockdev.OpenPool(s.node.mem, "/slipstream-test-pool", blockdev.WhoReplicator)
}

// recordGroup notes in a volume's record which group it is in.
func (s *fakeSidecar) recordGroup(volumeID, group string) error {
	pool, err := s.pool()
	if err != nil {
		return err
	}
	defer pool.Close()
	_, err = pool.Update(volumeID, func(r *blockdev.VolumeRecord) error {
		r.Group = group
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
