package replication

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// countedDialer counts the calls that a site makes by itself.
type countedDialer struct {
	link.Dialer
	calls *atomic.Int64
}

func (d countedDialer) Dial(ctx context.Context, peer, address string) (link.Stream, error) {
	d.calls.Add(1)
	return d.Dialer.Dial(ctx, peer, address)
}

// Two primaries that turn each other away call again when their time has come, not when the other one calls. The
// time here is an hour, so that every further call is one too many.
func TestDivergedPrimariesKeepTheirBackoff(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	calls := map[string]*atomic.Int64{"a": {}, "b": {}}
	site := func(name string) *testSite {
		return newTestSite(t, net, name, func(c *Config) {
			c.Dialer, c.RedialInterval = countedDialer{c.Dialer, calls[name]}, time.Hour
		})
	}
	a, b := site("a"), site("b")
	ga := a.createGroup("g", "b", 1, 1<<20, nil)
	caughtUp(t, ga, b)
	net.Cut("b")
	if _, err := b.group("g").Promote(true); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*testSite{a, b} {
		v, err := s.group("g").Attach("v0")
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, v, 0, block(1, 4096))
		mustFlush(t, v)
	}
	net.Heal("b")
	// Each calls the other once more, as it does when it starts, and learns of the divergence.
	for _, s := range []*testSite{a, b} {
		s.restart()
		g := s.group("g")
		eventually(t, s.name+" was turned away", func() bool { return g.shipper.linkDown.Load() != nil })
	}
	before := calls["a"].Load() + calls["b"].Load()
	for range 20 {
		callByHand(t, a, b)
		callByHand(t, b, a)
	}
	if n := calls["a"].Load() + calls["b"].Load() - before; n != 0 {
		t.Errorf("the sites called each other %d times in answer to each other's calls", n)
	}
}

// callByHand makes the call that from would make to the other site, and waits until it was turned away.
func callByHand(t *testing.T, from, to *testSite) {
	t.Helper()
	stream, err := from.net.Dialer(from.name).Dial(t.Context(), to.name, "memory")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	g := from.group("g")
	hello := g.shipper.hello(core.SendHello{Durable: g.journal.Durable()})
	if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	if answer, err := stream.Recv(); err != nil || answer.GetRefusal() == nil {
		t.Fatalf("%s answers %s with %v, %v; want a refusal", to.name, from.name, answer, err)
	}
}
