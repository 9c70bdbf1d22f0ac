// Package snapshots takes snapshots of volumes and gives new volumes their content from snapshots and volumes: cuts by
// the replicator for volumes in a group, clones of images, and copies in the background.
//
// It does not validate requests (package driver) and does not reserve space (package space). Calls for one volume or
// snapshot must be guarded; see work.Guards.
package snapshots

import (
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

type Manager struct {
	store       *store.Store
	space       *space.Accounts
	attachments *attach.Attacher
	fs          vfs.FS
	nodeID      string
	sidecar     *replicator.Client // nil for none
	guards      *work.Guards
	tasks       *work.Table
}

func New(st *store.Store, sp *space.Accounts, at *attach.Attacher, fsys vfs.FS, nodeID string,
	sidecar *replicator.Client, guards *work.Guards, tasks *work.Table) *Manager {
	return &Manager{store: st, space: sp, attachments: at, fs: fsys, nodeID: nodeID, sidecar: sidecar, guards: guards,
		tasks: tasks}
}
