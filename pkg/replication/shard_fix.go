package replication

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// All shards of a group are opened or cut at one epoch. They do not reach it at the same time, so each is asked first
// to apply nothing further for a while. Then an epoch is chosen that all of them have, and each is opened there.
//
// A fixed shard stalls no writer: it goes on when its journal needs the room, or when the one that asked is not heard
// of for fixLease. It cannot be opened at the epoch then, and says so. Nothing of this is durable.

const (
	// fixLease is how long a shard stays fixed without another call.
	fixLease = 30 * time.Second
	// fixPoll is the time between two looks at whether a copy has heard that an epoch is complete.
	fixPoll = 10 * time.Millisecond
	// fixPatience is how long a copy waits for that: a few rounds of the collector.
	fixPatience = 2 * time.Second
)

// epochFixes are those who want the shard to stay openable, by the numbers that they gave.
type epochFixes struct {
	mu   sync.Mutex
	list map[epoch.Life]epochFix
}

type epochFix struct {
	limit journal.Position
	until time.Time
}

// set fixes a place, or moves it on.
func (f *epochFixes) set(holder epoch.Life, limit journal.Position, until time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list == nil {
		f.list = map[epoch.Life]epochFix{}
	}
	f.list[holder] = epochFix{limit, until}
}

// drop ends what a caller asked for.
func (f *epochFixes) drop(holder epoch.Life) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.list, holder)
}

// dropAll ends what all callers asked for.
func (f *epochFixes) dropAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = nil
}

// lowest is the first place that is fixed now.
func (f *epochFixes) lowest(now time.Time) (limit journal.Position, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for holder, fix := range f.list {
		switch {
		case now.After(fix.until):
			delete(f.list, holder)
		case !ok || fix.limit.Before(limit):
			limit, ok = fix.limit, true
		}
	}
	return limit, ok
}

// FixEpoch has the shard apply nothing past an epoch for fixLease, so that it can be opened and cut there; with the
// zero epoch, nothing past what its images have now. It returns the marks of the epochs that it can be opened at,
// ascending. holder names the caller in later calls, which may name later epochs.
//
// Errors: core.ErrNotYet if the shard cannot be opened there yet, core.ErrPrecondition if it cannot any more, or is in
// the middle of a sync.
func (s *Shard) FixEpoch(ctx context.Context, holder epoch.Life, at epoch.ID) ([]epoch.Mark, error) {
	if holder == 0 {
		return nil, fmt.Errorf("%w: group %s: the epoch is fixed for a caller without a number", ErrInvalid, s.g.Name())
	}
	if !at.IsZero() {
		if err := s.waitShown(ctx, at); err != nil {
			return nil, err
		}
	}
	if err := s.g.log.commit(); err != nil {
		return nil, err
	}
	s.g.applier.mu.Lock()
	defer s.g.applier.mu.Unlock()
	if _, _, err := s.g.log.positionFor(s.wholePosition); err != nil {
		return nil, err
	}
	if at.IsZero() {
		limit, _ := s.g.points.oldest()
		s.fixes.set(holder, limit, s.g.cfg.Now().Add(fixLease))
		return s.openable()
	}
	marks, err := s.openable()
	if err != nil {
		return nil, err
	}
	i, ok := epoch.FindMark(marks, at)
	if !ok {
		return nil, s.notOpenable(at, marks)
	}
	limit, _, err := s.endOf(marks[i].Boundary)
	if err != nil {
		return nil, err
	}
	s.fixes.set(holder, limit, s.g.cfg.Now().Add(fixLease))
	return marks, nil
}

// ReleaseEpoch ends what FixEpoch began for a caller. It may be repeated.
func (s *Shard) ReleaseEpoch(holder epoch.Life) {
	s.fixes.drop(holder)
	s.g.applier.work.send()
}

// unfix has the shard go on, because its journal needs the room.
func (s *Shard) unfix() { s.fixes.dropAll() }

// forgetMarks drops those before an epoch, unless a caller may still open the shard there.
func (s *Shard) forgetMarks(before epoch.ID) {
	if _, fixed := s.fixes.lowest(s.g.cfg.Now()); !fixed {
		s.marks.forget(before)
	}
}

// fixedLimit is how far apply goes at most, up to a place.
func (s *Shard) fixedLimit(limit journal.Position) journal.Position {
	if at, ok := s.fixes.lowest(s.g.cfg.Now()); ok && at.Before(limit) {
		return at
	}
	return limit
}

