package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
)

// NodeExpandVolume grows the image, then the loop device, then the file system. A volume that is as large as asked for
// goes through the last two steps all the same: an earlier call may have died after the first.
//
// Kubelet takes InvalidArgument, OutOfRange and NotFound for "never", and lets the user ask for less; everything else
// it repeats.
func (s *nodeServer) NodeExpandVolume(ctx context.Context,
	req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	id, given := req.GetVolumeId(), req.GetVolumePath()
	if err := checkArguments(id, argument{"volume_path", given}); err != nil {
		return nil, err
	}
	capacity := req.GetCapacityRange()
	err := s.d.runTask(ctx, "NodeExpandVolume", id, fmt.Sprintf("%q %d %d", given, capacity.GetRequiredBytes(),
		capacity.GetLimitBytes()), func(ctx context.Context) error {
		rec, err := s.d.store.Volume(id)
		if err != nil {
			return err
		}
		size, err := capability.ExpandedSize(rec.SizeBytes, capacity)
		if err != nil {
			return status.Errorf(status.Code(err), "volume %s: %s", id, status.Convert(err).Message())
		}
		path, err := s.d.attachments.VolumePath(rec, given)
		if err != nil {
			return err
		}
		return s.d.attachments.Expand(ctx, rec, path, size)
	})
	if err != nil {
		return nil, err
	}
	rec, err := s.d.store.Volume(id)
	if err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: rec.SizeBytes}, nil
}
