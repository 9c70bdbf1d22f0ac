package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// The copy of a shard shows the boundary of an epoch that is complete at this site. Which one that is, package epoch
// finds out together with the copies of the other shards.
//
//	apply    goes up to the boundary of the shown epoch; what lies behind stays in the journal
//	cut      snapshots, and the newest recovery point, are at that boundary
//	keep     where something needs more of the journal in the images (a sync, a change of members, a comparison, a full
//	         journal), the images are kept as they were at the boundary: core.Base, as in resync_base.go
//	promote  the group becomes what it was at the boundary of the decided epoch, by way of rollback.go; what lies behind
//	         is the loss

const (
	// overflowPatience is how long a shard waits for its group's next epoch when its journal is full.
	overflowPatience = 2 * time.Second
	// settlePatience is how long a sync waits for the copies of the other shards to agree on the epoch before it.
	settlePatience = 15 * time.Second
)

// copyOf is what a copy is, read at one instant.
type copyOf struct {
	copy, whole, rollsBack bool
	base                   *core.Base
	epochs                 core.Epochs
	id                     epoch.ShardID
}

func (s *Shard) copyOf() copyOf {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	m := &s.g.core.Meta
	c := copyOf{copy: m.Role == core.RoleSecondary && m.Shard.Group != "", whole: m.Copy == core.CopyWhole,
		rollsBack: m.Copy == core.CopyRollingBack, base: m.Base, id: m.Shard.ID}
	if m.Epochs != nil {
		c.epochs = *m.Epochs
		c.epochs.Decision = c.epochs.Decision.Of(c.id)
	}
	return c
}

// isCopy reports whether the group is the copy of a shard.
func (s *Shard) isCopy() bool { return s.copyOf().copy }

// endOf is the place in the journal of a boundary; false if the images may be past it.
func (s *Shard) endOf(boundary uint64) (journal.Position, bool, error) {
	pos, ok, err := s.g.journal.PositionOf(boundary)
	if errors.Is(err, journal.ErrOutOfOrder) { // of another timeline
		return pos, false, nil
	}
	oldest, _ := s.g.points.oldest()
	return pos, ok && !pos.Before(oldest), err
}

// ensureCopy makes the state machine of a copy, from what is on disk. The caller holds mu.
func (s *Shard) ensureCopy() error {
	c := s.copyOf()
	if !c.copy {
		s.copy = nil
		return fmt.Errorf("%w: group %s is not the copy of a shard", ErrNoShard, s.g.Name())
	}
	if s.copy != nil {
		return nil
	}
	start, err := s.copyStart(c)
	if err != nil {
		return err
	}
	s.release()
	s.primary, s.copy = nil, epoch.NewCopy(c.id, NewLife(uuid.New()), start)
	s.showLocked()
	return nil
}

// showLocked puts into effect what the state machine shows.
func (s *Shard) showLocked() {
	s.shown.Store(nil)
	if m, ok := s.copy.Shown(); ok {
		s.shown.Store(&m)
	}
}

func (s *Shard) copyStart(c copyOf) (epoch.CopyStart, error) {
	g := s.g
	durable := g.journal.Durable()
	s.marks.pass(durable)
	start := epoch.CopyStart{Decision: c.epochs.Decision, Syncing: !c.whole}
	if c.base != nil && c.base.Epoch != nil {
		start.Base = c.base.Epoch
	}
	if !c.whole {
		return start, nil
	}
	_, syncEnd := g.points.syncEnd.read()
	ungranted := max(c.epochs.Since, syncEnd.Ordinal)
	if start.Base == nil {
		if applied := g.checkpoint.read().AppliedOrdinal; applied > ungranted {
			start.Applied = applied
		} else {
			start.WholeFrom = ungranted
		}
	} else {
		_, oldest := g.points.oldest()
		start.WholeFrom = max(ungranted, oldest.Ordinal)
	}
	for _, m := range s.marks.all() {
		if m.ordinal > durable || m.Boundary < start.WholeFrom || m.Boundary < start.Applied {
			continue
		}
		_, ok, err := s.endOf(m.Boundary)
		if err != nil {
			return start, err
		}
		if ok && (len(start.Marks) == 0 || start.Marks[len(start.Marks)-1].Epoch.Before(m.Epoch)) {
			start.Marks = append(start.Marks, m.Mark)
		}
	}
	return start, nil
}

