package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// forkRound is one fork and the way back from it.
type forkRound struct {
	t    *testing.T
	rng  *rand.Rand
	a, b *testSite // primary and secondary when the round begins
}

// disturb kills a site, or takes its power, in a third of the calls.
func (f *forkRound) disturb(s *testSite) {
	switch f.rng.IntN(6) {
	case 0:
		s.restart()
	case 1:
		s.crash(f.rng.IntN(101), f.rng)
	}
}

// yieldThroughKills gives way at a site that is killed again and again meanwhile.
func (f *forkRound) yieldThroughKills(loser, winner *testSite) {
	f.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(f.t.Context(), time.Duration(f.rng.IntN(60))*time.Millisecond)
		_, err := loser.group("shop").Yield(ctx)
		cancel()
		f.disturb(loser)
		f.disturb(winner)
		if err == nil {
			break
		}
		if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, core.ErrPrecondition) && !errors.Is(err,
			ErrClosed) {
			f.t.Fatalf("yield: %v", err)
		}
		awaitFork(f.t, loser)
	}
	for range f.rng.IntN(4) {
		time.Sleep(time.Duration(f.rng.IntN(10)) * time.Millisecond)
		f.disturb(loser)
		f.disturb(winner)
	}
}

// awaitFork waits until a site knows of the other history, or gives way.
func awaitFork(t *testing.T, s *testSite) {
	t.Helper()
	eventually(t, s.name+" knows of the fork", func() bool {
		g := s.group("shop")
		g.mu.Lock()
		defer g.mu.Unlock()
		m := &g.core.Meta
		return m.Divergence != nil && m.Divergence.PeerPrimary || m.Yield != nil || m.Role == core.RoleSecondary
	})
}

// run makes a fork, has one of the two sites give way, and returns the site that is primary then.
func (f *forkRound) run() (primary, secondary *testSite, full bool) {
	t := f.t
	t.Helper()
	a, b := f.a, f.b
	writeSome(t, a.group("shop"), f.rng, 1+f.rng.IntN(40))
	if f.rng.IntN(2) == 0 {
		caughtUp(t, a.group("shop"), b)
	}
	a.net.Cut(a.name)
	eventually(t, "the link is cut", func() bool { return !a.group("shop").Status().Connected })
	if !b.group("shop").Status().Promotable {
		t.Fatalf("%s cannot be promoted: %v", b.name, b.group("shop").Status())
	}
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	writeSome(t, a.group("shop"), f.rng, 1+f.rng.IntN(60))
	writeSome(t, b.group("shop"), f.rng, 1+f.rng.IntN(60))
	f.disturb(a)
	f.disturb(b)
	a.net.Heal(a.name)
	loser, winner := a, b
	if f.rng.IntN(3) == 0 {
		loser, winner = b, a
	}
	awaitFork(t, loser)
	before := len(tailsOf(t, loser))
	had := hashes(t, loser.group("shop"))
	f.yieldThroughKills(loser, winner)
	writeSome(t, winner.group("shop"), f.rng, f.rng.IntN(20))
	caughtUp(t, winner.group("shop"), loser)
	if got, want := hashes(t, loser.group("shop")), hashes(t,
		winner.group("shop")); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s has %v, %s has %v", loser.name, got, winner.name, want)
	}
	tails := tailsOf(t, loser)
	if len(tails) != before+1 {
		t.Fatalf("%d tails at %s, there were %d", len(tails), loser.name, before)
	}
	if got := tailHashes(t, loser, tails[0]); fmt.Sprint(got) != fmt.Sprint(had) {
		t.Fatalf("the tail of %s has %v, the site had %v", loser.name, got, had)
	}
	y := loser.group("shop").Status().Yield
	return winner, loser, y != nil && y.All
}

// Forks, one behind the other and in both directions, with kills and power losses at random instants. After each of
// them both sites are the same, and every tail is there. Some rounds are followed by a planned move.
func TestForksInARow(t *testing.T) {
	rounds := 10
	if testing.Short() {
		rounds = 4
	}
	for _, reflink := range []bool{true, false} {
		t.Run(fmt.Sprintf("reflink=%v", reflink), func(t *testing.T) {
			rng := seeded(t)
			_, a, b := pair(t)
			a.fs.SetReflink(reflink)
			b.fs.SetReflink(reflink)
			g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
			writeSome(t, g, rng, 40)
			caughtUp(t, g, b)
			full := 0
			for range rounds {
				f := &forkRound{t: t, rng: rng, a: a, b: b}
				var all bool
				if a, b, all = f.run(); all {
					full++
				}
				if rng.IntN(3) == 0 {
					if _, err := a.group("shop").Relocate(within(t, patience)); err != nil {
						t.Fatal(err)
					}
					a, b = b, a
				}
			}
			t.Logf("%d forks, %d with a full copy", rounds, full)
		})
	}
}

// Power fails before each disk operation of a yield, at the site that gives way. A repetition completes it: the site is
// the same as its peer, and the tail has all that was written.
func TestPowerLossWhileYielding(t *testing.T) {
	if testenv.Race {
		t.Skip("timing under the race detector adds nothing")
	}
	rng := seeded(t)
	_, a, b, _ := forkedPair(t, rng, true)
	had := hashes(t, a.group("shop"))
	a.kill()
	stride := 1 + rng.IntN(3)
	if testing.Short() {
		stride = 11
	}
	b.kill()
	origin, peer := a.fs, b.fs
	for step := 1; ; step += stride {
		a.fs = origin.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100, RNG: rng})
		b.fs = peer.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100, RNG: rng})
		left, lost := step, false
		var clone *vfs.MemFS
		a.before = func(op vfs.Op, _ string) {
			switch op {
			case vfs.OpOpen, vfs.OpStat, vfs.OpReadDir, vfs.OpRead, vfs.OpSize, vfs.OpNextData, vfs.OpSpace:
				return
			}
			if left--; left == 0 {
				clone, lost = a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(3) * 50, RNG: rng}), true
			}
		}
		hook := a.before
		a.before = nil
		a.open()
		b.open()
		awaitFork(t, a)
		a.kill()
		a.before = serialized(hook)
		a.open()
		_, _ = a.group("shop").Yield(t.Context())
		caughtUp(t, b.group("shop"), a)
		a.kill()
		a.before = nil
		if !lost {
			t.Logf("%d steps, every %d. tried", step, stride)
			a.open()
			return
		}
		a.fs = clone
		a.open()
		eventually(t, "the yield is complete", func() bool {
			_, err := a.group("shop").Yield(t.Context())
			return err == nil && a.group("shop").Status().Role == core.RoleSecondary
		})
		caughtUp(t, b.group("shop"), a)
		if got, want := hashes(t, a.group("shop")), hashes(t, b.group("shop")); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("power loss before step %d: the sites differ", step)
		}
		tails := tailsOf(t, a)
		if len(tails) != 1 {
			t.Fatalf("power loss before step %d: %d tails", step, len(tails))
		}
		if got := tailHashes(t, a, tails[0]); fmt.Sprint(got) != fmt.Sprint(had) {
			t.Fatalf("power loss before step %d: the tail has other content", step)
		}
		a.kill()
		b.kill()
	}
}

// serialized makes a hook one that several goroutines can call.
func serialized(hook func(op vfs.Op, name string)) func(op vfs.Op, name string) {
	var mu sync.Mutex
	return func(op vfs.Op, name string) {
		mu.Lock()
		defer mu.Unlock()
		hook(op, name)
	}
}
