package datapath

import (
	"context"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// The tests of this file show that the others can fail: with a deliberate fault built in, what they look at is wrong.

// quiet is how long a healthy load is never without a completed flush.
const quiet = 5 * time.Second

// newFaultyPair starts two sites whose processes have a fault. A load on them may never end by itself.
func newFaultyPair(t *testing.T, ctx context.Context, fault bug.Name) *testsite.Pair {
	t.Helper()
	t.Setenv("SLIPSTREAM_BUG", string(fault))
	return newPairOf(t, ctx, buildFaultyCommands)
}

func TestCatchesWritersThatWaitForTheLink(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p := newFaultyPair(t, ctx, bug.StallOnLink)
	proxy, err := linktest.NewProxy("127.0.0.1:0", p.B.Config.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "cut",
		Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), RemoteAddress: new(proxy.Addr()),
			JournalSizeBytes: new(int64(64 << 20))},
	})
	_, dev := blockVolume(t, ctx, p.A, "cut", "cut", 64<<20, "flush")
	load := startLoad(t, dev, 64<<20)
	defer load.end(t)
	caughtUpSoon(t, ctx, p, "cut")
	if load.measure(quiet) == 0 {
		t.Fatal("the load does not run while the link is up")
	}
	proxy.Cut()
	load.measure(time.Second) // what was acknowledged before
	if rate := load.measure(quiet); rate != 0 {
		t.Errorf("%.0f writes/s during a cut although writers wait for the link: the test of G2 would not notice", rate)
	}
	proxy.Heal()
}

func TestCatchesRequestsThatAreNotResent(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p := newFaultyPair(t, ctx, bug.NoResend)
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "kill", Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
	})
	_, dev := blockVolume(t, ctx, p.A, "kill", "kill", 64<<20, "flush")
	load := startLoad(t, dev, 64<<20)
	defer load.abandon()
	caughtUpSoon(t, ctx, p, "kill")
	// A kill is noticed if the replicator had taken a request at that moment and not answered it. On a busy machine it
	// seldom has: requests then wait for a processor. So it is killed as often as there is time for.
	killed := 0
	for began := time.Now(); time.Since(began) < time.Minute; killed++ {
		if err := p.A.Replicator().Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.A.LaunchReplicator(); err != nil {
			t.Fatal(err)
		}
		if err := p.A.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		if !load.goesOn(quiet) {
			return // what was in flight at the kill is lost: the load hangs forever
		}
	}
	t.Errorf("the load outlived %d kills although nothing is resent: the test of G5 would not notice", killed)
}

// TestCatchesADeadKeeper shows that the keeper is what carries a volume over the death of the others: dead with the
// replicator, the load does not go on.
func TestCatchesADeadKeeper(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "kill", Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
	})
	_, dev := blockVolume(t, ctx, p.A, "kill", "kill", 64<<20, "flush")
	load := startLoad(t, dev, 64<<20)
	defer load.abandon()
	caughtUpSoon(t, ctx, p, "kill")
	if err := p.A.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.A.Start(ctx); err != nil {
		t.Fatal(err)
	}
	load.measure(time.Second) // what was acknowledged before
	if rate := load.measure(quiet); rate != 0 {
		t.Errorf("%.0f writes/s although the keeper died with the replicator: the test of G5 shows nothing about it", rate)
	}
}
