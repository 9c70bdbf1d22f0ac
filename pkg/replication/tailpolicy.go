package replication

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// tailPolicy deletes the divergent tails of a group that its settings do not keep at this site. It has no state but the
// tails: a crash between the snapshots of one leaves it with fewer of them, and the next look deletes the rest.
type tailPolicy struct {
	g *Group
	// work makes it look at once: the settings changed, or a tail may have been added.
	work signal
}

// tailPolicyInterval is how often it looks at the age of tails.
const tailPolicyInterval = time.Minute

func (p *tailPolicy) loop(ctx context.Context) {
	ticker := time.NewTicker(tailPolicyInterval)
	defer ticker.Stop()
	p.work.send() // what came due while nothing ran
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-p.work:
		}
		if err := p.apply(); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Deleting tails failed; it is tried again", "group", p.g.Name())
		}
	}
}

// apply deletes what the settings do not keep. While the group makes a tail, nothing is deleted: the new one may stay
// incomplete.
func (p *tailPolicy) apply() error {
	g := p.g
	if settings, _ := p.state(); settings.TailsMost == 0 && settings.TailsMillis == 0 {
		return nil
	}
	list, err := g.site.Tails(g.Name())
	if err != nil {
		return err
	}
	settings, busy := p.state()
	if busy {
		return nil
	}
	var kept []core.KeptTail
	for _, t := range list {
		if t.Cut.GroupID != g.ID() {
			continue // of another group, whose name this one has; or not known
		}
		kept = append(kept, core.KeptTail{ID: t.ID, UnixNanos: t.Cut.UnixNanos, Complete: t.complete()})
	}
	var errs []error
	for _, id := range settings.ExpiredTails(kept, g.cfg.Now().UnixNano()) {
		err := g.site.DeleteTail(id)
		switch {
		case errors.Is(err, core.ErrPrecondition) || errors.Is(err, ErrNotFound):
		case err != nil:
			errs = append(errs, err)
		default:
			klog.InfoS("Tail deleted by the group's settings", "tail", id, "group", g.Name(), "most", settings.TailsMost,
				"keptFor", time.Duration(settings.TailsMillis)*time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// state is what the settings are, and whether the group is making a tail. A list of tails from before has none that is
// not complete, if it is not.
func (p *tailPolicy) state() (_ core.Settings, busy bool) {
	p.g.mu.Lock()
	defer p.g.mu.Unlock()
	m := &p.g.core.Meta
	return m.Settings, m.Trial != nil || m.Yielding() != nil
}

// complete reports whether all snapshots of a tail that are there are ready.
func (t *TailInfo) complete() bool {
	for _, rec := range t.Snapshots {
		if rec.State != blockdev.SnapshotReady {
			return false
		}
	}
	return true
}
