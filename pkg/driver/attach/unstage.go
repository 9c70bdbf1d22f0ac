package attach

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

func (d *Attacher) NothingMountedOn(id, path string) error {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	if at := host.MountsAt(mounts, path); len(at) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %q is not staged on %s, but %s is mounted there: unmount "+
			"it by hand",
			id, path, at[len(at)-1].Source)
	}
	return nil
}

func (d *Attacher) Unstage(ctx context.Context, rec *blockdev.VolumeRecord, path string) error {
	devices, err := d.AttachedDevices(rec)
	if err != nil {
		return err
	}
	if rec.Stage == nil && len(devices) == 0 {
		return d.NothingMountedOn(rec.ID, path)
	}
	if err := d.takeDown(ctx, rec, devices, path); err != nil {
		return err
	}
	return d.recordStage(rec, nil)
}

// UnstageRemains is unstage for a volume without a record.
func (d *Attacher) UnstageRemains(ctx context.Context, id, path string) error {
	rec, devices, err := d.Remains(id, true)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return d.NothingMountedOn(id, path)
	}
	return d.takeDown(ctx, rec, devices, path)
}

// takeDown unmounts a volume's devices from its staging path and detaches them.
func (d *Attacher) takeDown(ctx context.Context, rec *blockdev.VolumeRecord, devices []host.LoopDevice,
	path string) error {
	if rec.Served() && len(devices) > 0 {
		if err := d.sidecar.Need(ctx); err != nil {
			return err
		}
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	for _, device := range devices {
		for _, m := range host.MountsOf(mounts, device.Device) {
			if m.Mountpoint != path {
				return status.Errorf(codes.FailedPrecondition, "volume %s is still mounted on %s: unpublish it there first", rec.ID,
					m.Mountpoint)
			}
		}
	}
	if err := d.unmountAll(rec, path, devices); err != nil {
		return err
	}
	return d.undoAttach(ctx, rec, devices)
}

// maxStackedMounts bounds unmountAll; more mounts of one device on one path have never been made by this driver.
const maxStackedMounts = 8

// unmountAll unmounts a volume's mounts on a path and makes sure in the mount table that they are gone.
func (d *Attacher) unmountAll(rec *blockdev.VolumeRecord, path string, devices []host.LoopDevice) error {
	for range maxStackedMounts {
		mounts, err := d.Mounter.Mounts()
		if err != nil {
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
		at := host.MountsAt(mounts, path)
		if len(at) == 0 {
			return nil
		}
		top := at[len(at)-1]
		if !slices.ContainsFunc(devices, func(l host.LoopDevice) bool { return top.ShowsDevice(l.Device) }) {
			return status.Errorf(codes.FailedPrecondition, "volume %s: %s, which is not of this volume, is mounted on %s: "+
				"unmount it by hand",
				rec.ID, top.Source, path)
		}
		if err := d.thawToUnmount(rec, mounts, top); err != nil {
			return err
		}
		switch err := d.Mounter.Unmount(path); {
		case errors.Is(err, unix.EBUSY):
			return status.Errorf(codes.FailedPrecondition, "volume %s: %s is busy: a process still uses it (fuser -vm %s "+
				"shows which); call again when it has ended",
				rec.ID, path, path)
		case err != nil:
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
	}
	return status.Errorf(codes.Internal, "volume %s is still mounted on %s after %s: something mounts it again",
		rec.ID, path, words.Count(maxStackedMounts, "unmount"))
}
