// Package groups puts volumes into consistency groups, moves them and takes them out, and changes the settings of
// groups, through the replicator. It notes in the volumes' records which groups the driver has created, so that they
// are deleted with their last volume.
//
// Calls for one volume must be guarded; see work.Guards.
package groups

import (
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
