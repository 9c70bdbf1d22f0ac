package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// unsynced draws which share of what was not synced survives a power loss.
func (w *world) unsynced() int { return pick(w.rng, 0, 0, 100, 10, 50, 90, w.rng.IntN(101)) }

// restartPrimary ends the primary's process, or its power, and starts it again. What has to be there is what had
// returned, or what was flushed.
func (w *world) restartPrimary(power bool) error {
	if err := w.endPrimary(power); err != nil {
		return err
	}
	if w.rng.IntN(3) == 0 {
		if err := w.restartSecondary(w.rng.IntN(2) == 0); err != nil { // both at once
			return err
		}
	}
	if _, err := w.startPrimary(power); err != nil {
		return err
	}
	return w.pointWriters()
}

// floors are what a copy has to hold at least: up to an ordinal, and everything that had returned before a clock time.
type floors struct{ ordinal, clock uint64 }

// endPrimary leaves the primary down. The link is cut for the instant of a power loss: what it lets through afterwards
// would come from a past that the crash clone does not know.
func (w *world) endPrimary(power bool) error {
	w.observe()
	w.ws.ending()
	if !power {
		w.a.kill()
		w.ws.point(nil)
		w.h.note("the primary was killed")
		return nil
	}
	w.net.Cut(siteA)
	percent := w.unsynced()
	ordinal, clock := w.h.flushed()
	clone := w.a.clone(percent, w.rng)
	w.a.kill()
	w.ws.point(nil)
	clone.net = w.net
	w.a.fs = clone.fs
	if !w.cut {
		w.net.Heal(siteA)
	}
	w.h.note("the primary lost power, %d%% of the unsynced survives; flushed up to ordinal %d, clock %d", percent,
		ordinal, clock)
	w.powerFloor = floors{ordinal, clock}
	return nil
}

// startPrimary starts the primary again and judges what it still has. It returns its head.
func (w *world) startPrimary(power bool) (head uint64, err error) {
	must := w.powerFloor
	if !power {
		must.ordinal, must.clock = w.h.acknowledged()
	}
	if err := w.a.open(); err != nil {
		return 0, w.h.violation("the primary does not start: %v", err)
	}
	head, shown, err := w.judgePrimary(w.a, must)
	if err != nil {
		return 0, err
	}
	w.h.note("the primary is back with ordinal %d", head)
	if head < w.acked {
		return 0, w.h.violation("the primary came back with ordinal %d, but its secondary had acknowledged %d", head, w.acked)
	}
	w.h.forget(head)
	if !w.p.exact {
		w.h.forgetBeyond(shown)
	}
	w.samples = nil
	return head, nil
}

// judgePrimary checks a primary that has just started.
func (w *world) judgePrimary(s *memSite, must floors) (head uint64, shown content, err error) {
	g := s.group()
	if g == nil {
		return 0, nil, w.h.violation("the primary does not know its group after a crash")
	}
	head = g.Status().HeadOrdinal
	if shown, err = w.readGroup(s); err != nil {
		return head, nil, err
	}
	if !w.p.exact {
		return head, shown, w.h.checkOrder("the primary after a crash", shown, must.clock, afterAck)
	}
	if head < must.ordinal {
		return head, nil, w.h.violation("the primary has ordinals up to %d after a crash, %d were durable", head,
			must.ordinal)
	}
	if n := w.h.length(); head > n {
		return head, nil, w.h.violation("the primary has ordinals up to %d after a crash, only %d were written", head, n)
	}
	return head, shown, w.h.checkImage("the primary after a crash", shown, w.h.image(head))
}

