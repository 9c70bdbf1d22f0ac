package attach

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// BackingPath is the file that a volume's loop device is over, without symbolic links, as the kernel shows it: the
// image, or the file that the replicator said it serves, or, for one that is not staged, where that file is to be
// expected.
func (d *Attacher) BackingPath(rec *blockdev.VolumeRecord) string {
	switch {
	case rec.Served() && rec.Stage != nil && rec.Stage.BackingPath != "":
		return rec.Stage.BackingPath
	case rec.View != nil:
		return filepath.Join(d.opts.ShimDir, blockdev.ServedDir, rec.ID, shim.FileName)
	case rec.Replicable:
		return filepath.Join(d.opts.ShimDir, rec.ID, shim.FileName)
	}
	path, err := d.store.Pool.ImagePath(rec.ID)
	if err != nil {
		return "" // a record with such an id is never read
	}
	return path
}

// canonicalShimPath resolves links above the volume's directory, which is a mount of the replicator and not to be
// touched.
func canonicalShimPath(path string) string {
	return filepath.Join(host.CanonicalPath(filepath.Dir(path)), filepath.Base(path))
}

// devices returns the loop devices of a volume: one while it is staged, more only after something went wrong.
func (d *Attacher) devices(rec *blockdev.VolumeRecord) ([]host.LoopDevice, error) {
	all, err := d.AttachedDevices(rec)
	return slices.DeleteFunc(all, func(l host.LoopDevice) bool { return l.Deleted }), err
}

// AttachedDevices are the devices, and those over a file that was removed or renamed under them: nothing is staged on
// those any more, but they are in use, and are to be unmounted and detached like the others.
func (d *Attacher) AttachedDevices(rec *blockdev.VolumeRecord) ([]host.LoopDevice, error) {
	all, err := d.Loops.List()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: look for its loop device: %v", rec.ID, err)
	}
	path := d.BackingPath(rec)
	var devices []host.LoopDevice
	for _, l := range all {
		switch {
		case l.BackingPath == path:
		case d.isStagedImage(rec, l):
			l.Deleted = true
		default:
			continue
		}
		devices = append(devices, l)
	}
	return devices, nil
}

// isStagedImage reports whether a device is over the very file that the volume was staged with, whatever that is called
// now.
func (d *Attacher) isStagedImage(rec *blockdev.VolumeRecord, l host.LoopDevice) bool {
	if rec.Served() || rec.Stage == nil || rec.Stage.Device != l.Path || rec.Stage.Image == (blockdev.FileID{}) ||
		strings.HasPrefix(l.BackingPath, d.opts.ShimDir+"/") {
		return false
	}
	file, err := d.Loops.File(l.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "What a volume's loop device is over cannot be found out", "volume", rec.ID, "device", l.Path)
	}
	return err == nil && file == rec.Stage.Image
}

// Remains are the devices of a volume that has no record any more, because its directory was removed or moved. It
// is found by its id in the files' paths. Unless the volume is being unstaged, a device counts only where the volume is
// in use on this node: nodes that share a kernel see each other's loop devices, under the same paths. Outside of the
// pool a device has to be mounted, as others may look at a copy of the directory, and must not be in another driver's
// pool.
func (d *Attacher) Remains(id string, unstaging bool) (*blockdev.VolumeRecord, []host.LoopDevice, error) {
	rec := &blockdev.VolumeRecord{ID: id}
	if blockdev.ValidateID(id) != nil {
		return rec, nil, nil
	}
	all, err := d.Loops.List()
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "volume %s: look for its loop device: %v", id, err)
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	published, err := d.Publications.List(id)
	if err != nil {
		return nil, nil, status.Errorf(codes.Internal, "volume %s: %v", id, err)
	}
	var devices []host.LoopDevice
	for _, l := range all {
		owner, shimmed, ours := d.ownerOf(l.BackingPath)
		owner = strings.TrimSuffix(owner, ".deleting") // removed while it was in use, by an earlier version
		moved := filepath.Base(l.BackingPath) == blockdev.ImageFile && filepath.Base(filepath.Dir(l.BackingPath)) == id
		wanted := unstaging || len(host.MountsOf(mounts, l.Device)) > 0
		inPool := ours && owner == id && (wanted || len(published) > 0)
		outside := moved && wanted && (ours || !d.inOtherPool(l.BackingPath))
		if inPool || outside {
			rec.Replicable = rec.Replicable || shimmed
			devices = append(devices, l)
		}
	}
	return rec, devices, nil
}

