package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// applyChunkBytes is how much of the journal apply reads at once.
const applyChunkBytes = 1 << 20

// applyLoop moves durable records to the images: when enough of them have come together to be coalesced, when the
// journal needs room, and at the latest every ApplyInterval.
func (g *Group) applyLoop(ctx context.Context) {
	ticker := time.NewTicker(g.cfg.ApplyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-g.applyWork:
		}
		err := g.applyDue(ctx)
		if err == nil {
			g.applyStuck.Store(nil)
			g.trimWork.send()
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
		g.applyStuck.Store(&err)
		g.room.send()
		klog.ErrorS(err, "Applying to the images failed; it is tried again", "group", g.Name())
		if !sleep(ctx, g.cfg.ApplyInterval) {
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
func (g *Group) apply(ctx context.Context) error {
	g.applyMu.Lock()
	defer g.applyMu.Unlock()
	return g.applyLocked(ctx)
}

// applyLocked is apply for a caller that holds applyMu.
func (g *Group) applyLocked(ctx context.Context) error { return g.applyUpTo(ctx, g.indexedEnd()) }

// applyUpTo is applyTo that takes space from the journal where the images find none. The caller holds applyMu.
func (g *Group) applyUpTo(ctx context.Context, limit journal.Position) error {
	err := g.applyTo(ctx, limit)
	if vfs.NoSpace(err) {
		err = g.applyFromJournal(ctx, limit, err)
	}
	if err == nil {
		g.short.Store(false)
	}
	return err
}

// applyTo is apply up to a position that indexedEnd has reached. The caller holds applyMu.
//
// A pass does not go over the place of a view: up to there, what it changes in an image is in the view's index.
func (g *Group) applyTo(ctx context.Context, limit journal.Position) error {
	for at := g.checkpoint.read().Applied; ; {
		at = g.views.stop(at, limit)
		if err := g.applyPass(ctx, at); err != nil || !at.Before(limit) {
			return err
		}
	}
}

func (g *Group) applyPass(ctx context.Context, limit journal.Position) error {
	last := g.checkpoint.read()
	from, applied := last.Applied, last.AppliedOrdinal
	if !from.Before(limit) {
		return nil
	}
	if err := g.points.extend(limit); err != nil {
		return err
	}
	cursor := g.journal.NewCursor(from)
	defer cursor.Close()
	touched := map[*Volume]bool{}
	end, appliedAt := from, int64(0)
	var pieces []overlay.Piece
	for end.Before(limit) {
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
		if err := g.beforeApply(records[:n]); err != nil {
			return fmt.Errorf("group %s: apply: %w", g.Name(), err)
		}
		for i := range records[:n] {
			r := &records[i]
			end, applied = r.End, r.Header.Ordinal
			if r.Header.Kind.TakesOrdinal() {
				appliedAt = r.Header.UnixNanos
			}
			v := g.volume(r.Header.Volume)
			if v == nil || !touchesImage(r.Header.Kind) {
				continue
			}
			pieces = v.overlay.Lookup(r.Header.Offset, int64(r.Header.Length), pieces[:0])
			if err := v.applyRecord(r, pieces, limit); err != nil {
				return err
			}
			g.views.applied(r)
			touched[v] = true
		}
		if n < len(records) {
			break // the rest became durable after the pass began; it is the next one's
		}
	}
	for v := range touched {
		if err := v.image.Flush(); err != nil {
			return fmt.Errorf("group %s: apply: sync image of volume %s: %w", g.Name(), v.id, err)
		}
	}
	if err := g.cuts.logMarks(); err != nil {
		return fmt.Errorf("group %s: apply: %w", g.Name(), err)
	}
	err := g.checkpoint.change(func(c *checkpoint) {
		c.Applied, c.AppliedOrdinal = end, applied
		c.take(g.journal.DurableMark())
	})
	if err == nil {
		g.points.reach.settle(limit, applied, appliedAt)
	}
	return err
}

// beforeApply is called with the records that are about to change the images: who still needs what they overwrite
// copies it.
func (g *Group) beforeApply(records []journal.Record) error {
	if err := g.cuts.beforeApply(records); err != nil {
		return err
	}
	return g.views.beforeApply(records)
}

// indexedEnd is the journal's durable end, with every record before it in the index. A record gets into the index a
// moment after it got into the journal, and in that moment a flush can make it durable. Apply would then take the
// record for one that it had applied already, and lose it.
func (g *Group) indexedEnd() journal.Position {
	g.appendMu.Lock()
	defer g.appendMu.Unlock()
	return g.journal.DurableEnd()
}

// checkpointDurable puts the last durable record into the checkpoint. It lets recovery tell damage to the newest
// records from the torn tail of a crash, which nothing else in the journal can: they have no successor.
func (g *Group) checkpointDurable() error {
	return g.checkpoint.change(func(c *checkpoint) { c.take(g.journal.DurableMark()) })
}

// announceSegment puts a segment that has its first durable records into the checkpoint: from then on it has to be
// there.
func (g *Group) announceSegment(m journal.Mark) error {
	return g.checkpoint.change(func(c *checkpoint) { c.take(m) })
}

// touchesImage reports whether a record of this kind changes a volume's content.
func touchesImage(k journal.Kind) bool {
	switch k {
	case journal.KindWrite, journal.KindDiscard, journal.KindZero, journal.KindExtent, journal.KindHole:
		return true
	}
	return false
}

// applyRecord writes the pieces of a record that are its own to write, and takes them out of the index. A reader that
// found a piece in the index before reads the same bytes from the journal.
func (v *Volume) applyRecord(r *journal.Record, pieces []overlay.Piece, limit journal.Position) error {
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
func (g *Group) applyAll(ctx context.Context) error {
	for {
		if !g.checkpoint.read().Applied.Before(g.journal.DurableEnd()) {
			return nil
		}
		if err := g.applyPatiently(ctx); err != nil {
			return err
		}
	}
}
