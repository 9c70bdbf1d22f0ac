package replication

import (
	"fmt"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A recovery point is an ordinal that a view can be opened at: image + records up to there. It is not before what the
// images may have (reach), not before the end of the last sync, inside of which there is no instant of the primary, and
// not behind what is durable.

// mark is a place in the journal that only moves on. The zero value is before everything.
type mark struct {
	mu      sync.Mutex
	pos     journal.Position
	ordinal uint64
	// unixNanos is when the record with the ordinal was written; 0 where it is not known.
	unixNanos int64
	// settled is the last point whose time was known.
	settled RecoveryPoint
}

// extend moves the mark to a place, unless it is there already. The ordinal may be higher than that of the place.
func (m *mark) extend(pos journal.Position, ordinal uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pos.Before(pos) {
		m.pos, m.ordinal, m.unixNanos = pos, ordinal, 0
	}
}

// settle gives the mark the ordinal and the time of its place, if it is not further on. A time of 0 is not known,
// unless the ordinal is that of the last time.
func (m *mark) settle(pos journal.Position, ordinal uint64, unixNanos int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if unixNanos != 0 {
		m.settled = RecoveryPoint{Ordinal: ordinal, UnixNanos: unixNanos}
	}
	if !pos.Before(m.pos) {
		m.ordinal, m.unixNanos = ordinal, unixNanos
		if m.settled.Ordinal == ordinal {
			m.unixNanos = m.settled.UnixNanos
		}
	}
}

func (m *mark) read() (pos journal.Position, at RecoveryPoint) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pos, RecoveryPoint{Ordinal: m.ordinal, UnixNanos: m.unixNanos}
}

// extendReach notes how far the images may be from now on. Where history is kept it is durable: after a crash the
// points between that and the end of the journal are still there. The caller holds applyMu.
func (g *Group) extendReach(limit journal.Position) error {
	g.reach.extend(limit, g.journal.Durable())
	keeps := g.historyAsked().kept()
	return g.checkpoint.change(func(c *checkpoint) {
		switch {
		case !keeps:
			c.Reach = journal.Position{}
		case c.Reach.Before(limit):
			c.Reach = limit
		}
	})
}

// recallReach takes up how far the images may be: what the checkpoint says, or all that there is.
func (g *Group) recallReach() {
	last := g.checkpoint.read()
	if last.Reach == (journal.Position{}) {
		g.reach.extend(g.journal.End(), g.journal.Head())
		return
	}
	g.reach.extend(last.Applied, last.AppliedOrdinal)
	if h, ok, err := g.journal.HeaderOf(last.AppliedOrdinal); err == nil && ok {
		g.reach.settle(last.Applied, last.AppliedOrdinal, h.UnixNanos)
	}
	g.reach.extend(last.Reach, g.journal.Head())
}

// RecoveryPoint is an ordinal that a view can be opened at.
type RecoveryPoint struct {
	Ordinal uint64
	// UnixNanos is when the write with this ordinal happened, by the wall clock of its site; 0 where it is not known.
	UnixNanos int64
}

// String names the point for people.
func (p RecoveryPoint) String() string {
	if p.UnixNanos == 0 {
		return fmt.Sprint(p.Ordinal)
	}
	return fmt.Sprintf("%d (%s)", p.Ordinal, time.Unix(0, p.UnixNanos).UTC().Format(time.RFC3339Nano))
}

// Point chooses a recovery point: at most one of its fields is set. The zero value is the newest one.
type Point struct {
	Ordinal uint64
	// At: the state at that time, by the wall clock of the primary.
	At time.Time
	// Bookmark: the state that was named with this label.
	Bookmark string
}

func (p Point) choices() (n int) {
	for _, given := range []bool{p.Ordinal != 0, !p.At.IsZero(), p.Bookmark != ""} {
		if given {
			n++
		}
	}
	return n
}

// located is a recovery point that was found.
type located struct {
	RecoveryPoint
	Timeline string
	end      journal.Position // behind the last record that it shows
}

// Points are the bounds of a group's recovery points, and the bookmarks that are known. Those before Oldest are gone
// here.
type Points struct {
	Oldest, Newest RecoveryPoint
	Bookmarks      []core.Bookmark
}

// Points returns the recovery points that the group has at this instant. core.ErrPrecondition: none, in the middle of a
// sync.
func (g *Group) Points() (Points, error) {
	newest, err := g.newest()
	if err != nil {
		return Points{}, err
	}
	_, oldest := g.oldest()
	// Until a pass of apply that was interrupted is repeated, its end is known as no more than a bound.
	oldest.Ordinal = min(oldest.Ordinal, newest.Ordinal)
	return Points{Oldest: g.dated(oldest), Newest: g.dated(newest.RecoveryPoint), Bookmarks: g.Bookmarks()}, nil
}

