package replication

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Where the pool is full, what is in the journal finds no space in the images. The journal's own space is what it can
// have: free segments are given up, one segment is applied at a time, and a segment that is applied is given up too.
// The journal keeps one free segment from writers for that.

// applyFromJournal is applyTo after that has met a full file system with the error why. The caller holds applier.mu.
func (a *applier) applyFromJournal(ctx context.Context, limit journal.Position, why error) error {
	g := a.g
	if same, err := g.cfg.Pool.SameFileSystem(g.cfg.Pool.GroupsDir()); err != nil || !same {
		return why
	}
	if !a.short.Swap(true) {
		klog.ErrorS(why, "The pool is full: the journal gives up space for what is applied", "group", g.Name())
	}
	defer g.trimmer.work.send()
	for _, s := range g.journal.Segments() {
		to := s.End
		if limit.Before(to) {
			to = limit
		}
		err := a.applyTo(ctx, to)
		if vfs.NoSpace(err) && g.journal.DropFree() > 0 {
			err = a.applyTo(ctx, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// applyPatiently is apply for what gives space back: where the pool is full it goes on for as long as the journal has
// space to give.
func (a *applier) applyPatiently(ctx context.Context) error {
	g := a.g
	const rounds, interval = 20, 250 * time.Millisecond // without progress
	last := g.checkpoint.read().Applied
	for idle := 0; ; idle++ {
		room := g.log.room.wait()
		err := a.apply(ctx)
		if !vfs.NoSpace(err) || idle == rounds {
			return err
		}
		if at := g.checkpoint.read().Applied; at != last {
			last, idle = at, 0
		}
		t := time.NewTimer(interval)
		select {
		case <-room: // a segment may have left the journal
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}
