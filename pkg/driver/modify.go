package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
)

// ControllerModifyVolume changes a volume under load: whether it is replicated, in which group, and what its group is
// set to. What cannot be done is found out before anything is; a call that was interrupted goes on when it is repeated.
func (s *controllerServer) ControllerModifyVolume(ctx context.Context,
	req *csi.ControllerModifyVolumeRequest) (*csi.ControllerModifyVolumeResponse, error) {
	done, err := s.d.beginCall("ControllerModifyVolume", req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	if len(req.GetMutableParameters()) == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s: mutable parameters are missing", req.GetVolumeId())
	}
	rec, err := s.d.store.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	m, err := parameter.ParseMutation(req.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	if err := s.d.groups.Modify(ctx, rec, m); err != nil {
		return nil, err
	}
	return &csi.ControllerModifyVolumeResponse{}, nil
}
