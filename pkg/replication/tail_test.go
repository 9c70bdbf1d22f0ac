package replication

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// TestSlowCountOfTail: an old primary that takes long to count what it wrote past the fork is waited for, as long as
// its stream lives. A new stream takes the place of one that says nothing.
func TestSlowCountOfTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := link.NewNetwork(nil)
		defer net.Close()
		// Nothing but the streams below is to happen in the time that passes.
		idle := func(c *Config) {
			c.CommitInterval, c.ApplyInterval, c.HeartbeatInterval = time.Second, time.Second, time.Second
		}
		a, b := newTestSite(t, net, "a", idle), newTestSite(t, net, "b", idle)
		old := a.createGroup("g", "b", 1, 1<<20, nil)
		v := volumeOf(t, old, "v0")
		mustWrite(t, v, 0, block(1, 4096))
		mustFlush(t, v)
		copied := caughtUp(t, old, b)
		net.Cut("b")
		const lost = 3
		for range lost {
			mustWrite(t, v, 0, block(2, 4096))
		}
		mustFlush(t, v)
		if _, err := copied.Promote(true); err != nil {
			t.Fatal(err)
		}
		defer old.streams.hold()() // the test speaks for the old primary
		net.Heal("b")

		hello := old.shipper.hello(core.SendHello{Durable: old.journal.Durable()})
		refused := func() (link.Stream, uint64) {
			stream := sayHello(t, net, "a", "b", hello)
			answer, err := stream.Recv()
			if err != nil || answer.GetRefusal() == nil {
				t.Fatalf("the old primary hears %v, %v", answer, err)
			}
			return stream, answer.GetRefusal().ForkOrdinal
		}
		silent, _ := refused()
		stream, fork := refused()
		if _, err := silent.Recv(); err == nil {
			t.Error("the first stream was not ended by the second")
		}
		tail, err := old.yields.countTail(t.Context(), fork, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		if loss := copied.Status().Loss; loss == nil || loss.Exact {
			t.Errorf("before the count the loss is %+v", loss)
		}
		message := &linkpb.ToSecondary{Message: &linkpb.ToSecondary_DivergentTail{DivergentTail: countToWire(tail)}}
		if err := stream.Send(message); err != nil {
			t.Fatalf("the stream was ended while the old primary counted: %v", err)
		}
		_, _ = stream.Recv() // the other side ends it
		if loss := copied.Status().Loss; loss == nil || !loss.Exact || *loss.LostWrites != lost {
			t.Errorf("the loss is %+v, want exactly %d writes", loss, lost)
		}
	})
}
