// Package health finds the adverse conditions of volumes, the pool and the replicator, each with a reason that
// docs/health.md explains. It changes nothing and takes no guard: the volume that another call hangs on is the one
// whose health is asked for.
package health

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func (d *Checker) Survey(ctx context.Context) *Survey {
	return &Survey{d: d, pool: sync.OnceValue(d.space.PoolFileSystem), groups: sync.OnceValue(func() groupsView {
		return d.ViewGroups(ctx)
	})}
}

// WithoutContact returns "group (peer)" of the groups that should be replicated and are not, sorted.
func (v groupsView) WithoutContact() []string {
	var away []string
	for name, g := range v.byName {
		switch g.GetState() {
		case sidecarpb.GroupState_GROUP_STATE_CONNECTING, sidecarpb.GroupState_GROUP_STATE_DIVERGED:
			away = append(away, fmt.Sprintf("%s (%s)", name, g.GetPeer()))
		}
	}
	slices.Sort(away)
	return away
}

type Checker struct {
	store       *store.Store
	space       *space.Accounts
	attachments *attach.Attacher
	fs          vfs.FS
	opts        attach.Options
	sidecar     *replicator.Client // nil for none
}

func New(st *store.Store, sp *space.Accounts, at *attach.Attacher, fsys vfs.FS, opts attach.Options,
	sidecar *replicator.Client) *Checker {
	return &Checker{store: st, space: sp, attachments: at, fs: fsys, opts: opts, sidecar: sidecar}
}
