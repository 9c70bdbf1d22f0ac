package driver

import (
	"context"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

type nodeServer struct {
	csi.UnimplementedNodeServer
	d *Driver
}

func (s *nodeServer) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	var capabilities []*csi.NodeServiceCapability
	for _, t := range []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		capabilities = append(capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: t},
		}})
	}
	return &csi.NodeGetCapabilitiesResponse{Capabilities: capabilities}, nil
}

// NodeGetInfo answers from the command line alone: the node's registration hangs on it.
func (s *nodeServer) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.d.opts.NodeID, AccessibleTopology: s.d.topology()}, nil
}

func (s *nodeServer) NodeGetVolumeStats(_ context.Context, req *csi.NodeGetVolumeStatsRequest) (*csi.NodeGetVolumeStatsResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if req.GetVolumePath() == "" {
		return nil, status.Errorf(codes.InvalidArgument, "volume %s: volume_path is missing", req.GetVolumeId())
	}
	rec, err := s.d.volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	path := canonicalPath(req.GetVolumePath())
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
	usage, err := s.d.filesystems.Usage(path)
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	return &csi.NodeGetVolumeStatsResponse{Usage: []*csi.VolumeUsage{
		{Unit: csi.VolumeUsage_BYTES, Total: usage.TotalBytes, Available: usage.AvailableBytes, Used: usage.UsedBytes},
		{Unit: csi.VolumeUsage_INODES, Total: usage.TotalInodes, Available: usage.AvailableInodes, Used: usage.UsedInodes},
	}}, nil
}

// canonicalPath is a path as the mount table has it: absolute and without symbolic links. The last element is not followed;
// it may be a mount that hangs.
func canonicalPath(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return filepath.Clean(path)
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(absolute))
	if err != nil {
		return absolute // no parent, no mount
	}
	return filepath.Join(parent, filepath.Base(absolute))
}

// canonicalDir is a directory's path without symbolic links, or, for one that is not there, made absolute.
func canonicalDir(path string) string {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return canonicalPath(path)
	}
	if absolute, err := filepath.Abs(resolved); err == nil {
		return absolute
	}
	return resolved
}
