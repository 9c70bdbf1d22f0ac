// Package attach makes volumes usable on the node and undoes it: loop devices, format, stage, publish, expand, freeze.
// It is the only package of the driver that changes mounts and devices, through package host.
//
// Every step finds out what an earlier call has done, so that it can be repeated after a crash between any two steps.
// The truth is in the volume's record and in the kernel's mount and loop tables; the publications (publications.go) add
// what the mount table does not show.
//
// It knows nothing of how volumes and snapshots are created, or of groups. Calls for one volume must be guarded (see
// work.Guards); calls for different volumes may run at the same time.
package attach

import (
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

type Options struct {
	NodeID  string
	PoolDir string
	ShimDir string // where the replicator serves volumes
}

type Attacher struct {
	store *store.Store
	space *space.Accounts
	host.System
	opts         Options
	Publications *publications
	sidecar      *replicator.Client // nil for none
	guards       *work.Guards
	tasks        *work.Table
}

func New(st *store.Store, sp *space.Accounts, sys host.System, opts Options, sidecar *replicator.Client,
	guards *work.Guards, tasks *work.Table) (*Attacher, error) {
	p, err := OpenPublications(sys.FS, opts.PoolDir)
	if err != nil {
		return nil, err
	}
	return &Attacher{store: st, space: sp, System: sys, opts: opts, Publications: p, sidecar: sidecar, guards: guards,
		tasks: tasks}, nil
}
