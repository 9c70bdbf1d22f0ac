package testsite

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// VolumeOptions say what CreateVolume makes.
type VolumeOptions struct {
	// Name is the CSI name.
	Name      string
	SizeBytes int64
	// FSType is ext4 or xfs; empty for the driver's default.
	FSType string
	// Block makes a raw block volume.
	Block bool
	// MountFlags are mount options of a file system.
	MountFlags []string
	// Parameters are those of a StorageClass.
	Parameters map[string]string
	// SnapshotID is the snapshot that the volume begins with; empty for none.
	SnapshotID string
}

// Replicable are the parameters of a volume that can join a group later.
func Replicable() map[string]string { return map[string]string{"slipstream.dev/replicable": "true"} }

// Volume is a volume as the CSI caller knows it. It is good at both sites: ids are the same.
type Volume struct {
	ID      string
	Context map[string]string
	options VolumeOptions
}

func (v *Volume) capability() *csi.VolumeCapability {
	c := &csi.VolumeCapability{
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if v.options.Block {
		c.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		c.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: v.options.FSType,
			MountFlags: v.options.MountFlags}}
	}
	return c
}

// CreateVolume provisions a volume through the CSI socket.
func (s *Site) CreateVolume(ctx context.Context, o VolumeOptions) (*Volume, error) {
	v := &Volume{options: o}
	request := &csi.CreateVolumeRequest{
		Name: o.Name, CapacityRange: &csi.CapacityRange{RequiredBytes: o.SizeBytes},
		VolumeCapabilities: []*csi.VolumeCapability{v.capability()}, Parameters: o.Parameters,
	}
	if o.SnapshotID != "" {
		request.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: o.SnapshotID}}}
	}
	response, err := csi.NewControllerClient(s.csiConn).CreateVolume(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("creating volume %s at %s: %w", o.Name, s.Config.Name, err)
	}
	v.ID, v.Context = response.GetVolume().GetVolumeId(), response.GetVolume().GetVolumeContext()
	return v, nil
}

// CountVolumes returns how many volumes the driver lists.
func (s *Site) CountVolumes(ctx context.Context) (int, error) {
	response, err := csi.NewControllerClient(s.csiConn).ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil {
		return 0, fmt.Errorf("listing the volumes of %s: %w", s.Config.Name, err)
	}
	return len(response.GetEntries()), nil
}

// DeleteVolume deletes a volume that is not mounted.
func (s *Site) DeleteVolume(ctx context.Context, v *Volume) error {
	_, err := csi.NewControllerClient(s.csiConn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.ID})
	if err != nil {
		return fmt.Errorf("deleting volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	return nil
}

// Modify changes a volume's mutable parameters, as a VolumeAttributesClass does. The error wraps the call's status.
func (s *Site) Modify(ctx context.Context, v *Volume, mutable map[string]string) error {
	_, err := csi.NewControllerClient(s.csiConn).ControllerModifyVolume(ctx, &csi.ControllerModifyVolumeRequest{
		VolumeId: v.ID, MutableParameters: mutable})
	if err != nil {
		return fmt.Errorf("changing volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	return nil
}

// Health returns the reasons of the adverse conditions that the driver's controller service reports of a volume.
func (s *Site) Health(ctx context.Context, v *Volume) ([]string, error) {
	response, err := csi.NewControllerClient(s.csiConn).ControllerGetVolumeHealth(ctx,
		&csi.ControllerGetVolumeHealthRequest{VolumeId: v.ID})
	if err != nil {
		return nil, fmt.Errorf("health of volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	var reasons []string
	for _, e := range response.GetVolumeHealth().GetHealthStatuses() {
		reasons = append(reasons, e.GetReason())
	}
	return reasons, nil
}

func (s *Site) stagingPath(v *Volume) string {
	return filepath.Join(s.Config.Dir, "mnt", v.ID, "stage")
}

// Image is the file with a volume's content, as far as it was applied.
func (s *Site) Image(v *Volume) string {
	return filepath.Join(s.Config.PoolDir(), "volumes", v.ID, "image")
}

// Path is where Mount publishes a volume: a mount point, or a block device's node.
func (s *Site) Path(v *Volume) string { return filepath.Join(s.Config.Dir, "mnt", v.ID, "volume") }

// Mount stages and publishes a volume through the CSI socket and returns its path. It can be repeated.
func (s *Site) Mount(ctx context.Context, v *Volume) (string, error) {
	if err := os.MkdirAll(s.stagingPath(v), 0o755); err != nil {
		return "", err
	}
	node := csi.NewNodeClient(s.csiConn)
	// Before the call: a stage that fails half-way is taken away too.
	s.mu.Lock()
	s.mounted[v.ID] = v
	s.mu.Unlock()
	_, err := node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: s.stagingPath(v), VolumeCapability: v.capability(), VolumeContext: v.Context,
	})
	if err != nil {
		return "", fmt.Errorf("staging volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	_, err = node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.ID, StagingTargetPath: s.stagingPath(v), TargetPath: s.Path(v), VolumeCapability: v.capability(),
		VolumeContext: v.Context,
	})
	if err != nil {
		return "", fmt.Errorf("publishing volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	return s.Path(v), nil
}

// Expand grows a mounted volume to at least requiredBytes. A limit of 0 is none.
func (s *Site) Expand(ctx context.Context, v *Volume, requiredBytes, limitBytes int64) error {
	_, err := csi.NewNodeClient(s.csiConn).NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: v.ID, VolumePath: s.Path(v), StagingTargetPath: s.stagingPath(v), VolumeCapability: v.capability(),
		CapacityRange: &csi.CapacityRange{RequiredBytes: requiredBytes, LimitBytes: limitBytes},
	})
	if err != nil {
		return fmt.Errorf("expanding volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	return nil
}

// Unmount unpublishes and unstages a volume. It can be repeated.
func (s *Site) Unmount(ctx context.Context, v *Volume) error {
	node := csi.NewNodeClient(s.csiConn)
	if _, err := node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.ID,
		TargetPath: s.Path(v)}); err != nil {
		return fmt.Errorf("unpublishing volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	if _, err := node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.ID,
		StagingTargetPath: s.stagingPath(v)}); err != nil {
		return fmt.Errorf("unstaging volume %s at %s: %w", v.ID, s.Config.Name, err)
	}
	s.mu.Lock()
	delete(s.mounted, v.ID)
	s.mu.Unlock()
	return nil
}

// unmountAll unmounts what it can while the site is whole. What it cannot, sweep does.
func (s *Site) unmountAll(ctx context.Context) {
	for _, p := range []*Process{s.Keeper(), s.Replicator(), s.Driver()} {
		if p == nil {
			return
		}
		select {
		case <-p.Ended():
			return
		default:
		}
	}
	s.mu.Lock()
	var volumes []*Volume
	for _, v := range s.mounted {
		volumes = append(volumes, v)
	}
	s.mu.Unlock()
	for _, v := range volumes {
		_ = s.Unmount(ctx, v) // sweep takes what is left
	}
}
