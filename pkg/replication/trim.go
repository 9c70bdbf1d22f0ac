package replication

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// freeSegments is how many segments are kept ready, so that a writer never waits for one to be made. The last ones of
// them are given up where a full pool has no space for what is applied (apply_full.go).
const (
	freeSegments = 2 + keptSegments
	keptSegments = 1
)

// trimmer takes segments out of the journal that are not needed there.
type trimmer struct {
	g *Group
	// work wakes the loop.
	work signal
}

// segmentBytesFor is the size of a journal segment: a sixteenth of the journal, within bounds. A quarter of a segment
// is the largest record, so the least holds an extent of the change map; the most keeps small what is freed at once.
func segmentBytesFor(journalBytes int64) int64 {
	const least, most = 4 * changemap.ExtentBytes, 64 << 20
	n := journalBytes / 16
	n -= n % 4096
	return min(max(n, least), most)
}

// loop takes segments out of the journal that are not needed there, and keeps free ones ready.
func (t *trimmer) loop(ctx context.Context) {
	g := t.g
	// The ticker retries what failed, such as making a segment on a full disk.
	ticker := time.NewTicker(g.cfg.ApplyInterval)
	defer ticker.Stop()
	for {
		if err := t.trim(); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Trimming the journal failed; it is tried again", "group", g.Name())
		}
		if g.applier.short.Load() {
			g.journal.DropFree()
		} else if err := g.journal.Prepare(); err != nil && ctx.Err() == nil && !vfs.NoSpace(err) {
			klog.ErrorS(err, "Making a journal segment failed; it is tried again", "group", g.Name())
		}
		select {
		case <-ctx.Done():
			return
		case <-t.work:
		case <-ticker.C:
		}
	}
}

// trim carries out core's plans until there is nothing more to take.
func (t *trimmer) trim() error {
	g := t.g
	for {
		segments := g.journal.Segments()
		pressure := t.underPressure(segments)
		applied := g.checkpoint.read()
		in := core.TrimInput{Applied: applied.AppliedOrdinal, Pressure: pressure}
		for _, s := range segments {
			if !s.Sealed || applied.Applied.Before(s.End) {
				break
			}
			in.LastOrdinals = append(in.LastOrdinals, s.LastOrdinal)
		}
		g.mu.Lock()
		plan := g.core.PlanTrim(in)
		g.mu.Unlock()
		if in.Pressure && len(in.LastOrdinals) == 0 && len(segments) > 1 {
			g.shard.unfix()
			g.applier.work.send()
		}
		switch {
		case plan.Release > 0:
			last := segments[plan.Release-1]
			if err := t.truncateThrough(last, last.LastOrdinal); err != nil {
				return err
			}
		case plan.Fold > 0:
			if err := t.fold(segments[0]); err != nil {
				return err
			}
		default:
			return nil
		}
		if g.applier.short.Load() {
			g.journal.DropFree()
			g.applier.work.send()
		}
		g.log.room.send()
	}
}

// underPressure reports whether the live segments have reached the journal's size, less what is kept free, or the
// images need the space.
func (t *trimmer) underPressure(segments []journal.SegmentInfo) bool {
	g := t.g
	if g.applier.short.Load() {
		return true
	}
	n := freeSegments * g.log.segBytes.Load()
	for _, s := range segments {
		n += s.FileBytes
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return n > g.core.Meta.JournalSizeBytes
}

// truncateThrough gives segments back. The checkpoint says so first: recovery must not look for them.
func (t *trimmer) truncateThrough(last journal.SegmentInfo, acked uint64) error {
	g := t.g
	h, known, err := g.journal.HeaderOf(last.LastOrdinal)
	if err != nil {
		return err
	}
	err = g.checkpoint.change(func(c *checkpoint) {
		if known && c.Tail.Ordinal < h.Ordinal {
			c.Tail = core.Tail{Ordinal: h.Ordinal, Fingerprint: h.Fingerprint()}
		}
		c.OldestSegment = max(c.OldestSegment, last.Sequence+1)
		c.ReleasedAcked = max(c.ReleasedAcked, acked)
	})
	if err != nil {
		return err
	}
	return g.journal.Release(last.Sequence)
}

// fold moves the oldest segment's information from the journal to the change map: which extents its records touched.
// The records' order is lost by it, so the peer needs a resync. The map, and that it counts, are durable before the
// segment goes.
//
// From the moment when the segment is in the map, it is in the map alone: the sender ships none of its records any
// more, although the journal still has them. The marks and the ordinal that says so change at once (changeSet.fold).
// See sender.skipFolded for what goes wrong otherwise.
func (t *trimmer) fold(s journal.SegmentInfo) error {
	if err := t.foldIntoMap(s); err != nil {
		return err
	}
	klog.V(2).InfoS("Journal segment folded into the change map", "group", t.g.Name(), "segment", s.Sequence,
		"lastOrdinal", s.LastOrdinal)
	if err := t.truncateThrough(s, 0); err != nil {
		return err
	}
	t.g.shipper.work.send()
	return nil
}

// foldIntoMap is fold without the end: the segment is still in the journal.
func (t *trimmer) foldIntoMap(s journal.SegmentInfo) error {
	g := t.g
	marks := changemap.New()
	cursor := g.journal.NewCursor(s.Begin)
	defer cursor.Close()
	for {
		records, err := cursor.Next(applyChunkBytes)
		if err != nil {
			return fmt.Errorf("group %s: fold segment %d: %w", g.Name(), s.Sequence, err)
		}
		for i := range records {
			r := &records[i]
			if r.Loc.Segment == s.Sequence && touchesImage(&r.Header) {
				marks.Mark(r.Header.Volume, r.Header.Offset, int64(r.Header.Length))
			}
		}
		if len(records) == 0 || !records[len(records)-1].End.Before(s.End) {
			break
		}
	}
	g.changes.fold(marks, s.LastOrdinal)
	if err := g.shipper.saveChangeMap(); err != nil {
		return err
	}
	_, err := g.step(core.Folded{}, nil)
	return err
}
