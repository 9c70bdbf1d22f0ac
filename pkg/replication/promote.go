package replication

import (
	"fmt"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Promote makes the group primary here. Its volumes serve I/O through image + journal at once; the rest is applied
// behind them, so the time it takes does not depend on how much that is. Errors are core.ErrPrecondition with what to
// do first. Repeating it is not an error and changes nothing.
//
// A forced promotion in the middle of a sync makes the group what it was before. That takes as long as the sync had
// changed much, and the group is another Group of the site afterwards; this one is closed.
//
// The copy of a shard is promoted together with those of the other shards (package shards), and not by this.
func (g *Group) Promote(force bool) (*core.Loss, error) {
	if g.shard.isCopy() {
		return nil, fmt.Errorf("%w: group %s is a shard; it is promoted with the whole group", core.ErrPrecondition, g.Name())
	}
	return g.promoteWhole(force)
}

// promoteWhole promotes at the last ordinal that is here.
func (g *Group) promoteWhole(force bool) (*core.Loss, error) {
	g.mu.Lock()
	secondary := g.core.Meta.Role == core.RoleSecondary
	g.mu.Unlock()
	if secondary {
		if !force {
			// A refusal must not cost the stream.
			if err := g.checkPlanned(); err != nil {
				return nil, err
			}
		}
		// A primary that redials meanwhile is turned away, not let in between the stop and the decision.
		defer g.streams.refuse()()
	}
	if err := g.journal.Sync(); err != nil {
		g.fail(err)
		return nil, err
	}
	tail, err := g.tail(g.journal.Durable())
	if err != nil {
		return nil, err
	}
	loss, err := g.becomePrimary(core.Promote{
		Force: force, Durable: g.journal.Durable(), Tail: tail, Now: g.cfg.Clock(), NewTimeline: uuid.NewString(),
	}, secondary)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	rollsBack := g.core.Meta.Copy == core.CopyRollingBack
	g.mu.Unlock()
	if rollsBack {
		_, err := g.site.rollBack(g)
		return loss, err
	}
	if err := g.members.alignPool(); err != nil {
		return nil, err
	}
	g.shipper.linkWork.send()
	return loss, nil
}

// becomePrimary decides a promotion. wasSecondary: what is here came from the peer.
func (g *Group) becomePrimary(e core.Promote, wasSecondary bool) (*core.Loss, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.stepLocked(e, nil); err != nil {
		return nil, err
	}
	m := &g.core.Meta
	if m.Copy == core.CopyRollingBack {
		klog.InfoS("Group is promoted in the middle of a sync", "group", m.Name, "ordinal", m.Base.Ordinal)
		return m.Loss, nil
	}
	if wasSecondary {
		g.clock.begin(g.journal.Head(), g.journal.Head(), e.Now)
	}
	klog.InfoS("Group promoted", "group", m.Name, "force", e.Force, "ordinal", e.Durable, "timeline", m.Timeline())
	return m.Loss, nil
}

func (g *Group) checkPlanned() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	trial := core.New(g.core.Meta)
	if heard := g.core.Heard(); heard != nil {
		_, _, _ = trial.Step(*heard)
	}
	_, _, err := trial.Step(core.Promote{Durable: g.journal.Durable(), NewTimeline: "trial"})
	return err
}

// tail identifies the record at an ordinal, from the journal, or from when the role last changed here; nil where it is
// not known. The caller does not hold mu.
func (g *Group) tail(ordinal uint64) (*core.Tail, error) {
	h, ok, err := g.journal.HeaderOf(ordinal)
	if err != nil {
		return nil, err
	}
	if ok {
		return &core.Tail{Ordinal: ordinal, Fingerprint: h.Fingerprint()}, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.core.Meta.Tail; t != nil && t.Ordinal == ordinal {
		return t, nil
	}
	if y := g.core.Meta.Yielding(); y != nil && y.Tail != nil && y.Tail.Ordinal == ordinal {
		return y.Tail, nil
	}
	if t := g.checkpoint.read().Tail; t.Ordinal == ordinal && ordinal > 0 {
		return &t, nil
	}
	return nil, nil
}

// Demote gives the primary role up without loss: no volume may be attached; what is here is made durable and final,
// and goes on being shipped. It returns the last ordinal.
//
// A shard is demoted together with those of the other shards (package shards), and not by this.
func (g *Group) Demote() (uint64, error) { return g.demote(core.Demote{}) }

func (g *Group) demote(e core.Demote) (uint64, error) {
	ordinal, err := g.stopWrites(func(durable uint64, tail *core.Tail, attached []string) core.Event {
		e.Durable, e.Tail, e.Attached = durable, tail, attached
		return e
	})
	if err != nil {
		return 0, err
	}
	g.shipper.work.send()
	return ordinal, nil
}

// stopWrites makes the journal durable and, before anything more is appended, lets core decide about an event that ends
// writes. It returns the last ordinal.
func (g *Group) stopWrites(event func(durable uint64, tail *core.Tail, attached []string) core.Event) (uint64, error) {
	attached := g.members.attached()
	// No append may come between the sync and the decision.
	g.log.mu.Lock()
	defer g.log.mu.Unlock()
	if g.writable.Load() {
		if err := g.log.appendQueued(); err != nil {
			return 0, err
		}
	}
	if err := g.journal.Sync(); err != nil {
		g.fail(err)
		return 0, err
	}
	tail, err := g.tail(g.journal.Durable())
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.stepLocked(event(g.journal.Durable(), tail, attached), nil); err != nil {
		return 0, err
	}
	return g.journal.Durable(), nil
}