// restartSecondary ends the secondary's process, or its power, and starts it again; while it is alone its copy is
// judged.
func (w *world) restartSecondary(power bool) error {
	w.net.Cut(siteB)
	defer w.net.Heal(siteB)
	if w.a.site != nil {
		w.observe()
	}
	if power {
		percent := w.unsynced()
		clone := w.b.clone(percent, w.rng)
		w.b.kill()
		w.b.fs = clone.fs
		w.h.note("the secondary lost power, %d%% of the unsynced survives; it had acknowledged ordinal %d", percent, w.acked)
	} else {
		w.b.kill()
		w.h.note("the secondary was killed; it had acknowledged ordinal %d", w.acked)
	}
	if err := w.b.open(); err != nil {
		return w.h.violation("the secondary does not start: %v", err)
	}
	g := w.b.group()
	if g == nil {
		if w.acked > 0 {
			return w.h.violation("the secondary forgot its group, of which it had acknowledged ordinal %d", w.acked)
		}
		return nil
	}
	s := g.Status()
	if s.HeadOrdinal < w.acked {
		return w.h.violation("the secondary came back with ordinal %d, it had acknowledged %d", s.HeadOrdinal, w.acked)
	}
	if !s.Promotable {
		w.tally.unpromotable.Add(1)
		return nil
	}
	if s.Before != nil {
		if w.p.exact && s.Before.Ordinal < w.whole {
			return w.h.violation("the secondary opens as of ordinal %d in a sync, it had a whole copy up to %d",
				s.Before.Ordinal, w.whole)
		}
		return nil // what a promotion gives is judged by drills
	}
	w.tally.judged.Add(1)
	return w.judgeCopy(w.b, "the secondary after a crash", s.HeadOrdinal)
}

// judgeCopy checks a copy that says it is one instant.
func (w *world) judgeCopy(s *memSite, who string, ordinal uint64) error {
	shown, err := w.readGroup(s)
	if err != nil {
		return err
	}
	if !w.p.exact {
		return w.h.checkOrder(who, shown, w.ackedClock, afterAck)
	}
	if n := w.h.length(); ordinal > n {
		return w.h.violation("%s has ordinals up to %d, only %d were written", who, ordinal, n)
	}
	if ordinal < w.whole {
		return w.h.violation("%s has ordinals up to %d, it had a whole copy up to %d", who, ordinal, w.whole)
	}
	return w.h.checkImage(who, shown, w.h.image(ordinal))
}

// drill asks what would be if power failed at this instant, first at the secondary, then at the primary, without
// touching either: both are cloned, the clones are started, the secondary's is promoted.
func (w *world) drill() error {
	w.observe()
	percent := w.unsynced()
	cloneB := w.b.clone(percent, w.rng)
	w.h.note("drill: the secondary with %d%% of the unsynced; it had acknowledged ordinal %d", percent, w.acked)
	ordinal, clock := w.h.flushed()
	percentA := w.unsynced()
	cloneA := w.a.clone(percentA, w.rng)
	w.h.note("drill: the primary with %d%% of the unsynced; flushed up to ordinal %d", percentA, ordinal)

	recovered, err := w.drillSecondary(cloneB)
	if err != nil {
		return err
	}
	if err := cloneA.open(); err != nil {
		return w.h.violation("the primary would not start: %v", err)
	}
	defer cloneA.kill()
	head, _, err := w.judgePrimary(cloneA, floors{ordinal, clock})
	if err != nil {
		return err
	}
	if head < recovered {
		return w.h.violation(
			"the primary would come back with ordinal %d after the secondary had %d: more was shipped than was durable",
			head, recovered)
	}
	w.tally.drills.Add(1)
	return nil
}

// drillSecondary promotes a clone of the secondary, or sees that it says it cannot be. It returns its ordinal.
func (w *world) drillSecondary(s *memSite) (recovered uint64, err error) {
	if err := s.open(); err != nil {
		return 0, w.h.violation("the secondary would not start: %v", err)
	}
	defer s.kill()
	g := s.group()
	if g == nil {
		if w.acked > 0 {
			return 0, w.h.violation(
				"the secondary would have forgotten its group, of which it had acknowledged ordinal %d", w.acked)
		}
		return 0, nil
	}
	recovered, _, err = w.promote(s, "the secondary in a drill")
	return recovered, err
}

