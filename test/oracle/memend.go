package main

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// end draws how the round ends: in peace, with a planned change of roles, or with the primary's site.
func (w *world) end() error {
	if w.p.storm {
		if err := w.shipRate(0); err != nil {
			return err
		}
		return w.endRelocated()
	}
	switch draw := w.rng.IntN(100); {
	case (draw < 40 || w.p.rollback) && len(w.saved) > 0:
		return w.endRolledBack()
	case draw < 20:
		if err := w.endInPeace(); err != nil {
			return err
		}
		return w.endVerified()
	case draw < 40:
		return w.endRelocated()
	default:
		return w.endInDisaster()
	}
}

// rest lets the writers come to an end. With the stall policy they may need the link for it.
func (w *world) rest() {
	w.heal()
	w.ws.drop()
	w.ws.point(nil)
}

// identical waits until the secondary has everything and compares the copies.
func (w *world) identical(primary, secondary *memSite) (content, error) {
	who := fmt.Sprintf("the copy at %s after catching up with %s", secondary.name, primary.name)
	err := w.eventually(who, func() (bool, string) {
		p := primary.group().Status()
		g := secondary.group()
		if g == nil {
			return false, fmt.Sprintf("primary %v, no secondary", p)
		}
		s := g.Status()
		return p.State == "streaming" && s.Role == core.RoleSecondary && s.Promotable && s.DurableOrdinal == p.HeadOrdinal &&
			orZero(p.AcknowledgedOrdinal) == p.HeadOrdinal &&
			p.ChangeMapBytes == 0, fmt.Sprintf("primary %v, secondary %v", p, s)
	})
	if err != nil {
		return nil, err
	}
	a, err := w.readGroup(primary)
	if err != nil {
		return nil, err
	}
	b, err := w.readGroup(secondary)
	if err != nil {
		return nil, err
	}
	return a, w.h.checkSame(who, a, b)
}

// endInPeace: all's well, so the copies are identical, and are all that was written.
func (w *world) endInPeace() error {
	w.rest()
	shown, err := w.identical(w.a, w.b)
	if err != nil {
		return err
	}
	w.tally.peaceful.Add(1)
	if !w.p.exact {
		_, clock := w.h.acknowledged()
		return w.h.checkOrder("the primary in the end", shown, clock, afterAck)
	}
	if head, n := w.a.group().Status().HeadOrdinal, w.h.length(); head != n {
		return w.h.violation("the primary has %d ordinals, %d were written", head, n)
	}
	return w.h.checkImage("the primary in the end", shown, w.h.image(w.h.length()))
}

// endRelocated: the primary is demoted, the secondary promoted as planned; nothing is lost and replication turns round.
func (w *world) endRelocated() error {
	w.rest()
	if _, err := w.identical(w.a, w.b); err != nil {
		return err
	}
	final, err := w.a.group().Demote()
	if err != nil {
		return w.h.violation("the primary cannot be demoted: %v", err)
	}
	w.h.note("the primary was demoted at ordinal %d", final)
	before, err := w.readGroup(w.a)
	if err != nil {
		return err
	}
	err = w.eventually("the planned promotion", func() (bool, string) {
		_, err := w.b.group().Promote(false)
		return err == nil, fmt.Sprint(err)
	})
	if err != nil {
		return err
	}
	w.h.note("the secondary was promoted as planned")
	if recovered := w.b.group().Status().HeadOrdinal; recovered != final {
		return w.h.violation("the planned promotion recovered ordinal %d of %d", recovered, final)
	}
	expected, err := w.readGroup(w.b)
	if err != nil {
		return err
	}
	if err := w.h.checkSame("after the planned promotion", before, expected); err != nil {
		return err
	}
	if err := w.writeAt(expected); err != nil {
		return err
	}
	shown, err := w.identical(w.b, w.a)
	if err != nil {
		return err
	}
	w.tally.relocations.Add(1)
	return w.h.checkSame("after writing at the new primary", expected, shown)
}

