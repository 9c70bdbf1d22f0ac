package attach

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

func (d *Attacher) Expand(ctx context.Context, rec *blockdev.VolumeRecord, path string, sizeBytes int64) error {
	if rec.Stage == nil {
		return status.Errorf(codes.FailedPrecondition, "volume %s is not staged: stage it first", rec.ID)
	}
	device, err := d.device(rec)
	if err != nil {
		return err
	}
	entry, err := d.MountOn(rec, path)
	if err != nil {
		return err
	}
	if entry == nil && path != rec.Stage.StagingPath {
		return status.Errorf(codes.FailedPrecondition, "volume %s is neither staged nor published on %s", rec.ID, path)
	}
	if err := d.GrowImage(ctx, rec, sizeBytes); err != nil {
		return err
	}
	if err := d.Loops.SetSize(device.Path, rec.SizeBytes); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow %s to %s: %v", rec.ID, device.Path,
			words.Count(rec.SizeBytes, "byte"), err)
	}
	// The file system is grown where it is mounted as a whole and writable: on the staging path.
	staged, err := d.MountOn(rec, rec.Stage.StagingPath)
	if err != nil || staged == nil {
		return err // a block volume has no more to grow
	}
	if staged.ReadOnly || staged.Stopped != "" || d.StoppedBy(rec, *staged) != "" {
		// Kubelet takes this code for "not while it is in use", and comes again when the volume was staged anew.
		return status.Errorf(codes.FailedPrecondition, "volume %s has %s now, but its file system is mounted "+
			"read-only on %s and has not grown: "+
			"it grows when the volume is staged writable", rec.ID, words.Count(rec.SizeBytes, "byte"),
			rec.Stage.StagingPath)
	}
	if err := d.grow(ctx, device.Path, rec.Stage.StagingPath, staged.FSType); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow its file system: %v", rec.ID, err)
	}
	return nil
}

// A file system that is smaller than its volume is grown when it is mounted writable. Its superblock says how large it
// is, the one record of its size that cannot be wrong. This covers volumes that were expanded while they were
// read-only, interrupted expansions at either site, and copies of such volumes.

func (d *Attacher) grow(ctx context.Context, device, path, fsType string) error {
	work.Doing(ctx, "its "+fsType+" grows")
	return d.Filesystems.Grow(ctx, device, path, fsType)
}

// growFileSystem grows the file system of a volume that was made larger than its source, which is part of making it.
// Staging repeats it until it is done.
func (d *Attacher) growFileSystem(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path,
	fsType string, readOnly bool) error {
	if !rec.GrowFileSystem || readOnly {
		return nil
	}
	if err := d.grow(ctx, device.Path, path, fsType); err != nil {
		return status.Errorf(codes.Internal, "volume %s: grow its file system to the volume's size: %v", rec.ID, err)
	}
	return d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) {
		r.GrowFileSystem = false
	})
}

// catchUp grows the file system of a volume whose expansion ended before that step. If it fails, the volume stays as
// it was: the caller of the expansion got the error, or gets it when it repeats the call.
func (d *Attacher) catchUp(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, path, fsType string,
	sizeBytes int64) {
	if rec.GrowFileSystem {
		return
	}
	if err := d.grow(ctx, device.Path, path, fsType); err != nil {
		klog.ErrorS(err, "A file system that is smaller than its volume could not be grown", "volume", rec.ID,
			"fileSystemBytes", sizeBytes, "volumeBytes", rec.SizeBytes)
	}
}

// GrowImage makes a volume's image, and its record, at least as large. It leaves rec with the new size.
func (d *Attacher) GrowImage(ctx context.Context, rec *blockdev.VolumeRecord, sizeBytes int64) error {
	if rec.View != nil {
		return status.Errorf(codes.FailedPrecondition, "volume %s shows view %s of group %s and has its size: it cannot grow",
			rec.ID, rec.View.Name, rec.View.Group)
	}
	if sizeBytes > rec.SizeBytes {
		larger := rec.Clone()
		larger.SizeBytes = sizeBytes
		release, err := d.space.ReserveSpace(larger, rec.SizeBytes, parameter.JournalWanted(larger))
		if err != nil {
			return err
		}
		defer release()
	}
	if rec.Replicable {
		if err := d.sidecar.Need(ctx); err != nil {
			return err
		}
		// Also when the size is right: the peer may not have heard of it.
		if _, err := d.sidecar.ResizeVolume(ctx, rec.ID, sizeBytes); err != nil {
			return err
		}
	}
	grown, err := d.store.Pool.Grow(rec.ID, sizeBytes)
	if err != nil {
		return store.VolumeError("grow", rec.ID, err)
	}
	*rec = *grown
	return nil
}
