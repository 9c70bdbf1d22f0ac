package driver

import (
	"context"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
)

// addonsDriver is the driver as the services of csi-addons see it; see csiaddons.Driver.
type addonsDriver struct{ d *Driver }

func (a addonsDriver) NodeID() string { return a.d.opts.NodeID }

func (a addonsDriver) Volume(id string) (*blockdev.VolumeRecord, error) { return a.d.store.Volume(id) }

func (a addonsDriver) Enter(volumeID, operation string) (leave func(), err error) {
	return a.d.beginCall(operation, volumeID)
}

func (a addonsDriver) Modify(ctx context.Context, rec *blockdev.VolumeRecord, m parameter.Mutation) error {
	return a.d.groups.Modify(ctx, rec, m)
}

func (a addonsDriver) Replicator() (sidecarpb.SidecarClient, error) {
	if a.d.sidecar == nil {
		return nil, replicator.ErrNone
	}
	return a.d.sidecar.API(), nil
}
