package replication

import (
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Suspend ends the stream to the peer until Resume, durably. Writers do not notice. What is written meanwhile is kept
// for the peer as it is while the peer is away. Errors are core.ErrPrecondition, and nothing was changed. Repeating it
// is not an error; it reports whether something was changed.
func (g *Group) Suspend() (changed bool, err error) { return g.settings.suspend() }

// suspend is Group.Suspend.
func (gs *groupSettings) suspend() (changed bool, err error) {
	g := gs.g
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g.ctx.Err() != nil {
		return false, ErrClosed
	}
	g.mu.Lock()
	refused := gs.trySuspend()
	g.mu.Unlock()
	if refused != nil {
		return false, refused // it must not cost the stream
	}
	release := g.streams.hold()
	defer func() { release(); g.shipper.linkWork.send() }()
	before := gs.suspended()
	if _, err := g.step(core.Suspend{Now: g.cfg.Now().UnixNano()}, nil); err != nil {
		return false, err
	}
	if !before {
		klog.InfoS("Replication suspended", "group", g.Name())
	}
	return !before, nil
}

// trySuspend says why the group cannot be suspended, apart from its stream. The caller holds mu.
func (gs *groupSettings) trySuspend() error {
	_, _, err := core.New(gs.g.core.Meta).Step(core.Suspend{})
	return err
}

// Resume lets the group replicate again, durably. Repeating it is not an error; it reports whether something was
// changed.
func (g *Group) Resume() (changed bool, err error) { return g.settings.resume() }

// resume is Group.Resume.
func (gs *groupSettings) resume() (changed bool, err error) {
	g := gs.g
	gs.mu.Lock()
	defer gs.mu.Unlock()
	before := gs.suspended()
	if _, err := g.step(core.Resume{}, nil); err != nil {
		return false, err
	}
	g.shipper.linkWork.send()
	if before {
		klog.InfoS("Replication resumed", "group", g.Name())
	}
	return before, nil
}

func (gs *groupSettings) suspended() bool {
	g := gs.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Flow == core.FlowSuspended
}
