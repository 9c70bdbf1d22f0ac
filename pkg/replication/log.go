package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// groupLog is the group's journal as it is written: what is appended to it, indexed and made durable, by this site's
// writers (write.go) or from the link (receive.go).
type groupLog struct {
	g *Group
	// mu is held while ordinal, page cache and index move together.
	mu sync.Mutex
	// queued are records that have their place before whatever is appended next; guarded by mu.
	queued []journal.Entry
	// room wakes writers that wait for room in the journal.
	room broadcast
	// segBytes is the size of the journal's segments.
	segBytes atomic.Int64
}

// appendCopy is appendCopies for a record that belongs to no volume's content.
func (l *groupLog) appendCopy(ctx context.Context, h journal.Header, data []byte) error {
	return l.appendCopies(ctx, []*Volume{nil}, []journal.Entry{{Header: h, Data: data}})
}

// appendCopies is append for records that have their ordinals already, each with its volume. It waits for room: that
// holds up the link, and through it nothing but the link.
func (l *groupLog) appendCopies(ctx context.Context, volumes []*Volume, entries []journal.Entry) error {
	for {
		room := l.room.wait()
		n, err := l.tryAppendCopies(volumes, entries)
		volumes, entries = volumes[n:], entries[n:]
		if !errors.Is(err, journal.ErrFull) {
			return err
		}
		if err := l.commit(); err != nil { // only durable records can be applied
			return err
		}
		l.g.applier.work.send()
		patience := time.NewTimer(overflowPatience)
		err = nil
		select {
		case <-room:
		case <-patience.C:
			err = l.g.shard.overflow(ctx)
		case <-ctx.Done():
			err = errReplaced
		}
		patience.Stop()
		if err != nil {
			return err
		}
	}
}

func (l *groupLog) tryAppendCopies(volumes []*Volume, entries []journal.Entry) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := l.g.journal.AppendCopies(entries)
	for i, e := range entries[:n] {
		if volumes[i] != nil {
			volumes[i].indexRecord(e.Header, e.Loc)
		}
	}
	return n, err
}

// indexedEnd is the journal's durable end, with every record before it in the index. A record gets into the index a
// moment after it got into the journal, and in that moment a flush can make it durable. Apply would then take the
// record for one that it had applied already, and lose it.
func (l *groupLog) indexedEnd() journal.Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.g.journal.DurableEnd()
}

// instant returns where a cut is taken: the durable end of the journal, at which the group is at one instant; at the
// copy of a shard where that is shown. Both are looked at as one: a sync that begins puts its record into the journal
// after it has changed core.
func (l *groupLog) instant() (journal.Position, string, error) { return l.positionFor(l.instantLocked) }

// instantLocked is instant for a caller that holds mu and the group's mu.
func (l *groupLog) instantLocked() (journal.Position, string, error) {
	g := l.g
	if !g.core.Whole() {
		return journal.Position{}, "",
			fmt.Errorf("%w: group %s is in the middle of a sync at %s, so its volumes are not of one instant; wait until "+
				"the sync ends",
				core.ErrPrecondition, g.core.Meta.Name, g.core.Meta.Site)
	}
	if m := &g.core.Meta; m.Role == core.RoleSecondary && m.Shard.Group != "" {
		pos, _, err := g.shard.showPosition()
		return pos, m.Timeline(), err
	}
	return g.journal.DurableEnd(), g.core.Meta.Timeline(), nil
}

// positionFor looks at the journal and at core as one.
func (l *groupLog) positionFor(position func() (journal.Position, string, error)) (journal.Position, string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.g.mu.Lock()
	defer l.g.mu.Unlock()
	return position()
}

// durablePosition is where a whole copy is on stable storage, for preserveRequest.position.
func (l *groupLog) durablePosition() (journal.Position, string, error) {
	return l.g.journal.DurableEnd(), l.g.core.Meta.Timeline(), nil
}

// retained is the first ordinal that the journal still holds.
func (l *groupLog) retained() uint64 {
	if segments := l.g.journal.Segments(); len(segments) > 0 {
		return segments[0].FirstOrdinal
	}
	return l.g.journal.Head() + 1
}

// unappliedBytes is what the journal holds behind a place, in bytes.
func (l *groupLog) unappliedBytes(from journal.Position) (n int64) {
	for _, s := range l.g.journal.Segments() {
		switch {
		case from.Before(s.Begin):
			n += s.End.Offset - s.Begin.Offset
		case from.Segment == s.Sequence:
			n += max(0, s.End.Offset-from.Offset)
		}
	}
	return n
}

// maxRecordBytes is the most data that one record of the group carries.
func (l *groupLog) maxRecordBytes() int64 { return min(maxWriteBytes, l.segBytes.Load()/4) }
