package attach

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

func (d *Attacher) Unpublish(rec *blockdev.VolumeRecord, path string, devices []host.LoopDevice) error {
	if err := d.unmountAll(rec, path, devices); err != nil {
		return err
	}
	// Remove, not RemoveAll: should the unmount have been an illusion, the data behind it stays.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return status.Errorf(codes.Internal, "volume %s: remove target path: %v; look what is in it", rec.ID, err)
	}
	if err := d.Publications.Remove(rec.ID, path); err != nil {
		return status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	return nil
}

// UnpublishRemains is unpublish for a volume without a record. Of a volume that was deleted nothing is mounted; one
// whose directory was removed may be.
func (d *Attacher) UnpublishRemains(id, path string) error {
	rec, devices, err := d.Remains(id, false)
	if err != nil {
		return err
	}
	if len(devices) == 0 {
		return d.NothingMountedOn(id, path)
	}
	return d.Unpublish(rec, path, devices)
}

// PublishedDevices returns the loop devices of a volume, and that whose node is mounted on a target path of a raw block
// volume: it may have been detached behind the driver's back, and the publication then says whose mount it is.
func (d *Attacher) PublishedDevices(rec *blockdev.VolumeRecord, published []Publication,
	path string) ([]host.LoopDevice, error) {
	devices, err := d.AttachedDevices(rec)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(published, func(p Publication) bool { return p.Block && p.TargetPath == path }) {
		return devices, nil
	}
	mounts, err := d.Mounter.Mounts()
	if err != nil {
		return nil, status.Errorf(codes.Internal, "volume %s: %v", rec.ID, err)
	}
	for _, m := range host.MountsAt(mounts, path) {
		node := host.Device{Path: filepath.Join("/dev", filepath.Base(m.Root))}
		if m.IsNodeOf(node) {
			devices = append(devices, host.LoopDevice{Device: node})
		}
	}
	return devices, nil
}