// endInDisaster: the primary's site ends, the secondary is promoted. Perhaps the old primary comes back.
func (w *world) endInDisaster() error {
	power := w.rng.IntN(2) == 0
	if err := w.endPrimary(power); err != nil {
		return err
	}
	w.ws.drop()
	if w.rng.IntN(3) == 0 {
		if err := w.restartSecondary(w.rng.IntN(2) == 0); err != nil {
			return err
		}
	}
	var fork uint64
	promoted := false
	if w.b.group() != nil {
		var err error
		if fork, promoted, err = w.promote(w.b, "the secondary"); err != nil {
			return err
		}
	}
	if !promoted {
		// The primary alone has one consistent instant. When it is back, all can be well again.
		if _, err := w.startPrimary(power); err != nil {
			return err
		}
		return w.endInPeace()
	}
	w.tally.disasters.Add(1)
	expected, err := w.readGroup(w.b)
	if err != nil {
		return err
	}
	if err := w.writeAt(expected); err != nil {
		return err
	}
	if w.rng.IntN(3) == 0 {
		return nil // it never comes back
	}
	head, err := w.startPrimary(power)
	if err != nil {
		return err
	}
	old, err := w.readGroup(w.a)
	if err != nil {
		return err
	}
	w.heal()
	w.h.note("the old primary is back with ordinals up to %d, the fork was at %d", head, fork)
	return w.reunite(head, fork, old, expected)
}

// reunite judges what happens when an old primary comes back to a site that was promoted in its place: neither is
// overwritten, the loss is told exactly, and what lost nothing can follow.
func (w *world) reunite(head, fork uint64, old, expected content) error {
	ga, gb := w.a.group(), w.b.group()
	if head < fork {
		// Nothing is sent before it is durable here, so this primary has lost what it had.
		return w.h.violation("the old primary is back with ordinals up to %d, the secondary was promoted at %d", head, fork)
	}
	writes, bytes := uint64(0), uint64(0)
	if w.p.exact {
		writes, bytes = w.h.lost(fork, head)
	}
	err := w.eventually("the divergence and the exact loss", func() (bool, string) {
		a, b := ga.Status(), gb.Status()
		l := b.Loss
		return l != nil && l.Exact && a.State == "diverged", fmt.Sprintf("old primary %v, new primary %v", a, b)
	})
	if err != nil {
		return err
	}
	l := gb.Status().Loss
	switch {
	case orZero(l.LostOrdinals) != head-fork:
		err = w.h.violation("the loss report says that %d ordinals were lost, it was %d (%d to %d)",
			orZero(l.LostOrdinals), head-fork, fork+1, head)
	case w.p.exact && !l.Partial && (orZero(l.LostWrites) != writes || orZero(l.LostBytes) != bytes):
		err = w.h.violation("the loss report says %d writes and %d bytes, it was %d and %d", orZero(l.LostWrites),
			orZero(l.LostBytes), writes, bytes)
	case w.bound.LostOrdinals != nil && *w.bound.LostOrdinals > head-fork:
		err = w.h.violation("the promotion said that at least %d ordinals were lost, it was %d", *w.bound.LostOrdinals,
			head-fork)
	case w.bound.LostSeconds != nil && orZero(l.LostSeconds) > *w.bound.LostSeconds+time.Since(w.promoted).Seconds():
		// What the old primary adds when it is back comes after the promotion.
		err = w.h.violation("the promotion said that at most the last %v s were lost, it was %v s",
			*w.bound.LostSeconds, orZero(l.LostSeconds))
	case w.p.exact && (orZero(l.LostWrites) > writes || orZero(l.LostBytes) > bytes):
		err = w.h.violation("the loss report says %d writes and %d bytes, it was at most %d and %d",
			orZero(l.LostWrites), orZero(l.LostBytes), writes, bytes)
	}
	if err != nil {
		return err
	}
	// The new primary is none the worse for it: its volumes can be attached, and written.
	for _, v := range gb.Volumes() {
		if _, err := gb.Attach(v.ID()); err != nil {
			return w.h.violation("the new primary's volume cannot be attached after the old primary came back: %v", err)
		}
	}
	if err := w.writeAt(expected); err != nil {
		return err
	}
	w.tally.reunions.Add(1)
	if w.rng.IntN(2) == 0 {
		if _, err := ga.Demote(); err != nil {
			return w.h.violation("the old primary cannot be demoted: %v", err)
		}
		w.h.note("the old primary was demoted")
		if head == fork {
			if expected, err = w.identical(w.b, w.a); err != nil {
				return err
			}
			return w.unchanged(w.b, expected)
		}
		if err := w.contacts(gb, ga); err != nil {
			return err
		}
	}
	if err := w.unchanged(w.a, old); err != nil {
		return err
	}
	return w.unchanged(w.b, expected)
}