// inOtherPool reports whether an image's path is that of a volume of a pool that is not this driver's.
func (d *Attacher) inOtherPool(imagePath string) bool {
	pool := filepath.Dir(filepath.Dir(filepath.Dir(imagePath)))
	if pool == d.opts.PoolDir {
		return false
	}
	return blockdev.HasPool(d.FS, pool)
}

// ImageGone says what to do about a device over an image that was removed or renamed.
func ImageGone(id string, l host.LoopDevice) error {
	return status.Errorf(codes.FailedPrecondition, "volume %s: its image was removed or renamed while it was in use, "+
		"and %s, over %s, still has its data: "+
		"copy the device, or put the image back under its name; otherwise delete the pods that use the volume, so that it "+
		"is unpublished and unstaged", id, l.Path, l.BackingPath)
}

// device returns the loop device of a staged volume; an error is a status error.
func (d *Attacher) device(rec *blockdev.VolumeRecord) (host.Device, error) {
	devices, err := d.AttachedDevices(rec)
	if err != nil {
		return host.Device{}, err
	}
	if i := slices.IndexFunc(devices, func(l host.LoopDevice) bool { return l.Deleted }); i >= 0 {
		return host.Device{}, ImageGone(rec.ID, devices[i])
	}
	if len(devices) == 0 {
		return host.Device{}, status.Errorf(codes.FailedPrecondition, "volume %s is not attached on node %s: stage it first",
			rec.ID, d.opts.NodeID)
	}
	return devices[0].Device, nil
}

// attach gives a volume its loop device, or finds the one that an earlier call made. The volume has its stage record.
func (d *Attacher) attach(ctx context.Context, rec *blockdev.VolumeRecord) (host.Device, error) {
	config := blockdev.LoopConfig{BackingPath: d.BackingPath(rec), SizeLimitBytes: rec.SizeBytes,
		BlockSizeBytes: rec.BlockSizeBytes, DirectIO: !rec.Served(), ReadOnly: rec.View != nil && !rec.View.Writable,
		KeepSpace: rec.Thick && !rec.Replicable} // of a thick replicable volume the replicator keeps the space
	if rec.Served() {
		// Also for a volume that has its loop device: the replicator may have been restarted without it.
		served, err := d.serve(ctx, rec)
		if err != nil {
			return host.Device{}, err
		}
		served.Path = canonicalShimPath(served.Path)
		if served.Path != config.BackingPath {
			if devices, err := d.devices(rec); err != nil || len(devices) > 0 {
				return host.Device{}, status.Errorf(codes.FailedPrecondition,
					"volume %s: it is attached over %s, but the replicator serves it as %s now: unstage it, then stage it again (%v)",
					rec.ID, config.BackingPath, served.Path, err)
			}
			stage := *rec.Stage
			stage.BackingPath = served.Path
			if err := d.recordStage(rec, &stage); err != nil {
				return host.Device{}, err
			}
			config.BackingPath = served.Path
		}
		config.DirectIO = served.DirectIO
		if served.BlockSizeBytes != 0 {
			config.BlockSizeBytes = int64(served.BlockSizeBytes)
		}
	}
	devices, err := d.devices(rec)
	if err != nil {
		return host.Device{}, err
	}
	if config.KeepSpace && len(devices) == 0 {
		d.reserveAgain(rec)
	}
	var device host.Device
	if len(devices) > 0 {
		if device, err = d.keepOne(rec, devices); err != nil {
			return host.Device{}, err
		}
		if config.KeepSpace {
			if err := d.Loops.KeepSpace(device.Path); err != nil {
				return host.Device{}, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
			}
		}
	} else if device, err = d.Loops.Attach(config); err != nil {
		return host.Device{}, status.Errorf(codes.Internal, "volume %s: attach %s to a loop device: %v", rec.ID,
			config.BackingPath, err)
	}
	if rec.Served() && !config.DirectIO {
		if err := d.Writeback.Add(config.BackingPath); err != nil {
			return host.Device{}, status.Errorf(codes.Internal, "volume %s: bound the age of its unwritten data: %v", rec.ID,
				err)
		}
	}
	return device, nil
}

// reserveAgain reserves the space that a thick image lost, by a restore from a sparse copy, or by zeroing for which the
// kernel punched holes. If the pool has no space for that, the volume is used as a thin one.
func (d *Attacher) reserveAgain(rec *blockdev.VolumeRecord) {
	if err := d.store.Pool.ReserveImage(rec.ID); err != nil {
		klog.ErrorS(err, "A thick volume has not all of its space; free some in the pool and stage it again", "volume",
			rec.ID)
	}
}

