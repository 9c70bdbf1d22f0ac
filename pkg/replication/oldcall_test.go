package replication

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// TestOldCall: a group is moved to b and back. A call of a's from before the move reaches b when b has given the role
// up again: b must not follow it, or both would be secondaries and wait for each other's call.
func TestOldCall(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	ga := a.createGroup("g", "b", 1, 1<<20, nil)
	gb := caughtUp(t, ga, b)
	old := proto.CloneOf(ga.shipper.hello(core.SendHello{Durable: ga.journal.Durable()}))
	move := func(from, to *Group) {
		t.Helper()
		if _, err := from.Demote(); err != nil {
			t.Fatal(err)
		}
		var err error
		eventually(t, "the copy is promoted as planned", func() bool { _, err = to.Promote(false); return err == nil })
	}
	move(ga, gb)
	eventually(t, "a follows b", func() bool { return role(ga) == core.RoleSecondary && gb.Status().State == "streaming" })
	if _, err := gb.Demote(); err != nil {
		t.Fatal(err)
	}
	stream, err := net.Dialer("a").Dial(t.Context(), "b", "memory")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: old}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil || answer.GetRefusal().GetReason() != linkpb.Refusal_REASON_NOT_SECONDARY {
		t.Errorf("b answers a stale call with %v, %v", answer, err)
	}
	stream.Close()
	if !role(gb).Ships() {
		t.Fatal("b has followed a stale call; no site is primary")
	}
	eventually(t, "a takes over again", func() bool { _, err := ga.Promote(false); return err == nil })
	eventually(t, "b follows", func() bool { return ga.Status().State == "streaming" && role(gb) == core.RoleSecondary })
	// The term is on disk: a process that starts knows it.
	for _, s := range []*testSite{a, b} {
		s.restart()
		if term := s.group("g").core.Meta.Term; term != 2 {
			t.Errorf("%s knows term %d after two moves", s.name, term)
		}
	}
}
