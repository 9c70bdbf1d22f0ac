package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/views"
)

// NodeStageVolume attaches a volume to a loop device and, for a file system volume, mounts it on the staging path.
//
// It is done in the background (see background): a check of a large file system takes longer than any call waits.
// Each step finds out what an earlier call did, so that it can be repeated after a crash between any two of them:
//
//  1. stage record, durable: from here on NodeUnstageVolume has something to undo
//  2. replicable: the replicator serves the volume's file
//  3. loop device
//  4. format record and mkfs, once in the volume's life
//  5. check, mount
func (s *nodeServer) NodeStageVolume(ctx context.Context,
	req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	id, path := req.GetVolumeId(), req.GetStagingTargetPath()
	if err := checkArguments(id, argument{"staging_target_path", path}); err != nil {
		return nil, err
	}
	want, err := capability.Parse(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	err = s.d.runTask(ctx, "NodeStageVolume", id, fmt.Sprintf("%q %+v", path, want), func(ctx context.Context) error {
		rec, err := s.d.views.Volume(id)
		if err != nil {
			return err
		}
		return s.d.attachments.Stage(ctx, rec, path, want)
	})
	if err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume undoes NodeStageVolume in the opposite order. It succeeds for a volume that is not staged, or gone,
// as long as nothing is mounted on the path.
func (s *nodeServer) NodeUnstageVolume(ctx context.Context,
	req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	id := req.GetVolumeId()
	s.d.tasks.StopCall(ctx, id)
	done, err := s.d.beginCall("NodeUnstageVolume", id, argument{"staging_target_path", req.GetStagingTargetPath()})
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.store.Volume(id)
	if status.Code(err) == codes.NotFound {
		return &csi.NodeUnstageVolumeResponse{}, s.d.attachments.UnstageRemains(ctx, id,
			host.CanonicalPath(req.GetStagingTargetPath()))
	}
	if err != nil {
		return nil, err
	}
	path := attach.StagingPath(rec, req.GetStagingTargetPath())
	if rec.Stage != nil && rec.Stage.StagingPath != path {
		// Unstaging one path must not take another one's device away.
		return &csi.NodeUnstageVolumeResponse{}, s.d.attachments.NothingMountedOn(id, path)
	}
	if err := s.d.attachments.Unstage(ctx, rec, path); err != nil {
		return nil, err
	}
	if views.Transient(rec) {
		return &csi.NodeUnstageVolumeResponse{}, s.d.destroy(ctx, rec)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}