// newest is what is durable, where that is one instant.
func (g *Group) newest() (located, error) {
	for {
		limit, timeline, err := g.cutPosition()
		if err != nil {
			return located{}, err
		}
		ordinal := g.journal.Durable()
		if g.journal.DurableEnd() == limit { // else more has become durable between the two
			return located{RecoveryPoint: RecoveryPoint{Ordinal: ordinal}, Timeline: timeline, end: limit}, nil
		}
	}
}

// oldest is the first ordinal that a view can be opened at, and its place.
func (g *Group) oldest() (journal.Position, RecoveryPoint) {
	pos, at := g.reach.read()
	if synced, end := g.syncEnd.read(); pos.Before(synced) {
		return synced, end
	}
	return pos, at
}

// dated adds the time of a point, if the journal has its record.
func (g *Group) dated(p RecoveryPoint) RecoveryPoint {
	if p.UnixNanos == 0 {
		if h, ok, err := g.journal.HeaderOf(p.Ordinal); err == nil && ok {
			p.UnixNanos = h.UnixNanos
		}
	}
	return p
}

// locate finds a recovery point. The caller holds applyMu, and has made durable what the newest one is to show.
func (g *Group) locate(p Point) (located, error) {
	newest, err := g.newest()
	if err != nil {
		return located{}, err
	}
	at := newest
	switch {
	case p.choices() > 1:
		return located{}, fmt.Errorf("%w: group %s: a point is chosen by one of ordinal, time and bookmark", ErrInvalid,
			g.Name())
	case p.Bookmark != "":
		if at.Ordinal, err = g.bookmarkOrdinal(p.Bookmark); err != nil {
			return located{}, err
		}
	case !p.At.IsZero():
		if at.Ordinal, err = g.ordinalAt(p.At, newest); err != nil {
			return located{}, err
		}
	case p.Ordinal != 0:
		at.Ordinal = p.Ordinal
	}
	oldest, first := g.oldest()
	missing := func() error {
		return fmt.Errorf("%w: group %s has no recovery point at ordinal %d here; the oldest is %v, the newest %v; see "+
			"slipctl group points %[2]s", core.ErrPrecondition, g.Name(), at.Ordinal, g.dated(first),
			g.dated(newest.RecoveryPoint))
	}
	if at.Ordinal > newest.Ordinal {
		return located{}, missing()
	}
	if at.Ordinal < newest.Ordinal {
		pos, ok, err := g.journal.PositionOf(at.Ordinal)
		if err != nil {
			return located{}, err
		}
		if !ok || pos.Before(oldest) {
			return located{}, missing()
		}
		at.end = pos
	}
	at.RecoveryPoint = g.dated(at.RecoveryPoint)
	return at, nil
}

// ordinalAt is the last ordinal before the first record that was written after a time. Where the wall clock was set
// back it is the earlier one of the candidates.
func (g *Group) ordinalAt(t time.Time, newest located) (uint64, error) {
	oldest, first := g.oldest()
	first = g.dated(first)
	ordinal, err := g.lastBefore(t.UnixNano(), oldest, newest.Ordinal)
	if err != nil {
		return 0, fmt.Errorf("group %s: look for the records of %v: %w", g.Name(), t, err)
	}
	if first.UnixNanos > t.UnixNano() || first.UnixNanos == 0 && ordinal <= first.Ordinal {
		return 0, fmt.Errorf("%w: group %s has no recovery point of %s here; the oldest is %v; see slipctl group points "+
			"%[2]s", core.ErrPrecondition, g.Name(), t.UTC().Format(time.RFC3339Nano), first)
	}
	return ordinal, nil
}

// lastBefore is the ordinal before the first record behind a place that was written after a time; newest without one.
func (g *Group) lastBefore(nanos int64, place journal.Position, newest uint64) (uint64, error) {
	from, err := g.scanFrom(place, nanos)
	if err != nil {
		return 0, err
	}
	cursor := g.journal.NewCursor(from)
	defer cursor.Close()
	for {
		records, err := cursor.Next(applyChunkBytes)
		if err != nil {
			return 0, err
		}
		for i := range records {
			h := &records[i].Header
			switch {
			case h.Ordinal > newest:
				return newest, nil
			case h.Kind.TakesOrdinal() && h.UnixNanos > nanos:
				return h.Ordinal - 1, nil
			}
		}
		if len(records) == 0 {
			return newest, nil
		}
	}
}

// scanFrom skips the segments that have no record after a time, as far as their successors' first records tell.
func (g *Group) scanFrom(from journal.Position, nanos int64) (journal.Position, error) {
	for _, s := range g.journal.Segments() {
		if !from.Before(s.Begin) {
			continue
		}
		cursor := g.journal.NewCursor(s.Begin)
		records, err := cursor.Next(1)
		if err != nil {
			return from, err
		}
		late := len(records) == 0 || records[0].Header.UnixNanos > nanos
		cursor.Close()
		if late {
			break
		}
		from = s.Begin
	}
	return from, nil
}
