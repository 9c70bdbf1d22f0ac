package replication

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// applier moves what is durable to the images.
type applier struct {
	g *Group
	// mu keeps passes apart: the loop's, and those that promotion and demotion ask for.
	mu passMutex
	// pace is that of the loop's pass while it runs. Guarded by mu.
	pace passPace
	// work wakes the loop.
	work signal
	// stuck is why the last pass failed; nil if it did not.
	stuck atomic.Pointer[error]
	// short: the images found no space, and the journal gives up its own.
	short atomic.Bool
}

// applyChunkBytes is how much of the journal apply reads at once.
const applyChunkBytes = 1 << 20

// loop moves durable records to the images: when enough of them have come together to be coalesced, when the
// journal needs room, and at the latest every ApplyInterval.
func (a *applier) loop(ctx context.Context) {
	g := a.g
	ticker := time.NewTicker(g.cfg.ApplyInterval)
	defer ticker.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			// Three quarters leave time for the end of the pass before the next one.
			err = a.applyDue(ctx, g.cfg.ApplyInterval/4*3)
		case <-a.work:
			err = a.applyDue(ctx, 0)
		}
		if err == nil {
			a.stuck.Store(nil)
			g.trimmer.work.send()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		var corrupt *journal.CorruptionError
		if errors.As(err, &corrupt) {
			g.fail(err)
			return
		}
		// A full disk, most likely: writers that wait for room must hear of it instead of waiting forever.
		a.stuck.Store(&err)
		g.log.room.send()
		klog.ErrorS(err, "Applying to the images failed; it is tried again", "group", g.Name())
		if !pause.For(ctx, g.cfg.ApplyInterval) {
			return
		}
	}
}

// apply brings the images to the journal's durable end and writes a checkpoint.
//
// Within one pass the order of image writes does not matter to recovery: the checkpoint before the pass stands until
// the images are synced, and every record since is still in the journal. So a record whose range a later record of the
// same pass overwrites is skipped there: applying is coalesced without a buffer. A later record that is not durable
// yet is no excuse: a power loss would take it, and the skipped one is what the range has to show then.
//
// A range of a record that is not in the index any more was applied by an earlier pass that failed before its
// checkpoint. What the image has there is newer or the same, so it is left alone.
func (a *applier) apply(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applyLocked(ctx)
}

// applyLocked is apply for a caller that holds applier.mu.
func (a *applier) applyLocked(ctx context.Context) error {
	return a.applyUpTo(ctx, a.g.log.indexedEnd())
}

// applyUpTo is applyTo that takes space from the journal where the images find none. The caller holds applier.mu.
func (a *applier) applyUpTo(ctx context.Context, limit journal.Position) error {
	err := a.applyTo(ctx, limit)
	if vfs.NoSpace(err) {
		err = a.applyFromJournal(ctx, limit, err)
	}
	if err == nil {
		a.short.Store(false)
	}
	return err
}

// applyTo is apply up to a position that indexedEnd has reached. The caller holds applier.mu.
//
// A pass does not go over the place of a view: up to there, what it changes in an image is in the view's index.
func (a *applier) applyTo(ctx context.Context, limit journal.Position) error {
	for at := a.g.checkpoint.read().Applied; ; {
		at = a.g.views.stop(at, limit)
		if err := a.applyPass(ctx, at); err != nil || !at.Before(limit) {
			return err
		}
	}
}

func (a *applier) applyPass(ctx context.Context, limit journal.Position) error {
	g := a.g
	last := g.checkpoint.read()
	from, applied := last.Applied, last.AppliedOrdinal
	if !from.Before(limit) {
		return nil
	}
	if err := g.points.extend(limit); err != nil {
		return err
	}
	pace := a.pace
	pace.began, pace.bytes = time.Now(), g.log.unappliedBytes(from)
	cursor := g.journal.NewCursor(from)
	defer cursor.Close()
	written := map[*Volume]*writeOut{}
	at, appliedAt := from, int64(0)
	var pieces []overlay.Piece
	for at.Before(limit) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		records, err := cursor.Next(applyChunkBytes)
		if err != nil {
			return fmt.Errorf("group %s: apply: %w", g.Name(), err)
		}
		if len(records) == 0 {
			break
		}
		n := 0
		for n < len(records) && !limit.Before(records[n].End) {
			n++
		}
		if err := a.beforeApply(records[:n]); err != nil {
			return fmt.Errorf("group %s: apply: %w", g.Name(), err)
		}
		for i := range records[:n] {
			r := &records[i]
			at, applied = r.End, r.Header.Ordinal
			pace.done += r.End.Offset - r.Loc.Offset
			if r.Header.Kind.TakesOrdinal() {
				appliedAt = r.Header.UnixNanos
			}
			v := g.members.at(r.Header.Volume)
			if v == nil || !touchesImage(&r.Header) {
				continue
			}
			pieces = v.overlay.Lookup(r.Header.Offset, int64(r.Header.Length), pieces[:0])
			out := written[v]
			if out == nil {
				out = &writeOut{image: v.image, pace: &pace}
				written[v] = out
			}
			if err := v.applyRecord(r, pieces, limit, out); err != nil {
				return err
			}
			g.views.applied(r)
		}
		if n < len(records) {
			break // the rest became durable after the pass began; it is the next one's
		}
	}
	for v := range written {
		if err := v.image.Flush(); err != nil {
			return fmt.Errorf("group %s: apply: sync image of volume %s: %w", g.Name(), v.id, err)
		}
	}
	if err := g.cuts.logMarks(); err != nil {
		return fmt.Errorf("group %s: apply: %w", g.Name(), err)
	}
	// No record is left before the limit, which may be the begin of a segment: the end of the one before is the same
	// place, and a checkpoint that names both would look like a pass that was interrupted.
	err := g.checkpoint.change(func(c *checkpoint) {
		c.Applied, c.AppliedOrdinal = limit, applied
		if appliedAt != 0 {
			c.Dated = RecoveryPoint{Ordinal: applied, UnixNanos: appliedAt}
		}
		c.take(g.journal.DurableMark())
	})
	if err == nil {
		g.points.reach.setOrdinal(limit, applied, appliedAt)
	}
	return err
}

