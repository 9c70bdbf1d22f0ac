// Package groups puts volumes into consistency groups, moves them and takes them out, and changes the settings of
// groups, through the replicator. It notes in the volumes' records which groups the driver has created, so that they
// are deleted with their last volume.
//
// Calls for one volume must be guarded; see work.Guards.
package groups

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
)

type Manager struct {
	store   *store.Store
	sidecar *replicator.Client // nil for none
}

func New(st *store.Store, sidecar *replicator.Client) *Manager {
	return &Manager{store: st, sidecar: sidecar}
}

// group returns the status of a group that a volume is in, or is to be in; nil when there is none of that name. One
// that cannot be opened is FailedPrecondition: what it is, and what its journal has of its volumes, is not known.
func (d *Manager) group(ctx context.Context, rec *blockdev.VolumeRecord, name string) (*sidecarpb.GroupStatus, error) {
	g, err := d.sidecar.Group(ctx, name)
	if g.Unreadable() {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s: group %s cannot be opened here, so the volume stays "+
			"as it is: %s", rec.ID, name, g.GetStateReason())
	}
	return g, err
}