// stepCopy has the copy decide and carries out the effects. The caller holds mu.
func (s *Shard) stepCopy(e epoch.CopyEvent) (answer epoch.Message, err error) {
	if err := s.ensureCopy(); err != nil {
		return nil, err
	}
	for _, m := range s.marks.pass(s.g.journal.Durable()) {
		s.copy.Step(epoch.MarkDurable{Mark: m}) // no effects
		if err := s.keepConfig(m.Config); err != nil {
			return nil, err
		}
	}
	for _, effect := range s.copy.Step(e) {
		switch effect := effect.(type) {
		case epoch.Show:
			err = s.show(effect.Mark)
		case epoch.BeginSync:
			if s.begins != nil {
				s.begins <- effect
				s.begins = nil
			}
		case epoch.PersistDecision:
			err = s.keepEpochs(func(kept *core.Epochs) { kept.Decision = &effect.Decision })
		case epoch.Promote:
			s.startPromotion(effect.Mark)
		case epoch.Reply:
			answer = effect.Message
		}
		if err != nil {
			s.copy = nil // made anew from what is on disk
			return nil, err
		}
	}
	return answer, nil
}

// show lets the copy apply up to a boundary. What it was before is not needed any more.
func (s *Shard) show(m epoch.Mark) error {
	g := s.g
	if err := s.endSeparate(); err != nil {
		return err
	}
	s.shown.Store(&m)
	s.forgetMarks(m.Epoch)
	if base := s.copyOf().base; base != nil && base.Epoch != nil && base.Epoch.Epoch.Before(m.Epoch) {
		if _, err := g.step(core.EpochPassed{}, nil); err != nil {
			return err
		}
		g.resync.syncEnded(base)
	}
	g.applier.work.send()
	return nil
}

// applyLimit is how far a pass of apply goes that nothing asked for, at most up to a place. The caller holds
// applier.mu.
func (s *Shard) applyLimit(end journal.Position) (journal.Position, error) {
	c := s.copyOf()
	if c.rollsBack {
		return s.g.checkpoint.read().Applied, nil
	}
	if !c.copy || !c.whole {
		return end, nil
	}
	limit, _ := s.g.points.oldest()
	if shown := s.shown.Load(); shown != nil {
		pos, ok, err := s.endOf(shown.Boundary)
		if err != nil {
			return limit, err
		}
		if ok {
			limit = pos
		}
	}
	if end.Before(limit) {
		limit = end
	}
	return limit, nil
}

// mayApply reports whether the images may have an ordinal: in a copy, not before a complete epoch has it.
func (s *Shard) mayApply(ordinal uint64) bool {
	shown := s.shown.Load()
	return !s.isCopy() || shown != nil && ordinal <= shown.Boundary
}

// showPosition is where a copy is shown: the place and the ordinal. The caller may hold log.mu and the group's mu.
func (s *Shard) showPosition() (journal.Position, uint64, error) {
	shown := s.shown.Load()
	var pos journal.Position
	var ok bool
	var err error
	if shown != nil {
		pos, ok, err = s.endOf(shown.Boundary)
	}
	if err == nil && !ok {
		err = fmt.Errorf("%w: group %s is the copy of a shard, and there is no complete epoch that it can be shown at; wait "+
			"for the next one, which needs the copies of all shards (slipctl group status %[2]s)", core.ErrPrecondition,
			s.g.Name())
	}
	if err != nil {
		return pos, 0, err
	}
	return pos, shown.Boundary, nil
}

