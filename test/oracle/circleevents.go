package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// soon is a deadline within which an operation may end or not.
func (c *circle) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, time.Duration(c.rng.IntN(60))*time.Millisecond)
}

// persist repeats an operation, with kills and power losses at both sites, until it succeeds.
func (c *circle) persist(what string, do func(ctx context.Context) error) error {
	for try := 0; ; try++ {
		ctx, cancel := c.soon()
		if try > 20 {
			cancel()
			ctx, cancel = context.WithTimeout(c.ctx, patience())
		}
		err := do(ctx)
		cancel()
		if err != nil && (!repeatable(err) || try > 40) {
			return c.h.violation("%s: %v", what, err)
		}
		if err == nil || try < 20 {
			if err := c.disturb(c.primary, c.secondary); err != nil {
				return err
			}
		}
		if err == nil {
			return nil
		}
		if err := c.pause(2 * c.p.pace.heartbeat); err != nil {
			return err
		}
	}
}

// fork promotes the secondary, most of the time while the link is cut, has both sites write, and lets one of the two
// give way.
func (c *circle) fork() error {
	old, now := c.primary, c.secondary
	c.observe()
	if c.rng.IntN(3) > 0 { // else the old primary may hear of it before it writes past it
		c.toggleLink()
	}
	if err := c.write(old, c.rng.IntN(40)); err != nil {
		return err
	}
	promoted := time.Now()
	recovered, loss, err := c.promoteBy(now.memSite, "the secondary at "+now.name, old.line)
	if err != nil {
		return err
	}
	now.line, now.flushed = slices.Clone(old.line[:recovered]), recovered
	c.h.note("%s was promoted at ordinal %d, %s is at %d", now.name, recovered, old.name, len(old.line))
	if err := c.write(now, c.rng.IntN(40)); err != nil {
		return err
	}
	if err := c.disturb(old, now); err != nil {
		return err
	}
	if err := c.write(old, c.rng.IntN(20)); err != nil {
		return err
	}
	c.heal()
	c.tally.circle.forks.Add(1)
	if err := c.lossIsExact(old, now, recovered, loss, promoted); err != nil {
		return err
	}
	loser, winner := old, now
	if c.rng.IntN(3) == 0 {
		loser, winner = now, old
		c.tally.circle.loserPromoted.Add(1)
	}
	return c.yield(loser, winner, recovered)
}

// lossIsExact waits until the promoted site knows what the old primary had written past the fork, and judges that and
// the bound that it gave when it was promoted.
func (c *circle) lossIsExact(old, now *circleSite, fork uint64, bound *core.Loss, promoted time.Time) error {
	head := uint64(len(old.line))
	var l *core.Loss
	err := c.eventually("the exact loss", func() (bool, string) {
		a, b := old.group().Status(), now.group().Status()
		l = b.Loss
		// Where the link was up it may be what the old primary had written at the contact before.
		return l != nil && l.Exact && a.State == core.StateDiverged && orZero(l.LostOrdinals) >= head-fork,
			fmt.Sprintf("old %v, new %v, it has lost %d ordinals: %+v", a, b, head-fork, l)
	})
	if err != nil {
		return err
	}
	writes, bytes := uint64(0), uint64(0)
	for _, e := range old.line[fork:] {
		if e.op != nil && e.op.kind == opWrite {
			writes, bytes = writes+1, bytes+uint64(e.op.n)*blockBytes
		}
	}
	switch {
	case orZero(l.LostOrdinals) != head-fork:
		return c.h.violation("the loss report says that %d ordinals were lost, it was %d", orZero(l.LostOrdinals), head-fork)
	case !l.Partial && (orZero(l.LostWrites) != writes || orZero(l.LostBytes) != bytes):
		return c.h.violation("the loss report says %d writes and %d bytes, it was %d and %d", orZero(l.LostWrites),
			orZero(l.LostBytes), writes, bytes)
	case bound.LostOrdinals != nil && *bound.LostOrdinals > head-fork:
		return c.h.violation("the promotion said that at least %d ordinals were lost, it was %d", *bound.LostOrdinals,
			head-fork)
	case bound.LostSeconds != nil && orZero(l.LostSeconds) > *bound.LostSeconds+time.Since(promoted).Seconds():
		return c.h.violation("the promotion said that at most the last %v s were lost, it was %v s", *bound.LostSeconds,
			orZero(l.LostSeconds))
	}
	return nil
}

// yield has a site give way, and judges its tail and both copies.
func (c *circle) yield(loser, winner *circleSite, fork uint64) error {
	head := uint64(len(loser.line))
	had := c.h.lineContent(loser.line, head)
	undone := slices.Clone(loser.line)
	c.primary, c.secondary = winner, loser
	c.floor, c.whole = 0, true
	err := c.persist(loser.name+" gives way", func(ctx context.Context) error {
		_, err := loser.group().Yield(ctx)
		return err
	})
	if err != nil {
		return err
	}
	c.h.note("%s has given way at ordinal %d, the fork was at %d", loser.name, head, fork)
	if head > fork {
		loser.tails = append(loser.tails, keptTail{head, had})
	}
	if err := c.write(winner, c.rng.IntN(20)); err != nil {
		return err
	}
	if c.rng.IntN(2) == 0 {
		if err := c.drill("in a yield", undone); err != nil {
			return err
		}
	}
	if err := c.settle("giving way"); err != nil {
		return err
	}
	return c.judgeTails()
}

