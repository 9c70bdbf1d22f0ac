package replication

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
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

// olderPeer is a dialer whose peer is of a release that does not know the request to take over.
type olderPeer struct {
	link.Dialer
	is atomic.Bool
}

func (d *olderPeer) Dial(ctx context.Context, peer, address string) (link.Stream, error) {
	stream, err := d.Dialer.Dial(ctx, peer, address)
	if err != nil {
		return nil, err
	}
	return &olderStream{Stream: stream, peer: d}, nil
}

type olderStream struct {
	link.Stream
	peer *olderPeer
}

func (s *olderStream) Send(m *linkpb.ToSecondary) error {
	q := m.GetRoleRequest()
	if q.GetKind() == linkpb.RoleRequest_KIND_TAKE_OVER && s.peer.is.Load() {
		m = &linkpb.ToSecondary{Message: &linkpb.ToSecondary_RoleRequest{RoleRequest: &linkpb.RoleRequest{Id: q.GetId()}}}
	}
	return s.Stream.Send(m)
}

// Before the peer can take over nothing is changed; a peer that refuses leaves a demoted group that can be taken back
// without force.
func TestRelocateRefused(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	older := &olderPeer{Dialer: net.Dialer(a.name)}
	older.is.Store(true)
	a.conf = func(c *Config) { c.Dialer = older }
	a.restart()
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
	if !errors.Is(err, core.ErrPrecondition) ||
		!strings.Contains(err.Error(), "the release at site-b does not know this request") {
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
	older.is.Store(false)
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