// baseFor is the base at the boundary of an epoch.
func (s *Shard) baseFor(mark epoch.Mark, set string, unixNanos int64) (*core.Base, error) {
	g := s.g
	tail, err := g.tail(mark.Boundary)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	return &core.Base{
		Set: set, Ordinal: mark.Boundary, UnixNanos: unixNanos, Timelines: slices.Clone(m.Timelines), Tail: tail,
		Horizon: g.checkpoint.horizon.Load(), Members: slices.Clone(m.Members), Epoch: &mark,
	}, nil
}

// beginSync waits until the copies of the other shards agree on the epoch that this one goes back to if it has to, and
// keeps the images as they are there. Nil: there is none, or it is kept already. The marks past that epoch count no
// more, also where an earlier base is kept: the images go past them.
func (s *Shard) beginSync(ctx context.Context) (*core.Base, error) {
	begin, err := s.settle(ctx)
	if err != nil || !begin.OK || s.copyOf().base != nil {
		return nil, err
	}
	timeline := func() (journal.Position, string, error) {
		pos, ok, err := s.endOf(begin.Base.Boundary)
		if err == nil && !ok {
			err = fmt.Errorf("group %s: the images are past the boundary %d of epoch %s", s.g.Name(), begin.Base.Boundary,
				begin.Base.Epoch)
		}
		return pos, s.g.core.Meta.Timeline(), err
	}
	p, err := s.g.preserved.take(ctx, preserveRequest{owner: ownerResync, full: preserveOrWait, position: timeline})
	if err != nil {
		s.anew()
		return nil, fmt.Errorf("keep the copy as it is at epoch %s: %w", begin.Base.Epoch, err)
	}
	return s.baseFor(begin.Base, p.record.ID, p.record.UnixNanos)
}

// anew makes the state machine of the copy anew from what is on disk.
func (s *Shard) anew() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copy = nil
	_ = s.ensureCopy() // the next message says why not
}