// relocate moves the group as planned.
func (c *circle) relocate() error {
	p, s := c.primary, c.secondary
	p.flushed = uint64(len(p.line)) // a demotion makes durable what there is
	before := slices.Clone(p.line)
	if err := c.settle("catching up for a move"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.ctx, patience())
	defer cancel()
	moved, err := p.group().Relocate(ctx)
	if err != nil {
		return c.h.violation("%s cannot be relocated: %v", p.name, err)
	}
	if moved.FinalOrdinal != uint64(len(before)) || s.group().Status().HeadOrdinal != moved.FinalOrdinal {
		return c.h.violation("the move ended at ordinal %d at %s, %d were written", moved.FinalOrdinal, s.name, len(before))
	}
	c.h.note("moved from %s to %s at ordinal %d", p.name, s.name, moved.FinalOrdinal)
	c.primary, c.secondary = s, p
	s.line, s.flushed = before, moved.FinalOrdinal
	c.floor, c.whole = moved.FinalOrdinal, true
	c.tally.circle.relocations.Add(1)
	if err := c.disturb(p, s); err != nil {
		return err
	}
	if err := c.write(c.primary, c.rng.IntN(20)); err != nil {
		return err
	}
	return c.settle("a move")
}

// resync cuts the link for longer than the journal lasts.
func (c *circle) resync() error {
	c.observe()
	c.toggleLink()
	const batch = 64
	for written := int64(0); written < c.p.journalBytes+c.p.journalBytes/4; {
		before := len(c.primary.line)
		if err := c.write(c.primary, batch); err != nil {
			return err
		}
		for _, e := range c.primary.line[before:] {
			if e.op != nil {
				written += int64(e.op.n) * blockBytes
			}
		}
	}
	c.heal()
	c.tally.circle.resyncs.Add(1)
	for range c.rng.IntN(3) {
		if err := c.pause(time.Duration(c.rng.IntN(20)) * time.Millisecond); err != nil {
			return err
		}
		if err := c.drill("in a resync"); err != nil {
			return err
		}
		if err := c.disturb(c.primary, c.secondary); err != nil {
			return err
		}
	}
	return c.settle("an outage")
}

// suspend stops the stream for a while.
func (c *circle) suspend() error {
	if err := c.settle("catching up for a suspension"); err != nil {
		return err
	}
	if _, err := c.primary.group().Suspend(); err != nil {
		return c.h.violation("%s cannot be suspended: %v", c.primary.name, err)
	}
	c.h.note("suspended")
	at := uint64(len(c.primary.line))
	if err := c.write(c.primary, 1+c.rng.IntN(20)); err != nil {
		return err
	}
	if err := c.disturb(c.primary, c.secondary); err != nil {
		return err
	}
	if have := c.secondary.group().Status().HeadOrdinal; have != at {
		return c.h.violation("%s has ordinal %d although the group was suspended at %d", c.secondary.name, have, at)
	}
	if err := c.drill("suspended"); err != nil {
		return err
	}
	if _, err := c.primary.group().Resume(); err != nil {
		return c.h.violation("%s cannot be resumed: %v", c.primary.name, err)
	}
	c.tally.circle.suspensions.Add(1)
	return c.settle("a suspension")
}

// members adds a volume, removes one or grows one.
func (c *circle) members() error {
	s := c.primary
	g := s.group()
	const most = 5
	volumes := g.Volumes()
	v := volumes[c.rng.IntN(len(volumes))]
	number := slices.IndexFunc(c.h.models(), func(m *volumeModel) bool { return m.id == v.ID() })
	draw := c.rng.IntN(3)
	switch {
	case draw == 0 && len(volumes) < most:
		if err := c.add(g, chunkBlocks+c.rng.IntN(100), c.rng.IntN(2) == 0); err != nil {
			return err
		}
	case draw == 1 && len(volumes) > 1:
		if err := c.closeViews(s, number); err != nil {
			return err
		}
		if err := g.RemoveVolume(v.ID(), nil); err != nil {
			return c.h.violation("volume %s cannot be removed: %v", v.ID(), err)
		}
		if err := s.pool.Delete(v.ID()); err != nil {
			return c.h.violation("volume %s, that has left the group, cannot be deleted: %v", v.ID(), err)
		}
		c.h.note("volume %s removed at %s", v.ID(), s.name)
		c.tally.circle.removed.Add(1)
		if err := c.took(s, &memberChange{volume: number, gone: true}); err != nil {
			return err
		}
	default:
		blocks := int(v.Size()/blockBytes) + 1 + c.rng.IntN(64)
		if err := g.Resize(v.ID(), int64(blocks)*blockBytes); err != nil {
			return c.h.violation("volume %s cannot be grown: %v", v.ID(), err)
		}
		c.h.note("volume %s grown to %d blocks at %s", v.ID(), blocks, s.name)
		c.tally.circle.grown.Add(1)
		if err := c.took(s, &memberChange{volume: number, blocks: blocks}); err != nil {
			return err
		}
	}
	if c.rng.IntN(2) == 0 {
		if err := c.disturb(c.primary, c.secondary); err != nil {
			return err
		}
		return c.drill("while members change")
	}
	return c.settle("a change of members")
}

