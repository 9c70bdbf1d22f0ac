package replication

import (
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// History is what a secondary keeps in its journal so that a view can be opened at earlier ordinals: apply stays behind
// by a time or a number of bytes (core.Settings). The journal's size bounds it: what does not fit is applied. Nothing
// else changes: reads, promotion and the link go by image + journal, whatever is applied.
//
// What asks for everything that is durable in the images, as a cut does, ends the history that there is.

// historyKeeper says how far apply has to be for the history that the settings ask for. It has no state of its own.
type historyKeeper struct{ g *Group }

// History is the state of a group's history at a secondary.
type History struct {
	// Reaches is how far the oldest recovery point lies before now, by the primary's clock; nil where it is not known.
	Reaches *time.Duration
	// Bytes of the journal are kept as history and not applied.
	Bytes int64
	// Short: more was asked for, and is not there any more. A copy that is too young for its history is not short.
	Short bool
}

// asked is the history that the group keeps here: none but at a secondary whose copy is whole.
func (k *historyKeeper) asked() historyWish {
	g := k.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	if m.Role != core.RoleSecondary || !g.core.Whole() {
		return historyWish{}
	}
	return historyWish{time: time.Duration(m.HistoryMillis) * time.Millisecond, bytes: m.HistoryBytes,
		journalBytes: m.JournalSizeBytes}
}

// historyWish is what is asked for: at least the records of a time, and at least a number of bytes.
type historyWish struct {
	time                time.Duration
	bytes, journalBytes int64
}

func (h historyWish) kept() bool { return h.time > 0 || h.bytes > 0 }

// dueBefore is where apply has to be, if the journal has its durable end at end.
func (k *historyKeeper) dueBefore(asked historyWish, end journal.Position) (journal.Position, error) {
	g := k.g
	segments := g.journal.Segments()
	due := end
	if asked.time > 0 {
		from := g.checkpoint.read().Applied
		ordinal, err := g.points.lastBefore(k.primaryNanos()-int64(asked.time), from, g.journal.Durable())
		if err != nil {
			return due, err
		}
		at, ok, err := g.journal.PositionOf(ordinal)
		if err != nil {
			return due, err
		}
		if ok && at.Before(due) {
			due = at
		}
	}
	if asked.bytes > 0 {
		if at := newestBytes(segments, asked.bytes); at.Before(due) {
			due = at
		}
	}
	// Inside of a sync is no instant to go back to.
	if synced, _ := g.points.syncEnd.read(); due.Before(synced) {
		due = synced
	}
	if full := k.overSize(segments, asked.journalBytes); due.Before(full) {
		due = full
	}
	if end.Before(due) {
		due = end
	}
	return due, nil
}

// newestBytes is the begin of the newest segments that hold a number of bytes together.
func newestBytes(segments []journal.SegmentInfo, bytes int64) (at journal.Position) {
	for i := len(segments) - 1; i >= 0 && bytes > 0; i-- {
		bytes -= segments[i].Bytes
		at = segments[i].Begin
	}
	if bytes > 0 {
		return journal.Position{}
	}
	return at
}

// overSize is the end of the oldest segments that have to leave the journal to keep it within a size.
func (k *historyKeeper) overSize(segments []journal.SegmentInfo, size int64) (at journal.Position) {
	total := freeSegments * k.g.log.segBytes.Load()
	for _, s := range segments {
		total += s.FileBytes
	}
	for _, s := range segments {
		if total <= size || !s.Sealed {
			break
		}
		at = s.End
		total -= s.FileBytes
	}
	return at
}

// primaryNanos is the wall clock of the primary as far as it is known here.
func (k *historyKeeper) primaryNanos() int64 {
	now := k.g.cfg.Clock()
	if d, ok := k.g.difference.Estimate(now); ok {
		return now.WallNanos + d.Nanos
	}
	return now.WallNanos
}

// History returns the state of the group's history; nil where none is asked for.
func (g *Group) History() *History { return g.history.state() }

// state is Group.History.
func (k *historyKeeper) state() *History {
	g := k.g
	asked := k.asked()
	if !asked.kept() {
		return nil
	}
	applied := g.checkpoint.read().Applied
	h := &History{Bytes: g.log.unappliedBytes(applied)}
	at, oldest := g.points.oldest()
	now := k.primaryNanos()
	if oldest.UnixNanos != 0 {
		reaches := max(0, time.Duration(now-oldest.UnixNanos))
		h.Reaches = &reaches
	}
	if synced, _ := g.points.syncEnd.read(); at != synced { // else nothing was applied since the copy is whole
		h.Short = asked.time > 0 && h.Reaches != nil && *h.Reaches < asked.time || h.Bytes < asked.bytes
	}
	return h
}
