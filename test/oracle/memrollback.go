package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A rollback is a site whose disk is put back to an earlier state: a restored backup, a snapshot of a virtual machine,
// a disk that lost what it had acknowledged. It has to end in one of two ways: the copies are the same again, after a
// resync or a full copy, or the sites say that they have diverged and neither changes. Never in a copy that says it is
// whole and is not.

// savedState is what a site's disk held at some moment.
type savedState struct {
	primary bool
	fs      *vfs.MemFS
	clock   uint64
}

// maxSaved bounds the states that a round keeps, for their memory.
const maxSaved = 4

// rollbackRound is a round in memory that ends in a rollback, if it can.
func rollbackRound(ctx context.Context, seed uint64, t *tally) error {
	rng := rand.New(rand.NewPCG(seed, 0))
	p := drawParams(seed, rng)
	p.rollback, p.events = !p.storm, p.events+2
	if !p.storm && rng.IntN(2) == 0 {
		p.overflow, p.maxBlocks = true, 16 // so that the secondary is in the middle of a sync, often
	}
	return runMemRound(ctx, rng, p, t)
}

// save keeps what a site's disk holds, as a snapshot of the machine would: with all of the page cache, or as after a
// loss of power.
func (w *world) save() {
	s := pick(w.rng, w.a, w.b)
	if s.site == nil || w.p.storm || len(w.saved) == maxSaved {
		return
	}
	w.saved = append(w.saved, &savedState{
		primary: s == w.a, fs: s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: w.unsynced(), RNG: w.rng}), clock: w.h.now(),
	})
	w.h.note("the state of %s is saved", s.name)
}

// endRolledBack puts a site back, lets it call or be called, and judges what comes of it.
func (w *world) endRolledBack() error {
	w.rest()
	// Half of the time the sites have caught up before, so that nothing is left in the change map.
	if w.rng.IntN(2) == 0 {
		if _, err := w.identical(w.a, w.b); err != nil {
			return err
		}
	}
	state := pick(w.rng, w.saved...)
	s, other := w.b, w.a
	if state.primary {
		s, other = w.a, w.b
	}
	if other.group() == nil {
		return w.endInPeace() // the secondary has not heard of the group
	}
	w.net.Cut(siteA)
	// A secondary still takes what had arrived before the cut.
	err := w.eventually("the end of the stream at "+other.name, func() (bool, string) {
		state := other.group().Status().State
		return state != "streaming" && state != "syncing", string(state)
	})
	if err != nil {
		return err
	}
	kept, err := w.readGroup(other)
	if err != nil {
		return err
	}
	s.kill()
	s.fs = state.fs
	// Its snapshots are put back, too.
	w.snapshots = slices.DeleteFunc(w.snapshots, func(snap *groupSnapshot) bool { return snap.at == s.name })
	w.h.note("%s is put back to the state of clock %d", s.name, state.clock)
	if err := s.open(); err != nil {
		return w.h.violation("%s does not start: %v", s.name, err)
	}
	// What an application writes at a primary that was put back takes ordinals that the peer may have.
	// With the stall policy it may have to wait for the peer, which is cut off.
	if state.primary {
		if err := w.scribble(s, w.rng.IntN(pick(w.rng, 1, 30, 300))); err != nil {
			return err
		}
		if w.rng.IntN(3) == 0 {
			s.kill()
			if err := s.open(); err != nil {
				return w.h.violation("%s does not start: %v", s.name, err)
			}
		}
	}
	w.heal()
	w.net.Heal(siteA)
	w.tally.rollbacks.Add(1)
	return w.judgeRollback(state, kept)
}

// judgeRollback waits until the sites agree, one way or the other.
func (w *world) judgeRollback(state *savedState, kept content) error {
	diverged := false
	err := w.eventually("agreement after a rollback", func() (bool, string) {
		p, g := w.a.group().Status(), w.b.group()
		if g == nil {
			return false, fmt.Sprintf("primary %v, no secondary", p)
		}
		s := g.Status()
		diverged = p.State == "diverged"
		same := p.State == "streaming" && s.Promotable && s.DurableOrdinal == p.HeadOrdinal &&
			orZero(p.AcknowledgedOrdinal) == p.HeadOrdinal && p.ChangeMapBytes == 0
		return diverged || same, fmt.Sprintf("primary %v, secondary %v", p, s)
	})
	if err != nil {
		return err
	}
	if !diverged {
		a, err := w.readGroup(w.a)
		if err != nil {
			return err
		}
		b, err := w.readGroup(w.b)
		if err != nil {
			return err
		}
		return w.h.checkSame("the copy after a rollback", a, b)
	}
	w.tally.rollbacksDiverged.Add(1)
	if !state.primary {
		return w.h.violation("the sites have diverged, although only the secondary was put back: %v", w.a.group().Status())
	}
	for range 5 {
		if err := w.pause(2 * w.p.pace.heartbeat); err != nil {
			return err
		}
		if st := w.a.group().Status(); st.State != "diverged" {
			return w.h.violation("the divergence is forgotten: %v", st)
		}
	}
	return w.unchanged(w.b, kept)
}

// scribble writes at a site that is primary, with operations that are in no log.
func (w *world) scribble(s *memSite, n int) error {
	volumes, err := volumesHere(w.h, s.group())
	if err != nil {
		return err
	}
	if w.p.policy == core.PolicyStall {
		n = 0
	}
	for range n {
		number := w.rng.IntN(len(volumes))
		v := volumes[number]
		if v == nil {
			continue
		}
		if _, err := w.scribbleOnce(v, number); err != nil {
			return err
		}
	}
	return w.flushAny(volumes)
}

func (w *world) flushAny(volumes []*replication.Volume) error {
	for _, v := range volumes {
		if v != nil {
			return v.Flush()
		}
	}
	return nil
}