// keepOne chooses among the devices of a volume one that is mounted, or any, and detaches the others. Two devices over
// one file are two caches of the same blocks.
func (d *Attacher) keepOne(rec *blockdev.VolumeRecord, devices []host.LoopDevice) (host.Device, error) {
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return host.Device{}, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	keep := max(0, slices.IndexFunc(devices, func(l host.LoopDevice) bool {
		return len(host.MountsOf(mounts, l.Device)) > 0
	}))
	for i, other := range devices {
		if i == keep {
			continue
		}
		klog.InfoS("Detaching a second loop device of a volume", "volume", rec.ID, "device", other.Path, "kept",
			devices[keep].Path)
		if err := d.Loops.Detach(other); err != nil {
			return host.Device{}, status.Errorf(codes.Internal, "volume %s has loop devices %s and %s: detach %s: %v",
				rec.ID, devices[keep].Path, other.Path, other.Path, err)
		}
	}
	if devices[keep].SizeBytes != rec.SizeBytes {
		// An expansion was interrupted between the image and the device.
		if err := d.Loops.SetSize(devices[keep].Path, rec.SizeBytes); err != nil {
			return host.Device{}, status.Errorf(codes.Internal, "volume %s: set the size of %s to %d: %v", rec.ID,
				devices[keep].Path, rec.SizeBytes, err)
		}
	}
	return devices[keep].Device, nil
}

// undoAttach undoes attach, whatever part of it happened. devices are the volume's; nothing may be mounted from them.
func (d *Attacher) undoAttach(ctx context.Context, rec *blockdev.VolumeRecord, devices []host.LoopDevice) error {
	if rec.Served() {
		if err := d.sidecar.Need(ctx); err != nil {
			// Detaching flushes into the replicator's file, which would wait for it in the kernel, beyond any deadline.
			return err
		}
		if err := d.Writeback.Remove(ctx, d.BackingPath(rec)); err != nil {
			return status.Errorf(codes.Unavailable, "volume %s: %v; see that the replicator runs, and call again", rec.ID, err)
		}
	}
	for _, device := range devices {
		// The flag stays with the device's number and would be found by its next user.
		if err := d.Filesystems.SetDeviceReadOnly(device.Path, false); err != nil {
			return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
		}
		if err := d.Loops.Detach(device); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return status.Errorf(codes.FailedPrecondition, "volume %s is still in use: a program has %s open (fuser -v "+
					"%[2]s), "+
					"or it is mounted in a mount namespace of its own, as of a container (grep -l %s /proc/*/mountinfo); end that, "+
					"and repeat the command", rec.ID, device.Path, filepath.Base(device.Path))
			}
			return status.Errorf(codes.Internal, "volume %s: %v; see what has it open (fuser -v %s)", rec.ID, err, device.Path)
		}
	}
	if rec.Replicable {
		return d.detachShim(ctx, rec.ID)
	}
	return nil
}

// detachShim takes the shim's mount away and tells the replicator. The unmount waits until the replicator has taken
// what is dirty, so it is done here: a replicator that is killed while it waits for itself could not exit, and holds
// the pool's lock.
func (d *Attacher) detachShim(ctx context.Context, volumeID string) error {
	if err := shim.Unmount(filepath.Join(d.opts.ShimDir, volumeID)); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v; see what has it open, and call again", volumeID, err)
	}
	if err := d.sidecar.DetachVolume(ctx, volumeID); err != nil {
		return err
	}
	// Empty, once nothing is mounted on it; the next attachment makes it again.
	if err := os.Remove(filepath.Join(d.opts.ShimDir, volumeID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "The directory of a volume that is not served any more stays", "volume", volumeID)
	}
	return nil
}

// InUse says in words by what a volume is in use; empty when it is not. A stage record that a reboot made stale is no
// use.
func (d *Attacher) InUse(rec *blockdev.VolumeRecord) (string, error) {
	devices, err := d.AttachedDevices(rec)
	if err != nil || len(devices) == 0 {
		return "", err
	}
	if devices[0].Deleted {
		return fmt.Sprintf("its image was removed or renamed, but %s over it is attached", devices[0].Path), nil
	}
	if rec.Stage != nil {
		return "it is staged on " + rec.Stage.StagingPath, nil
	}
	return "it is attached as " + devices[0].Path, nil
}
