package replication

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A group moves to its peer and home again. Nothing is copied for it, and it takes less than a second.
func TestRelocate(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 20)
	caughtUp(t, g, b)
	for range 3 {
		for _, from := range []*testSite{a, b} {
			to := b
			if from == b {
				to = a
			}
			writeSome(t, from.group("shop"), rng, 5)
			shipped, _ := to.group("shop").ShippedBytes()
			moved, err := from.group("shop").Relocate(within(t, patience))
			if err != nil {
				t.Fatal(err)
			}
			if role(to.group("shop")) != core.RolePrimary || role(from.group("shop")) != core.RoleSecondary {
				t.Fatalf("roles %s and %s", role(to.group("shop")), role(from.group("shop")))
			}
			if again, err := from.group("shop").Relocate(within(t, patience)); err != nil || again.Took != 0 {
				t.Fatalf("repeated: %+v, %v", again, err)
			}
			caughtUp(t, to.group("shop"), from)
			sameContent(t, to.group("shop"), from.group("shop"))
			if now, _ := to.group("shop").ShippedBytes(); now-shipped > 64<<10 {
				t.Errorf("%d bytes were copied", now-shipped)
			}
			if moved.Took > time.Second {
				t.Errorf("it took %v", moved.Took)
			}
			t.Logf("relocated from %s in %v", from.name, moved.Took)
		}
	}
}

// Before the peer can take over nothing is changed; a peer that refuses leaves a demoted group that can be taken back
// without force.
func TestRelocateRefused(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	refusal := errors.New("the backup site is being upgraded")
	b.conf = func(c *Config) { c.TakeOver = func(string) error { return refusal } }
	b.restart()
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 20)
	caughtUp(t, g, b)
	if _, err := g.Attach("v0"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Relocate(within(t, patience)); !errors.Is(err,
		core.ErrPrecondition) || !strings.Contains(err.Error(), "v0") {
		t.Fatalf("with an attached volume: %v", err)
	}
	if err := g.Detach("v0"); err != nil {
		t.Fatal(err)
	}
	net.Cut("site-b")
	eventually(t, "the stream has ended", func() bool { return !g.Status().Connected })
	_, err := g.Relocate(within(t, 50*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || role(g) != core.RolePrimary {
		t.Fatalf("without a link: %v; the role is %s", err, role(g))
	}
	net.Heal("site-b")
	_, err = g.Relocate(within(t, patience))
	if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), refusal.Error()) {
		t.Fatalf("refused: %v", err)
	}
	if role(g) != core.RoleDemoted {
		t.Fatalf("the role is %s", role(g))
	}
	timelines := len(g.core.Meta.Timelines)
	if _, err := g.PromoteWithin(within(t, patience), false); err != nil {
		t.Fatal(err)
	}
	if role(g) != core.RolePrimary || len(g.core.Meta.Timelines) != timelines {
		t.Fatalf("taken back as %s with %d timelines", role(g), len(g.core.Meta.Timelines))
	}
	// The peer does not believe in the demotion any more.
	if _, err := b.group("shop").PromoteWithin(within(t, patience), false); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("promoted after the demotion was taken back: %v", err)
	}
	writeSome(t, g, rng, 5)
	caughtUp(t, g, b)
	sameContent(t, g, b.group("shop"))
	refusal = nil
	b.conf = nil
	b.restart()
	if _, err := g.Relocate(within(t, patience)); err != nil {
		t.Fatal(err)
	}
}

// A script that demotes one site and promotes the other works the first time. A promotion of a peer that was not
// demoted is refused at once, whatever it may wait for.
func TestDemoteAndPromote(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	for range 10 {
		writeSome(t, g, rng, 5)
		caughtUp(t, g, b)
		began := time.Now()
		_, err := b.group("shop").PromoteWithin(within(t, patience), false)
		if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "`slipctl group demote shop` at "+
			""+a.name) {
			t.Fatalf("not demoted: %v", err)
		}
		if took := time.Since(began); took > patience/2 {
			t.Fatalf("it took %v to refuse", took)
		}
		writeSome(t, g, rng, 50)
		if _, err := g.Demote(); err != nil {
			t.Fatal(err)
		}
		if _, err := b.group("shop").PromoteWithin(within(t, patience), false); err != nil {
			t.Fatal(err)
		}
		a, b, g = b, a, b.group("shop")
	}
}

// A relocation that its caller gives up, anywhere, goes on when it is repeated, or is taken back.
func TestRelocateInterrupted(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	moved, back := 0, 0
	for range 60 {
		writeSome(t, g, rng, 3)
		caughtUp(t, g, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(4000))*time.Microsecond)
		_, err := g.Relocate(ctx)
		cancel()
		if rng.IntN(4) == 0 {
			a.restart()
			g = a.group("shop")
		}
		if err != nil && rng.IntN(2) == 0 {
			// What was asked for may still happen.
			_, err := g.PromoteWithin(within(t, patience), false)
			if err == nil {
				back++
				continue
			}
			if !errors.Is(err, core.ErrPrecondition) {
				t.Fatal(err)
			}
		}
		if _, err := g.Relocate(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		moved++
		a, b, g = b, a, b.group("shop")
		if role(g) != core.RolePrimary {
			t.Fatalf("%s is %s", a.name, role(g))
		}
	}
	t.Logf("moved %d times, taken back %d times", moved, back)
	if n := len(g.core.Meta.Timelines); n != 1 {
		t.Fatalf("%d timelines: something was forced", n)
	}
}
