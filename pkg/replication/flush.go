package replication

import (
	"context"
	"errors"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// Flush implements blockdev.Device: every write of the group that was acknowledged before is durable when it returns.
// One fdatasync of the journal serves all volumes that wait (the journal's group commit).
func (v *Volume) Flush() error {
	return v.group.commit()
}

// FlushAsync implements blockdev.AsyncFlusher.
func (v *Volume) FlushAsync(done func(error)) {
	g := v.group
	g.journal.SyncAsync(func(err error) { done(g.committed(err)) })
}

// Commit implements blockdev.Committer.
func (v *Volume) Commit(done func(error)) (lead func()) {
	g := v.group
	return g.journal.SyncLater(func(err error) { done(g.committed(err)) })
}

// StartFlush implements blockdev.FlushStarter.
func (v *Volume) StartFlush() { v.group.journal.StartSync() }

// commit makes the journal durable and wakes who lives on durable records.
func (g *Group) commit() error { return g.committed(g.journal.Sync()) }

// committed takes what a sync of the journal has returned.
func (g *Group) committed(err error) error {
	if err != nil {
		if errors.Is(err, journal.ErrFailed) {
			g.fail(err)
		}
		return err
	}
	g.shipWork.send()
	return nil
}

// commitLoop makes records durable that no flush waits for, so that they reach the peer, too: with `order: flush`,
// after the kernel wrote back on its own.
func (g *Group) commitLoop(ctx context.Context) {
	ticker := time.NewTicker(g.cfg.CommitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if g.journal.Durable() < g.journal.Head() {
			_ = g.commit() // a failed sync has stopped the group
		}
	}
}