// orZero returns what p points to, and zero for nil.
func orZero[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

// contacts waits until a diverged pair had the chance to make a mistake: the demoted one must not follow.
func (w *world) contacts(primary, demoted *replication.Group) error {
	const calls = 10
	for range calls {
		if a := demoted.Status(); a.State != "diverged" || a.Role == core.RoleSecondary {
			return w.h.violation("the old primary with a divergent tail follows the new one: %v; the new one: %v", a,
				primary.Status())
		}
		if err := w.pause(2 * w.p.pace.heartbeat); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) unchanged(s *memSite, want content) error {
	got, err := w.readGroup(s)
	if err != nil {
		return err
	}
	return w.h.checkSame(s.name+", that may not be overwritten", want, got)
}

// writeAt writes at the secondary's site, which was promoted, one operation after the other, ends it now and then, and
// keeps the expectation.
func (w *world) writeAt(expected content) error {
	h, s := w.h, w.b
	volumes, err := volumesHere(h, s.group())
	if err != nil {
		return err
	}
	some := slices.IndexFunc(volumes, func(v *replication.Volume) bool { return v != nil })
	if some < 0 {
		return nil // promoted before it had heard of a volume
	}
	for range 1 + w.rng.IntN(40) {
		number := w.rng.IntN(len(volumes))
		v := volumes[number]
		if v == nil {
			continue
		}
		o, err := w.scribbleOnce(v, number)
		if err != nil {
			return err
		}
		for b := o.block; b < o.block+o.n; b++ {
			expected[number].units[b] = o
		}
		if w.rng.IntN(8) == 0 {
			if err := v.Flush(); err != nil {
				return err
			}
		}
	}
	h.note("%s was written to after its promotion", s.name)
	switch w.rng.IntN(4) {
	case 0: // a kill loses nothing
		s.kill()
	case 1: // after a flush, a power loss neither
		if err := volumes[some].Flush(); err != nil {
			return err
		}
		w.net.Cut(siteB)
		clone := s.clone(w.unsynced(), w.rng)
		s.kill()
		s.fs = clone.fs
		w.net.Heal(siteB) // the link's own cut is of the other site
	default:
		return nil
	}
	if err := s.open(); err != nil {
		return h.violation("the promoted site does not start: %v", err)
	}
	h.note("%s was ended and started after its promotion", s.name)
	got, err := w.readGroup(s)
	if err != nil {
		return err
	}
	return h.checkSame("the promoted site after a crash", expected, got)
}

// scribbleOnce writes to a volume outside of the writers' order: it is no operation of theirs, so it goes into no log.
func (w *world) scribbleOnce(v *replication.Volume, number int) (*op, error) {
	const writer = 0xfffe
	h := w.h
	blocks := int(v.Size() / blockBytes)
	n := min(1+w.rng.IntN(w.p.maxBlocks), blocks)
	h.mu.Lock()
	h.clock++
	o := &op{id: uint64(len(h.ops) + 1), kind: opWrite, writer: writer, volume: number,
		block: w.rng.IntN(blocks - n + 1), n: n, issued: h.clock}
	h.ops = append(h.ops, o)
	h.mu.Unlock()
	p := make([]byte, n*blockBytes)
	stamp(p, w.p.seed, o)
	if _, err := v.WriteAt(p, int64(o.block)*blockBytes); err != nil {
		return nil, h.violation("the primary takes no writes: %v", err)
	}
	return o, nil
}

// volumesHere is volumesOf for a copy that may lack volumes: those are nil.
func volumesHere(h *history, g *replication.Group) ([]*replication.Volume, error) {
	models := h.models()
	list := make([]*replication.Volume, len(models))
	for i, m := range models {
		v, err := g.Volume(m.id)
		if errors.Is(err, replication.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list[i] = v
	}
	return list, nil
}