// promote promotes a secondary by force and judges its copy, or sees that it refuses where it has to. It returns the
// ordinal that the copy is at.
func (w *world) promote(s *memSite, who string) (recovered uint64, promoted bool, err error) {
	g := s.group()
	var loss *core.Loss
	var refused error
	liar, inSync := false, false
	// What a dying primary had sent last may still come in: its call, after which the promotion is to be repeated, or the
	// beginning of a sync, after which there is nothing to promote.
	err = w.eventually("the promotion of "+who, func() (bool, string) {
		was := g.Status()
		before := was.Promotable
		inSync = was.Before != nil
		loss, refused = g.Promote(true)
		settled := refused == nil || !errors.Is(refused, core.ErrPrecondition) || !before
		promoted = refused == nil
		liar = promoted && !before && s.net == nil // nothing comes in that could have ended a sync
		return settled, fmt.Sprint(refused)
	})
	switch {
	case err != nil:
		return 0, false, err
	case liar:
		return 0, false, w.h.violation("%s was promoted although it had said that it could not be", who)
	case refused != nil && !errors.Is(refused, core.ErrPrecondition):
		return 0, false, w.h.violation("%s refuses the promotion with another error than a precondition: %v", who, refused)
	case refused != nil:
		w.h.note("%s cannot be promoted: %v", who, refused)
		w.tally.unpromotable.Add(1)
		return 0, false, nil
	}
	w.tally.promotions.Add(1)
	if inSync {
		w.tally.inSync.Add(1)
	}
	if g = s.group(); g == nil {
		return 0, true, w.h.violation("%s was promoted, and its group is gone: %v", who, s.site.Broken())
	}
	status := g.Status()
	if loss.RecoveredOrdinal != status.HeadOrdinal || status.HeadOrdinal != status.DurableOrdinal {
		return 0, true, w.h.violation("%s recovered ordinal %d, says it is at %d, durable %d", who,
			loss.RecoveredOrdinal, status.HeadOrdinal, status.DurableOrdinal)
	}
	w.h.note("%s was promoted at ordinal %d", who, loss.RecoveredOrdinal)
	if s == w.b {
		w.bound, w.promoted = loss, time.Now()
	}
	return loss.RecoveredOrdinal, true, w.judgeCopy(s, who, loss.RecoveredOrdinal)
}

// changeMembers adds a volume or grows one. The record takes an ordinal, so it needs the writers' turn; where that can
// be held by a writer that waits for the peer, it is left alone.
func (w *world) changeMembers() error {
	if !w.p.exact || w.p.policy == core.PolicyStall {
		return nil
	}
	w.ws.turn.Lock()
	err := w.changeMembersInTurn()
	w.ws.turn.Unlock()
	if err != nil {
		return err
	}
	// The turn was given up: the writers learn of a new volume between two of their operations.
	return w.pointWriters()
}

func (w *world) changeMembersInTurn() error {
	g := w.a.group()
	const mostVolumes = 6
	if models := w.h.models(); len(models) < mostVolumes && w.rng.IntN(2) == 0 {
		return w.addVolume(g, chunkBlocks+w.rng.IntN(100), w.rng.IntN(2) == 0)
	}
	v := pick(w.rng, w.h.models()...)
	blocks := v.blocks + 1 + w.rng.IntN(64)
	before := w.h.length()
	if err := g.Resize(v.id, int64(blocks)*blockBytes); err != nil {
		return err
	}
	w.h.note("volume %s grown to %d blocks", v.id, blocks)
	w.h.mu.Lock()
	v.blocks = blocks
	v.grown = append(v.grown, growth{before + 1, blocks})
	w.h.mu.Unlock()
	w.h.other(g.Status().HeadOrdinal)
	return nil
}
