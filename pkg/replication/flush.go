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
	g := v.group
	held := g.shard.hold.wait(g.journal)
	err := g.log.commit()
	held()
	return err
}

// FlushAsync implements blockdev.AsyncFlusher.
func (v *Volume) FlushAsync(done func(error)) {
	g := v.group
	done = g.shard.hold.through(g.journal, done)
	g.journal.SyncAsync(func(err error) { done(g.log.committed(err)) })
}

// Commit implements blockdev.Committer.
func (v *Volume) Commit(done func(error)) (lead func()) {
	g := v.group
	done = g.shard.hold.through(g.journal, done)
	return g.journal.SyncLater(func(err error) { done(g.log.committed(err)) })
}

// StartFlush implements blockdev.FlushStarter.
func (v *Volume) StartFlush() { v.group.journal.StartSync() }

// commit makes the journal durable and wakes who lives on durable records.
func (l *groupLog) commit() error { return l.committed(l.g.journal.Sync()) }

// committed takes what a sync of the journal has returned.
func (l *groupLog) committed(err error) error {
	if err != nil {
		if errors.Is(err, journal.ErrFailed) {
			l.g.fail(err)
		}
		return err
	}
	l.g.shipper.work.send()
	return nil
}

// commitLoop makes records durable that no flush waits for, so that they reach the peer, too: with `order: flush`,
// after the kernel wrote back on its own.
func (l *groupLog) commitLoop(ctx context.Context) {
	g := l.g
	ticker := time.NewTicker(g.cfg.CommitInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if g.journal.Durable() < g.journal.Head() {
			_ = l.commit() // a failed sync has stopped the group
		}
	}
}
