package driver

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// NodeGetVolumeStats returns what is used of a mounted volume, in bytes and inodes; of a raw block volume the size is
// all there is to say.
//
// It changes nothing, so it does not take the volume's guard: kubelet asks every minute, and must neither be refused
// while the volume is expanded nor refuse the expansion. It has a guard of its own, because the one thing that it waits
// for, the mounted file system, can hang: the call then fails in time, and the next ones at once, as long as the first
// waits in the kernel.
func (s *nodeServer) NodeGetVolumeStats(ctx context.Context,
	req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if req.GetVolumePath() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s: volume_path is missing", id)
	}
	rec, err := s.d.store.Volume(id)
	if err != nil {
		return nil, err
	}
	path, err := s.d.attachments.VolumePath(rec, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	entry, err := s.d.attachments.MountOn(rec, path)
	if err != nil {
		return nil, err
	}
	if entry == nil {
		return nil, status.Errorf(codes.NotFound, "volume %s is not mounted on %s", rec.ID, req.GetVolumePath())
	}
	if s.d.attachments.IsNode(rec, *entry) {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: rec.SizeBytes},
		}}, nil
	}
	if why := s.d.attachments.StoppedBy(rec, *entry); why != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s: its %s takes no writes any more (%s) after an "+
			"error, which the kernel's log has: "+
			"delete the pods that use the volume; then it is checked and mounted again", id, entry.FSType, why)
	}
	usage, err := s.d.attachments.Usage(ctx, rec.ID, path)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: usage.TotalBytes, Available: usage.AvailableBytes, Used: usage.UsedBytes},
		{Unit: csi.VolumeUsage_INODES, Total: usage.TotalInodes, Available: usage.AvailableInodes, Used: usage.UsedInodes},
	}}, nil
}
