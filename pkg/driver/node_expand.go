package driver

import (
	"context"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

// NodeExpandVolume grows the image, then the loop device, then the file system. A volume that is as large as asked for goes through
// the last two steps all the same: an earlier call may have died after the first.
//
// Kubelet takes InvalidArgument, OutOfRange and NotFound for "never", and lets the user ask for less; everything else it
// repeats.
func (s *nodeServer) NodeExpandVolume(ctx context.Context, req *csi.NodeExpandVolumeRequest) (*csi.NodeExpandVolumeResponse, error) {
	id, given := req.GetVolumeId(), req.GetVolumePath()
	if err := checkArguments(id, argument{"volume_path", given}); err != nil {
		return nil, err
	}
	capacity := req.GetCapacityRange()
	err := s.d.runTask(ctx, "NodeExpandVolume", id, fmt.Sprintf("%q %d %d", given, capacity.GetRequiredBytes(), capacity.GetLimitBytes()), func(ctx context.Context) error {
		rec, err := s.d.volume(id)
		if err != nil {
			return err
		}
		size, err := capability.ExpandedSize(rec.SizeBytes, capacity)
		if err != nil {
			return status.Errorf(status.Code(err), "volume %s: %s", id, status.Convert(err).Message())
		}
		path, err := s.d.volumePath(rec, given)
		if err != nil {
			return err
		}
		return s.d.expand(ctx, rec, path, size)
	})
	if err != nil {
		return nil, err
	}
	rec, err := s.d.volume(id)
	if err != nil {
		return nil, err
	}
	return &csi.NodeExpandVolumeResponse{CapacityBytes: rec.SizeBytes}, nil
}

func (d *Driver) expand(ctx context.Context, rec *blockdev.VolumeRecord, path string, sizeBytes int64) error {
	if rec.Stage == nil {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged: stage it first", rec.ID)
	}
	device, err := d.device(rec)
	if err != nil {
		return err
	}
	entry, err := d.mountOn(rec, path)
	if err != nil {
		return err
	}
	if entry == nil && path != rec.Stage.StagingPath {
		return status.Errorf(codes.FailedPrecondition, "volume %s is neither staged nor published on %s", rec.ID, path)
	}
	if err := d.growImage(ctx, rec, sizeBytes); err != nil {
		return err
	}
	if err := d.Loops.SetSize(device.Path, rec.SizeBytes); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow %s to %d bytes: %v", rec.ID, device.Path, rec.SizeBytes, err)
	}
	// The file system is grown where it is mounted as a whole and writable: on the staging path.
	staged, err := d.mountOn(rec, rec.Stage.StagingPath)
	if err != nil || staged == nil {
		return err // a block volume has no more to grow
	}
	if staged.ReadOnly || staged.Stopped != "" || d.stoppedBy(rec, *staged) != "" {
		// Kubelet takes this code for "not while it is in use", and comes again when the volume was staged anew.
		return status.Errorf(codes.FailedPrecondition, "volume %s has %d bytes now, but its file system is mounted read-only on %s and has not grown: "+
			"it grows when the volume is staged writable", rec.ID, rec.SizeBytes, rec.Stage.StagingPath)
	}
	if err := d.grow(ctx, device.Path, rec.Stage.StagingPath, staged.FSType); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow its file system: %v", rec.ID, err)
	}
	return nil
}

// A file system that is smaller than its volume is grown when it is mounted writable. That it is says its superblock, which is the one record
// of its size that cannot be wrong: also of a volume that was expanded while it was read-only, of one whose expansion was interrupted, at
// whichever site, and of one that was made from a snapshot of such a volume.

func (d *Driver) grow(ctx context.Context, device, path, fsType string) error {
	work.Doing(ctx, "its "+fsType+" grows")
	return d.Filesystems.Grow(ctx, device, path, fsType)
}

// growFileSystem grows the file system of a volume that was made larger than its source, which is part of making it. Staging
// repeats it until it is done.
func (d *Driver) growFileSystem(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path, fsType string, readOnly bool) error {
	if !rec.GrowFileSystem || readOnly {
		return nil
	}
	if err := d.grow(ctx, device.Path, path, fsType); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow its file system to the volume's size: %v", rec.ID, err)
	}
	return d.update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.GrowFileSystem = false
	})
}

// catchUp grows the file system of a volume whose expansion did not come to it. Where it cannot, the volume is as good as before: whoever
// asked for the expansion has had the error, or has it when he asks again.
func (d *Driver) catchUp(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path, fsType string, sizeBytes int64) {
	if rec.GrowFileSystem {
		return
	}
	if err := d.grow(ctx, device.Path, path, fsType); err != nil {
		klog.ErrorS(err, "A file system that is smaller than its volume could not be grown", "volume", rec.ID, "fileSystemBytes", sizeBytes, "volumeBytes", rec.SizeBytes)
	}
}

// growImage makes a volume's image, and its record, at least as large. It leaves rec with the new size.
func (d *Driver) growImage(ctx context.Context, rec *blockdev.VolumeRecord, sizeBytes int64) error {
	if sizeBytes > rec.SizeBytes {
		larger := rec.Clone()
		larger.SizeBytes = sizeBytes
		release, err := d.reserveSpace(larger, rec.SizeBytes)
		if err != nil {
			return err
		}
		defer release()
	}
	if rec.Replicable {
		if err := d.needSidecar(ctx); err != nil {
			return err
		}
		// Also when the size is right: the peer may not have heard of it.
		if _, err := d.sidecar.ResizeVolume(ctx, rec.ID, sizeBytes); err != nil {
			return err
		}
	}
	grown, err := d.pool.Grow(rec.ID, sizeBytes)
	if err != nil {
		return poolError("grow", rec.ID, err)
	}
	*rec = *grown
	return nil
}

// mountOn returns the topmost mount on path if it is of the volume, else nil.
func (d *Driver) mountOn(rec *blockdev.VolumeRecord, path string) (*host.MountEntry, error) {
	devices, err := d.devices(rec)
	if err != nil {
		return nil, err
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	at := host.MountsAt(mounts, path)
	if len(at) == 0 {
		return nil, nil
	}
	top := at[len(at)-1]
	for _, l := range devices {
		if top.ShowsDevice(l.Device) {
			return &top, nil
		}
	}
	return nil, nil
}

// isNode reports whether a mount of the volume is its device node and not its file system.
func (d *Driver) isNode(rec *blockdev.VolumeRecord, m host.MountEntry) bool {
	devices, err := d.devices(rec)
	if err != nil {
		return false
	}
	for _, l := range devices {
		if m.IsNodeOf(l.Device) {
			return true
		}
	}
	return false
}
