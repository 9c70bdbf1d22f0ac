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
)

// NodePublishVolume binds the staged file system, or the device node of a raw block volume, to a target path.
func (s *nodeServer) NodePublishVolume(ctx context.Context,
	req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	id := req.GetVolumeId()
	if err := checkArguments(id, argument{"target_path", req.GetTargetPath()},
		argument{"staging_target_path", req.GetStagingTargetPath()}); err != nil {
		return nil, err
	}
	want, err := capability.Parse(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	entry := attach.Publication{
		GivenPath:    host.AbsolutePath(req.GetTargetPath()),
		ReadOnly:     req.GetReadonly() || want.MountsReadOnly(),
		AccessMode:   want.Mode.String(),
		Block:        want.Block,
		FSType:       want.FSType,
		MountOptions: want.MountOptions,
	}
	// In the background, because a file system that has stopped is checked: see revive.
	err = s.d.runTask(ctx, "NodePublishVolume", id, fmt.Sprintf("%q %+v", req.GetStagingTargetPath(), entry),
		func(ctx context.Context) error {
			rec, err := s.d.store.Volume(id)
			if err != nil {
				return err
			}
			return s.d.attachments.Publish(ctx, rec, attach.StagingPath(rec, req.GetStagingTargetPath()), entry, want.Mode)
		})
	if err != nil {
		return nil, err
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume unmounts a target path and removes it.
func (s *nodeServer) NodeUnpublishVolume(_ context.Context,
	req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	id := req.GetVolumeId()
	done, err := s.d.beginCall("NodeUnpublishVolume", id, argument{"target_path", req.GetTargetPath()})
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.store.Volume(id)
	if status.Code(err) == codes.NotFound {
		return &csi.NodeUnpublishVolumeResponse{}, s.d.attachments.UnpublishRemains(id,
			host.CanonicalPath(req.GetTargetPath()))
	}
	if err != nil {
		return nil, err
	}
	published, err := s.d.attachments.Published(id)
	if err != nil {
		return nil, err
	}
	path := attach.TargetPath(published, req.GetTargetPath())
	devices, err := s.d.attachments.PublishedDevices(rec, published, path)
	if err != nil {
		return nil, err
	}
	if err := s.d.attachments.Unpublish(rec, path, devices); err != nil {
		return nil, err
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}
