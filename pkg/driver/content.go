package driver

import (
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// parseContentSource reads what a volume is to be made from; nil for nothing.
func parseContentSource(source *csi.VolumeContentSource) (*blockdev.ContentSource, error) {
	switch {
	case source == nil:
		return nil, nil
	case source.GetSnapshot().GetSnapshotId() != "":
		return &blockdev.ContentSource{SnapshotID: source.GetSnapshot().GetSnapshotId()}, nil
	case source.GetVolume().GetVolumeId() != "":
		return &blockdev.ContentSource{VolumeID: source.GetVolume().GetVolumeId()}, nil
	}
	return nil, status.Error(codes.InvalidArgument, "volume content source has neither a snapshot's id nor a volume's")
}

// contentSource is the source as the CO named it.
func contentSource(s *blockdev.ContentSource) *csi.VolumeContentSource {
	switch {
	case s == nil:
		return nil
	case s.SnapshotID != "":
		return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.SnapshotID},
		}}
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: s.VolumeID},
	}}
}

// describe is a source in words, for messages.
func describe(s *blockdev.ContentSource) string {
	switch {
	case s == nil:
		return "nothing"
	case s.SnapshotID != "":
		return fmt.Sprintf("snapshot %s", s.SnapshotID)
	}
	return fmt.Sprintf("volume %s", s.VolumeID)
}
