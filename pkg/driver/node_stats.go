package driver

import (
	"context"
	"fmt"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// statsTimeout is how long a file system gets to say what is used of it.
const statsTimeout = 10 * time.Second

// NodeGetVolumeStats returns what is used of a mounted volume, in bytes and inodes; of a raw block volume the size is all there
// is to say.
//
// It changes nothing, so it does not take the volume's guard: kubelet asks every minute, and must neither be refused while the
// volume is expanded nor refuse the expansion. It has a guard of its own, because the one thing that it waits for, the
// mounted file system, can hang: the call then fails in time, and the next ones at once, as long as the first waits in the kernel.
func (s *nodeServer) NodeGetVolumeStats(ctx context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if req.GetVolumePath() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s: volume_path is missing", id)
	}
	rec, err := s.d.volume(id)
	if err != nil {
		return nil, err
	}
	path, err := s.d.volumePath(rec, req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	entry, err := s.d.mountOn(rec, path)
	if err != nil {
		return nil, err
	}
	if entry == nil {
		return nil, status.Errorf(codes.NotFound, "volume %s is not mounted on %s", rec.ID, req.GetVolumePath())
	}
	if s.d.isNode(rec, *entry) {
		return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
			{Unit: csi.VolumeUsage_BYTES, Total: rec.SizeBytes},
		}}, nil
	}
	if why := s.d.stoppedBy(rec, *entry); why != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s: its %s takes no writes any more (%s) after an error, which the kernel's log has: "+
			"delete the pods that use the volume; then it is checked and mounted again", id, entry.FSType, why)
	}
	usage, err := s.d.usage(ctx, rec.ID, path)
	if err != nil {
		return nil, err
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: usage.TotalBytes, Available: usage.AvailableBytes, Used: usage.UsedBytes},
		{Unit: csi.VolumeUsage_INODES, Total: usage.TotalInodes, Available: usage.AvailableInodes, Used: usage.UsedInodes},
	}}, nil
}

// usage asks a mounted file system, one question at a time for each volume, and returns when ctx ends or after
// statsTimeout: the question itself cannot be taken back.
func (d *Driver) usage(ctx context.Context, id, path string) (host.Usage, error) {
	done, err := d.guards.Enter("usage of "+id, "NodeGetVolumeStats")
	if err != nil {
		return host.Usage{}, err
	}
	type answer struct {
		usage host.Usage
		err   error
	}
	answered := make(chan answer, 1)
	go func() {
		defer done()
		usage, err := d.Filesystems.Usage(path)
		answered <- answer{usage, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, statsTimeout)
	defer cancel()
	select {
	case a := <-answered:
		if a.err != nil {
			err = status.Errorf(codes.Internal, "volume %s: %v", id, a.err)
		}
		return a.usage, err
	case <-ctx.Done():
		return host.Usage{}, status.FromContextError(fmt.Errorf("volume %s: the file system on %s does not answer; see whether its device does (dmesg, the replicator): %w",
			id, path, ctx.Err())).Err()
	}
}
