package attach

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// DetachOrphans detaches the loop devices of this pool that are not of a staged volume. One that cannot be detached is
// logged: it must not keep the driver from serving the others. One of a staged volume whose image was removed has the
// volume's data, and stays until the volume is unstaged.
func (d *Attacher) DetachOrphans(ctx context.Context, staged []*blockdev.VolumeRecord) error {
	devices, err := d.Loops.List()
	if err != nil {
		return fmt.Errorf("look for loop devices: %w", err)
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return err
	}
	byPath, byDevice := map[string]*blockdev.VolumeRecord{}, map[string]*blockdev.VolumeRecord{}
	for _, rec := range staged {
		byPath[d.BackingPath(rec)], byDevice[rec.Stage.Device] = rec, rec
	}
	for _, device := range devices {
		id, shimmed, ours := d.ownerOf(device.BackingPath)
		rec := byPath[device.BackingPath]
		if other := byDevice[device.Path]; rec == nil && other != nil && d.isStagedImage(other, device) {
			rec, device.Deleted = other, true
		}
		switch {
		case rec != nil && device.Deleted:
			klog.ErrorS(ImageGone(rec.ID, device), "A staged volume has lost its image", "volume", rec.ID)
		case !ours || rec != nil:
		case len(host.MountsOf(mounts, device.Device)) > 0:
			klog.InfoS("A loop device of the pool is mounted, but no record says so; unmount it by hand",
				"device", device.Path, "backing", device.BackingPath)
		case shimmed:
			if d.sidecar == nil {
				klog.InfoS("A loop device over the replicator's file is left over; it is detached when the driver runs with "+
					"--sidecar", "device", device.Path)
				continue
			}
			go d.detachShimmedOrphan(ctx, id, device)
		default:
			klog.InfoS("Detaching a loop device that is left over", "device", device.Path, "backing", device.BackingPath)
			if err := d.Loops.Detach(device); err != nil {
				klog.ErrorS(err, "A loop device that is left over cannot be detached", "device", device.Path)
			}
		}
	}
	return nil
}

// ownerOf tells by its backing file whether a loop device is of this pool.
func (d *Attacher) ownerOf(backingPath string) (volumeID string, shimmed, ours bool) {
	dir := filepath.Dir(backingPath)
	switch filepath.Dir(dir) {
	case d.opts.ShimDir:
		return filepath.Base(dir), true, true
	case filepath.Join(d.opts.PoolDir, "volumes"):
		return filepath.Base(dir), false, true
	}
	return "", false, false
}

// orphanRetryInterval is how often detachShimmedOrphan asks for the replicator.
const orphanRetryInterval = time.Second

// detachShimmedOrphan waits for the replicator, without which a detach would hang in the kernel, and then detaches.
func (d *Attacher) detachShimmedOrphan(ctx context.Context, volumeID string, device host.LoopDevice) {
	for {
		err := d.tryDetachShimmed(ctx, volumeID, device)
		if err == nil {
			return
		}
		klog.V(2).InfoS("A loop device that is left over cannot be detached yet", "device", device.Path, "volume", volumeID,
			"err", err)
		if !pause.For(ctx, orphanRetryInterval) {
			return
		}
	}
}

func (d *Attacher) tryDetachShimmed(ctx context.Context, volumeID string, device host.LoopDevice) error {
	done, err := d.guards.Enter(volumeID, "detach of a device that is left over")
	if err != nil {
		return err
	}
	defer done()
	if rec, err := d.store.Pool.Get(volumeID); err == nil && rec.Stage != nil {
		return nil // staged meanwhile: that call found the device and uses it
	}
	if err := d.sidecar.Need(ctx); err != nil {
		return err
	}
	klog.InfoS("Detaching a loop device that is left over", "device", device.Path, "volume", volumeID)
	if err := d.Loops.Detach(device); err != nil {
		return err
	}
	return d.detachShim(ctx, volumeID)
}
