package testsite

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// GroupSnapshot takes a group snapshot of volumes through the CSI socket, with the parameters of a class. The error
// wraps the call's status.
func (s *Site) GroupSnapshot(ctx context.Context, name string, volumes []*Volume,
	parameters map[string]string) (*csi.VolumeGroupSnapshot, error) {
	request := &csi.CreateVolumeGroupSnapshotRequest{Name: name, Parameters: parameters}
	for _, v := range volumes {
		request.SourceVolumeIds = append(request.SourceVolumeIds, v.ID)
	}
	response, err := csi.NewGroupControllerClient(s.csiConn).CreateVolumeGroupSnapshot(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("group snapshot %s at %s: %w", name, s.Config.Name, err)
	}
	return response.GetGroupSnapshot(), nil
}

// GetGroupSnapshot returns what has become of a group snapshot.
func (s *Site) GetGroupSnapshot(ctx context.Context, id string) (*csi.VolumeGroupSnapshot, error) {
	response, err := csi.NewGroupControllerClient(s.csiConn).GetVolumeGroupSnapshot(ctx,
		&csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: id})
	if err != nil {
		return nil, fmt.Errorf("group snapshot %s at %s: %w", id, s.Config.Name, err)
	}
	return response.GetGroupSnapshot(), nil
}

// DeleteGroupSnapshot deletes a group snapshot.
func (s *Site) DeleteGroupSnapshot(ctx context.Context, id string) error {
	if _, err := csi.NewGroupControllerClient(s.csiConn).DeleteVolumeGroupSnapshot(ctx,
		&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: id}); err != nil {
		return fmt.Errorf("deleting group snapshot %s at %s: %w", id, s.Config.Name, err)
	}
	return nil
}

// SnapshotImage is the file with a snapshot's content.
func (s *Site) SnapshotImage(id string) string {
	return filepath.Join(s.Config.PoolDir(), "snapshots", id, "image")
}
