package replication

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A repair replaces extents of the site at which it is asked for, by those of the peer. Which side is right no hash
// tells: a person decides, and gives the command at the site that yields.
//
//	at the secondary   it asks; the primary sends these extents in a sync, as after a catch-up
//	at the primary     its volumes are not attached, so nothing is written meanwhile; it reads the extents of the
//	                   secondary at one ordinal, and writes them as its own writes, with ordinals
//
// Then the same extents are compared again. A crash leaves a repair in part, which is repeated.

// resendPoll is how often a repair looks whether the sync of its extents has ended.
const resendPoll = 20 * time.Millisecond

// Repair replaces the extents of this site that the last comparison found to differ, and compares them again. It
// returns how many they are, when the work is about to begin; Status tells the rest. Errors are core.ErrPrecondition.
func (g *Group) Repair() (extents uint64, err error) { return g.verification.repair() }

// repair is Group.Repair.
func (v *verification) repair() (extents uint64, err error) {
	g := v.g
	if _, shard := g.shard.Identity(); shard {
		return 0, fmt.Errorf("%w: group %s is a shard of a group over several nodes, whose extents cannot be replaced "+
			"alone; delete the copy and let it be made anew", core.ErrPrecondition, g.Name())
	}
	known := v.known()
	if known.Count == 0 {
		return 0, fmt.Errorf("%w: no comparison found a difference in group %s (slipctl group verify %s compares)",
			core.ErrPrecondition, g.Name(), g.Name())
	}
	list := slices.Clone(known.Extents)
	g.mu.Lock()
	secondary := g.core.Meta.Role == core.RoleSecondary
	g.mu.Unlock()
	if secondary {
		return uint64(len(list)), v.askForRepair(list)
	}
	if err := v.blockAttach(list); err != nil {
		return 0, err
	}
	err = v.request(&verifyScope{extents: list, take: true})
	if err != nil {
		v.unblockAttach()
	}
	return uint64(len(list)), err
}

// resend marks extents, and waits until a sync has sent them.
func (v *verification) resend(ctx context.Context, port *verifyPort, list []MemberExtent) error {
	g := v.g
	for _, e := range list {
		member := g.members.at(e.Member)
		if member == nil {
			continue
		}
		off := int64(e.Extent) * changemap.ExtentBytes
		if n := min(changemap.ExtentBytes, member.Size()-off); n > 0 {
			g.changes.mark(e.Member, off, n)
		}
	}
	if err := g.shipper.saveChangeMap(); err != nil {
		return err
	}
	if _, err := g.step(core.Folded{}, nil); err != nil {
		return err
	}
	g.shipper.work.send()
	for g.members.needsSync() || g.Status().State != core.StateStreaming {
		select {
		case <-port.ended:
			return fmt.Errorf("%w; the extents are sent when it is back, and are to be compared again then", errStreamEnded)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resendPoll):
		}
	}
	return nil
}

// blockAttach keeps volumes from being attached, unless one of those with the extents is.
func (v *verification) blockAttach(list []MemberExtent) error {
	g := v.g
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, e := range list {
		if volume := g.members.at(e.Member); volume != nil && volume.attached {
			return fmt.Errorf("%w: volume %s is attached; end what uses it (`slipctl volume unmount %[2]s`, or delete "+
				"its pods), or move the group first", ErrInUse, volume.id)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.repairing = true
	return nil
}

func (v *verification) unblockAttach() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.repairing = false
}

// blocksAttach reports whether extents of this site are being replaced.
func (v *verification) blocksAttach() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.repairing
}