// waitShown waits until a copy has heard that an epoch is complete. Shards that are no copies have nothing to wait for.
func (s *Shard) waitShown(ctx context.Context, at epoch.ID) error {
	for began := time.Now(); ; {
		shown := s.shown.Load()
		if !s.isCopy() || shown != nil && !shown.Epoch.Before(at) {
			return nil
		}
		if time.Since(began) > fixPatience {
			return fmt.Errorf("%w: the copy of group %s has not heard that epoch %d is complete", core.ErrNotYet, s.g.Name(),
				at.Number)
		}
		if !pause.For(ctx, fixPoll) {
			return ctx.Err()
		}
	}
}

// wholePosition is an error in the middle of a sync, for positionFor.
func (s *Shard) wholePosition() (journal.Position, string, error) {
	if g := s.g; !g.core.Whole() {
		return g.log.instantLocked()
	}
	return journal.Position{}, "", nil
}

// openable are the marks that the shard can be opened at if they are complete. The caller holds applier.mu.
func (s *Shard) openable() (list []epoch.Mark, err error) {
	durable := s.g.journal.Durable()
	for _, m := range s.marks.all() {
		if m.ordinal > durable {
			break
		}
		_, ok, err := s.endOf(m.Boundary)
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, m.Mark)
		}
	}
	// Of a primary the newest ones matter. Copies show nearly the same epoch, but one may have marks minutes ahead of
	// another's.
	from := max(0, len(list)-epoch.MaxReportMarks)
	if shown := s.Progress().Shown; !shown.IsZero() {
		at, _ := epoch.FindMark(list, shown)
		from = min(from, at)
	}
	return list[from:min(len(list), from+epoch.MaxReportMarks)], nil
}

// notOpenable says why a shard cannot be opened at an epoch.
func (s *Shard) notOpenable(at epoch.ID, marks []epoch.Mark) error {
	oldest, newest := "none", "none"
	if n := len(marks); n > 0 {
		oldest, newest = fmt.Sprint(marks[0].Epoch.Number), fmt.Sprint(marks[n-1].Epoch.Number)
	}
	kind, when := core.ErrPrecondition, "any more"
	if last := s.marks.last(); last.Before(at) {
		kind, when = core.ErrNotYet, "yet"
	}
	return fmt.Errorf("%w: group %s cannot be opened at epoch %d %s; the first that it can be opened at is %s, the "+
		"last %s", kind, s.g.Name(), at.Number, when, oldest, newest)
}

// cutPosition is the place of an epoch that the shard can be cut at. The caller holds applier.mu. A lower place that is
// kept for another caller is respected: a cut brings the images up to its own.
func (s *Shard) cutPosition(at epoch.ID) (journal.Position, error) {
	boundary, err := s.boundaryOf(at)
	if err != nil {
		return journal.Position{}, err
	}
	pos, _, err := s.endOf(boundary)
	if err != nil {
		return pos, err
	}
	if s.fixedLimit(pos).Before(pos) {
		return pos, fmt.Errorf("%w: group %s is kept at an earlier epoch than %d by another call; repeat this one",
			core.ErrNotYet, s.g.Name(), at.Number)
	}
	return pos, nil
}

// boundaryOf is the boundary of an epoch that the shard can be opened at. The caller holds applier.mu.
func (s *Shard) boundaryOf(at epoch.ID) (uint64, error) {
	marks, err := s.openable()
	if err != nil {
		return 0, err
	}
	for _, m := range marks {
		if m.Epoch == at {
			return m.Boundary, nil
		}
	}
	return 0, s.notOpenable(at, marks)
}

// Bookmark names an epoch that the shard is kept at, as Group.Bookmark names the present. The caller does it at all
// shards, under one label. A bookmark of this label and another epoch is replaced: a call was interrupted.
func (s *Shard) Bookmark(label string, at epoch.ID) error {
	s.g.applier.mu.Lock()
	boundary, err := s.boundaryOf(at)
	s.g.applier.mu.Unlock()
	if err != nil {
		return err
	}
	point := s.g.points.dated(RecoveryPoint{Ordinal: boundary})
	if point.UnixNanos == 0 {
		point.UnixNanos = s.g.cfg.Now().UnixNano()
	}
	_, err = s.g.bookmarks.set(bookmarkRecord{Label: label, Ordinal: boundary, UnixNanos: point.UnixNanos,
		Epoch: at.String()})
	return err
}

// BookmarkOf returns a bookmark of the shard, or ErrNotFound.
func (s *Shard) BookmarkOf(label string) (core.Bookmark, error) { return s.g.bookmarks.find(label) }
