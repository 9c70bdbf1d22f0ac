package replication

import (
	"fmt"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// A recovery point is an ordinal that a view can be opened at: image + records up to there. It is not before what the
// images may have (reach), not before the end of the last sync, inside of which there is no instant of the primary, and
// not behind what is durable.

// recoveryPoints says at which ordinals a view of the group can be. Its methods are safe for concurrent use.
type recoveryPoints struct {
	g *Group
	// reach is how far the images may be, syncEnd where the last sync ended.
	reach, syncEnd mark
}

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

// setOrdinal gives the mark the ordinal and the time of its place, if it is not further on. A time of 0 is not known,
// unless the ordinal is that of the last time.
func (m *mark) setOrdinal(pos journal.Position, ordinal uint64, unixNanos int64) {
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

// extend notes how far the images may be from now on. Where points of the past are offered it is durable: after a crash
// the points between that and the end of the journal are still there. The caller holds applier.mu.
func (r *recoveryPoints) extend(limit journal.Position) error {
	r.reach.extend(limit, r.g.journal.Durable())
	offered := r.offered()
	return r.g.checkpoint.change(func(c *checkpoint) {
		switch {
		case !offered:
			c.Reach = journal.Position{}
		case c.Reach.Before(limit):
			c.Reach = limit
		}
	})
}

// hold makes durable how far the images may be, if points of the past are offered since the last pass of apply. Else a
// restart before the next pass, which comes when the oldest record is too old, could not tell, and would offer none of
// them. The caller holds applier.mu.
func (r *recoveryPoints) hold() error {
	if !r.offered() {
		return nil
	}
	pos, _ := r.reach.read()
	return r.g.checkpoint.change(func(c *checkpoint) {
		if c.Reach != (journal.Position{}) {
			return
		}
		if c.Reach = pos; pos.Before(c.Applied) {
			c.Reach = c.Applied
		}
	})
}

// offered reports whether the group can be opened at points before the newest one after a restart.
func (r *recoveryPoints) offered() bool { return r.g.history.asked().kept() || r.g.shard.isCopy() }

// recall takes up how far the images may be: what the checkpoint says, or all that there is.
func (r *recoveryPoints) recall() {
	g := r.g
	last := g.checkpoint.read()
	if last.Reach == (journal.Position{}) {
		r.reach.extend(g.journal.End(), g.journal.Head())
		return
	}
	at := RecoveryPoint{Ordinal: last.AppliedOrdinal}
	if at = r.dated(at); at.UnixNanos == 0 && last.Dated.Ordinal == at.Ordinal {
		at = last.Dated // its record has left the journal
	}
	r.reach.extend(last.Applied, at.Ordinal)
	r.reach.setOrdinal(last.Applied, at.Ordinal, at.UnixNanos)
	r.reach.extend(last.Reach, g.journal.Head())
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
	// Epoch: the boundary of an epoch that is complete, of a shard.
	Epoch epoch.ID
}

func (p Point) choices() (n int) {
	for _, given := range []bool{p.Ordinal != 0, !p.At.IsZero(), p.Bookmark != "", !p.Epoch.IsZero()} {
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
func (g *Group) Points() (Points, error) { return g.points.bounds() }

// bounds is Group.Points.
func (r *recoveryPoints) bounds() (Points, error) {
	newest, err := r.newest()
	if err != nil {
		return Points{}, err
	}
	_, oldest := r.oldest()
	// Until a pass of apply that was interrupted is repeated, its end is known as no more than a bound.
	oldest.Ordinal = min(oldest.Ordinal, newest.Ordinal)
	return Points{Oldest: r.dated(oldest), Newest: r.dated(newest.RecoveryPoint), Bookmarks: r.g.Bookmarks()}, nil
}

// newest is what is durable, where that is one instant; at the copy of a shard what its group can be shown at.
func (r *recoveryPoints) newest() (located, error) {
	g := r.g
	if g.shard.isCopy() {
		var ordinal uint64
		limit, timeline, err := g.log.positionFor(func() (_ journal.Position, _ string, err error) {
			pos, timeline, err := g.log.instantLocked()
			if err == nil {
				_, ordinal, err = g.shard.showPosition()
			}
			return pos, timeline, err
		})
		return located{RecoveryPoint: RecoveryPoint{Ordinal: ordinal}, Timeline: timeline, end: limit}, err
	}
	for {
		limit, timeline, err := g.log.instant()
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
func (r *recoveryPoints) oldest() (journal.Position, RecoveryPoint) {
	pos, at := r.reach.read()
	if synced, end := r.syncEnd.read(); pos.Before(synced) {
		return synced, end
	}
	return pos, at
}

// dated adds the time of a point, if the journal has its record.
func (r *recoveryPoints) dated(p RecoveryPoint) RecoveryPoint {
	if p.UnixNanos == 0 {
		if h, ok, err := r.g.journal.HeaderOf(p.Ordinal); err == nil && ok {
			p.UnixNanos = h.UnixNanos
		}
	}
	return p
}

// locate finds a recovery point. The caller holds applier.mu, and has made durable what the newest one is to show.
func (r *recoveryPoints) locate(p Point) (located, error) {
	g := r.g
	newest, err := r.newest()
	if err != nil {
		return located{}, err
	}
	at := newest
	switch {
	case p.choices() > 1:
		return located{}, fmt.Errorf("%w: group %s: a point is chosen by one of ordinal, time, bookmark and epoch",
			ErrInvalid, g.Name())
	case p.Bookmark != "":
		b, err := g.bookmarks.find(p.Bookmark)
		if err != nil {
			return located{}, err
		}
		at.Ordinal = b.Ordinal
	case !p.At.IsZero():
		if at.Ordinal, err = r.ordinalAt(p.At, newest); err != nil {
			return located{}, err
		}
	case p.Ordinal != 0:
		at.Ordinal = p.Ordinal
	case !p.Epoch.IsZero():
		if at.Ordinal, err = g.shard.boundaryOf(p.Epoch); err != nil {
			return located{}, err
		}
	}
	oldest, first := r.oldest()
	missing := func() error {
		return fmt.Errorf("%w: group %s has no recovery point at ordinal %d here; the oldest is %v, the newest %v; see "+
			"slipctl group points %[2]s", core.ErrPrecondition, g.Name(), at.Ordinal, r.dated(first),
			r.dated(newest.RecoveryPoint))
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
	at.RecoveryPoint = r.dated(at.RecoveryPoint)
	return at, nil
}

// ordinalAt is the last ordinal before the first record that was written after a time. Where the wall clock was set
// back it is the earlier one of the candidates.
func (r *recoveryPoints) ordinalAt(t time.Time, newest located) (uint64, error) {
	oldest, first := r.oldest()
	first = r.dated(first)
	ordinal, err := r.lastBefore(t.UnixNano(), oldest, newest.Ordinal)
	if err != nil {
		return 0, fmt.Errorf("group %s: look for the records of %v: %w", r.g.Name(), t, err)
	}
	if first.UnixNanos > t.UnixNano() || first.UnixNanos == 0 && ordinal <= first.Ordinal {
		return 0, fmt.Errorf("%w: group %s has no recovery point of %s here; the oldest is %v; see slipctl group points "+
			"%[2]s", core.ErrPrecondition, r.g.Name(), t.UTC().Format(time.RFC3339Nano), first)
	}
	return ordinal, nil
}

// lastBefore is the ordinal before the first record behind a place that was written after a time; newest without one.
func (r *recoveryPoints) lastBefore(nanos int64, place journal.Position, newest uint64) (uint64, error) {
	from, err := r.scanFrom(place, nanos)
	if err != nil {
		return 0, err
	}
	cursor := r.g.journal.NewCursor(from)
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
func (r *recoveryPoints) scanFrom(from journal.Position, nanos int64) (journal.Position, error) {
	for _, s := range r.g.journal.Segments() {
		if !from.Before(s.Begin) {
			continue
		}
		cursor := r.g.journal.NewCursor(s.Begin)
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