// bookmark names the state that the primary is in.
func (c *circle) bookmark() error {
	if err := c.write(c.primary, c.rng.IntN(5)); err != nil {
		return err
	}
	c.names++
	label := fmt.Sprintf("mark-%d", c.names)
	b, err := c.primary.group().Bookmark(label)
	if err != nil {
		return c.h.violation("no bookmark can be set: %v", err)
	}
	if err := c.took(c.primary, nil); err != nil {
		return err
	}
	if n := uint64(len(c.primary.line)); b.Ordinal != n && b.Ordinal != n-1 {
		return c.h.violation("the bookmark %s is at ordinal %d, %d were written", label, b.Ordinal, n)
	}
	c.tally.circle.bookmarks.Add(1)
	if err := c.settle("a bookmark"); err != nil {
		return err
	}
	for _, s := range []*circleSite{c.primary, c.secondary} {
		has := func(k core.Bookmark) bool { return k.Label == label && k.Ordinal == b.Ordinal }
		// A secondary takes it up a moment after its record is durable.
		err := c.eventually("the bookmark "+label+" at "+s.name, func() (bool, string) {
			return slices.ContainsFunc(s.group().Bookmarks(), has), fmt.Sprint(s.group().Bookmarks())
		})
		if err != nil {
			return err
		}
		before := len(s.views)
		if err := c.openView(s, replication.Point{Bookmark: label}, false); err != nil {
			return err
		}
		if len(s.views) > before && s.views[before].ordinal != b.Ordinal {
			return c.h.violation("the view of bookmark %s is of ordinal %d, not of %d", label, s.views[before].ordinal,
				b.Ordinal)
		}
	}
	return nil
}

// verify compares both sites; half of the time a byte of one of them was changed, which is repaired then.
func (c *circle) verify() error {
	if err := c.settle("catching up for a comparison"); err != nil {
		return err
	}
	// An extent takes no ordinal: it is applied for certain when something behind it is.
	if err := c.write(c.primary, 1); err != nil {
		return err
	}
	if err := c.settle("a write before a comparison"); err != nil {
		return err
	}
	err := c.eventually("everything is applied", func() (bool, string) {
		a, b := c.primary.group().Status(), c.secondary.group().Status()
		return a.AppliedOrdinal == a.HeadOrdinal && b.AppliedOrdinal == b.HeadOrdinal, fmt.Sprintf("%v, %v", a, b)
	})
	if err != nil {
		return err
	}
	c.world.a = c.primary.memSite // whose comparisons count
	s := pick(c.rng, c.primary, c.secondary)
	want := uint64(c.rng.IntN(2))
	if want > 0 {
		volumes := s.group().Volumes()
		v := volumes[c.rng.IntN(len(volumes))]
		off := c.rng.Int64N(v.Size())
		number := slices.IndexFunc(c.h.models(), func(m *volumeModel) bool { return m.id == v.ID() })
		if err := c.closeViews(s, number); err != nil { // they share the image
			return err
		}
		if err := s.flip(v.ID(), off); err != nil {
			return err
		}
		c.h.note("byte %d of the image of volume %s at %s was changed", off, v.ID(), s.name)
	}
	found, err := c.verified()
	if err != nil {
		return err
	}
	if n := orZero(found.DifferenceCount); n != want {
		return c.h.violation("%d bytes were changed, and a comparison found %d differences: %v", want, n, found.Differences)
	}
	if want == 0 {
		return nil
	}
	// It is asked for again where its primary was busy, or the stream ended.
	var asked time.Time
	err = c.eventually("the end of the repair at "+s.name, func() (bool, string) {
		v := c.primary.group().Status().Verify
		if !v.Running && v.DifferenceCount != nil && *v.DifferenceCount == 0 {
			return true, ""
		}
		var err error
		if time.Since(asked) > again {
			asked = time.Now()
			_, err = s.group().Repair()
		}
		return false, fmt.Sprintf("%+v, %v", v, err)
	})
	if err != nil {
		return err
	}
	c.tally.circle.repairs.Add(1)
	if err := c.took(c.primary, nil); err != nil {
		return err
	}
	return c.settle("a repair")
}