// beforeApply is called with the records that are about to change the images: who still needs what they overwrite
// copies it.
func (a *applier) beforeApply(records []journal.Record) error {
	if err := a.g.cuts.beforeApply(records); err != nil {
		return err
	}
	if err := a.g.preserved.beforeApply(records); err != nil {
		return err
	}
	return a.g.views.beforeApply(records)
}

// beforeChange is beforeApply for extents of members, by their indices, that change in the images without a record:
// views keep them wherever their places are. but is the set that they are put back from, which need not keep them; nil
// for none.
func (a *applier) beforeChange(touched *changemap.Map, but *preserved) error {
	if err := a.g.cuts.beforeChange(touched); err != nil {
		return err
	}
	if err := a.g.preserved.beforeChange(touched, but); err != nil {
		return err
	}
	return a.g.views.beforeChange(touched)
}

// touchesImage reports whether a record changes a volume's content. One of a range that no volume can have changes
// none: the journals of earlier releases may have some of members that had left.
func touchesImage(h *journal.Header) bool {
	return isContent(h.Kind) && blockdev.CheckRange(h.Offset, int64(h.Length), core.MaxVolumeBytes) == nil
}

// isContent reports whether records of this kind are a volume's content.
func isContent(k journal.Kind) bool {
	switch k {
	case journal.KindWrite, journal.KindDiscard, journal.KindZero, journal.KindExtent, journal.KindHole:
		return true
	}
	return false
}

// applyRecord writes the pieces of a record that are its own to write, and takes them out of the index. A reader that
// found a piece in the index before reads the same bytes from the journal.
func (v *Volume) applyRecord(r *journal.Record, pieces []overlay.Piece, limit journal.Position, out *writeOut) error {
	h := &r.Header
	for _, p := range pieces {
		newer := p.Found && p.Loc != r.Loc
		if !p.Found || newer && p.Loc.Start().Before(limit) {
			continue
		}
		var err error
		switch h.Kind {
		case journal.KindDiscard, journal.KindHole:
			err = v.image.Discard(p.Off, p.Len)
		case journal.KindZero:
			err = v.image.Zero(p.Off, p.Len)
		default:
			_, err = v.image.WriteAt(r.Data[p.Off-h.Offset:][:p.Len], p.Off)
			if err == nil {
				err = out.wrote(p.Off, p.Len)
			}
		}
		if err != nil {
			return fmt.Errorf("volume %s: apply ordinal %d at offset %d: %w", v.id, h.Ordinal, p.Off, err)
		}
		if !newer {
			v.overlay.Remove(p.Off, p.Len, r.Loc)
		}
	}
	return nil
}

// applyAll applies until nothing durable is left.
func (a *applier) applyAll(ctx context.Context) error {
	g := a.g
	for {
		if !g.checkpoint.read().Applied.Before(g.journal.DurableEnd()) {
			return nil
		}
		if err := a.applyPatiently(ctx); err != nil {
			return err
		}
	}
}

// applyExactly applies up to a position and no further. The caller holds applier.mu.
func (a *applier) applyExactly(ctx context.Context, limit journal.Position) error {
	if err := a.applyTo(ctx, limit); err != nil {
		return err
	}
	at := a.g.checkpoint.read().Applied
	if !at.Before(limit) {
		return nil
	}
	// The end of a segment and the begin of the next one are one place.
	cursor := a.g.journal.NewCursor(at)
	defer cursor.Close()
	records, err := cursor.Next(1)
	if err == nil && len(records) > 0 && records[0].Loc.Start().Before(limit) {
		err = fmt.Errorf("group %s: applied up to %v, not to %v", a.g.Name(), at, limit)
	}
	return err
}

// applyDue is apply without what is kept as history. It rests so that it takes about as long as given, unless a caller
// comes to wait for it.
func (a *applier) applyDue(ctx context.Context, over time.Duration) error {
	g := a.g
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pace = passPace{over: over, hurried: func() bool {
		return len(a.work) > 0 || a.mu.waiting.Load() > 0 || ctx.Err() != nil
	}}
	defer func() { a.pace = passPace{} }()
	if err := g.points.hold(); err != nil {
		return err
	}
	limit, err := g.shard.applyLimit(g.log.indexedEnd())
	if err != nil {
		return err
	}
	if asked := g.history.asked(); asked.kept() && !a.short.Load() {
		due, err := g.history.dueBefore(asked, limit)
		if err != nil {
			return err
		}
		limit = due
	}
	return a.applyUpTo(ctx, g.shard.fixedLimit(limit))
}