func (s *Shard) settle(ctx context.Context) (epoch.BeginSync, error) {
	begins := make(chan epoch.BeginSync, 1)
	s.mu.Lock()
	s.begins = begins
	_, err := s.stepCopy(epoch.SyncWanted{})
	s.mu.Unlock()
	if err != nil {
		return epoch.BeginSync{}, err
	}
	patience := time.NewTimer(settlePatience)
	defer patience.Stop()
	select {
	case b := <-begins:
		return b, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-patience.C:
		err = fmt.Errorf("group %s: not all copies of the other shards could be asked for the last complete epoch, or the "+
			"group went on without this shard; see that the replicators of all nodes of this site run and reach each other, "+
			"and that the shard was not removed", s.g.Name())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begins = nil
	select {
	case b := <-begins: // meanwhile
		return b, nil
	default:
	}
	if _, stepErr := s.stepCopy(epoch.SyncCancelled{}); stepErr != nil {
		err = errors.Join(err, stepErr)
	}
	return epoch.BeginSync{}, err
}

// pastEpoch is called before more of the journal than the shown epoch has to be in the images. The copy goes on from
// behind what is durable when done is called.
func (s *Shard) pastEpoch(ctx context.Context) (done func(), err error) {
	if c := s.copyOf(); !c.copy || !c.whole {
		return func() {}, nil
	}
	base, err := s.beginSync(ctx)
	if err == nil && base != nil {
		_, err = s.g.step(core.EpochKept{Base: base}, nil)
		err = errors.Join(err, s.g.resync.dropOthers())
	}
	if err != nil {
		s.anew()
		return nil, err
	}
	return s.anew, nil
}

// overflow makes room in a journal that is full of what no epoch covers.
func (s *Shard) overflow(ctx context.Context) error {
	if c := s.copyOf(); !c.copy || !c.whole {
		return nil
	}
	done, err := s.pastEpoch(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := s.g.applier.apply(ctx); err != nil {
		return err
	}
	s.g.trimmer.work.send()
	return nil
}

// syncEnded is called when the end of a sync is durable.
func (s *Shard) syncEnded(ordinal uint64) error {
	if !s.isCopy() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.stepCopy(epoch.SyncEnded{Ordinal: ordinal})
	return err
}

// startPromotion carries out the decision in the background. The caller holds mu.
func (s *Shard) startPromotion(mark epoch.Mark) {
	if s.promoting.Swap(true) {
		return
	}
	go func() {
		for {
			err := s.promote(mark)
			if err == nil || s.g.ctx.Err() != nil || errors.Is(err, ErrClosed) {
				return
			}
			klog.ErrorS(err, "The promotion of a shard is decided, and is tried again", "group", s.g.Name(), "epoch", mark.Epoch)
			if !pause.For(s.g.ctx, time.Second) {
				return
			}
		}
	}()
}

// continuePromotion goes on with a decision that a crash kept from being carried out. The group has been started.
func (s *Shard) continuePromotion() {
	if s.copyOf().epochs.Decision == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ensureCopy(); err != nil {
		return
	}
	d := s.copy.Decision()
	for _, m := range s.copyMarks() {
		if m.Epoch == d.Epoch {
			s.startPromotion(m)
			return
		}
	}
}

// copyMarks are the base's and those in the journal.
func (s *Shard) copyMarks() (list []epoch.Mark) {
	if base := s.copyOf().base; base != nil && base.Epoch != nil {
		list = append(list, *base.Epoch)
	}
	for _, m := range s.marks.all() {
		list = append(list, m.Mark)
	}
	return list
}

// promote makes the group primary as of the boundary of the decided epoch. It is another Group of the site afterwards;
// this one is closed.
func (s *Shard) promote(mark epoch.Mark) error {
	g := s.g
	defer g.streams.refuse()()
	if err := s.decide(mark); err != nil {
		return err
	}
	_, err := g.site.rollBack(g)
	return err
}

func (s *Shard) decide(mark epoch.Mark) error {
	g := s.g
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	c := s.copyOf()
	if c.rollsBack {
		return nil
	}
	base := c.base
	if base == nil || base.Epoch == nil || base.Epoch.Epoch != mark.Epoch {
		if !c.whole { // nothing decides that: marks that arrive in a sync do not count
			return fmt.Errorf("group %s: its copy is in the middle of a sync, and cannot become what it was at epoch %s",
				g.Name(), mark.Epoch)
		}
		pos, ok, err := s.endOf(mark.Boundary)
		if err == nil && !ok {
			err = fmt.Errorf("group %s: the images are past the boundary %d of epoch %s", g.Name(), mark.Boundary, mark.Epoch)
		}
		if err == nil {
			err = g.applier.applyExactly(g.ctx, pos)
		}
		if err == nil {
			base, err = s.baseFor(mark, "", g.cfg.Now().UnixNano())
		}
		if err != nil {
			return err
		}
	}
	_, err := g.becomePrimary(core.Promote{
		Force: true, At: base, Durable: g.journal.Durable(), Now: g.cfg.Clock(), NewTimeline: uuid.NewString(),
	}, true)
	return err
}

// CopyProgress is how far the copy of a shard is.
type CopyProgress struct {
	// Shown is the epoch that the copy shows, Newest the last one that it could show; zero for none.
	Shown, Newest epoch.ID
	// Shards are those of the newest epoch.
	Shards []epoch.ShardID
	// Arrived: the primary was demoted, and everything that it wrote is here.
	Arrived bool
}

// Progress returns how far the copy is; the zero value for a group that is none.
func (s *Shard) Progress() (p CopyProgress) {
	if c := s.copyOf(); !c.copy || c.rollsBack {
		return p
	}
	p.Arrived = s.g.checkPlanned() == nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ensureCopy(); err != nil {
		return p
	}
	if m, ok := s.copy.Shown(); ok {
		p.Shown = m.Epoch
	}
	if m, ok := s.copy.Newest(); ok {
		p.Newest, p.Shards = m.Epoch, m.Config.Shards
	}
	return p
}

// keepConfig stores the shards of the group, if that is news to the copy. The caller holds mu.
func (s *Shard) keepConfig(c epoch.Config) error {
	if c.Version.Compare(s.copyOf().epochs.Config.Version) <= 0 {
		return nil
	}
	return s.keepEpochs(func(kept *core.Epochs) { kept.Config = c })
}
