package attach

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// MountOn returns the topmost mount on path if it is of the volume, else nil.
func (d *Attacher) MountOn(rec *blockdev.VolumeRecord, path string) (*host.MountEntry, error) {
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

// IsNode reports whether a mount of the volume is its device node and not its file system.
func (d *Attacher) IsNode(rec *blockdev.VolumeRecord, m host.MountEntry) bool {
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
