package datapath

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

// G3: the secondary's replicator is killed in the middle of a resync, several times. The copy can be promoted all the
// while, as of the ordinal at which the resync began. Then the primary's site is lost, and the secondary is promoted by
// force, with kills in the middle of that. Its volumes are what they were before the resync, byte for byte.
func TestKillsInAResyncKeepTheLastGoodCopy(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	const (
		sizeBytes = 64 << 20
		volumes   = 2
		kills     = 3
	)
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Minute)
	defer cancel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPair(t, ctx)
	proxy, err := linktest.NewProxy("127.0.0.1:0", p.B.Config.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "shop",
		Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), RemoteAddress: new(proxy.Addr()),
			JournalSizeBytes: new(int64(16 << 20))},
	})
	var list []*testsite.Volume
	var devices, before []string
	for i := range volumes {
		v, dev := blockVolume(t, ctx, p.A, fmt.Sprintf("v%d", i), "shop", sizeBytes, "ack")
		list, devices = append(list, v), append(devices, dev)
		fillDevice(t, dev, sizeBytes, rng)
	}
	caughtUp(t, ctx, p, "shop")
	for _, dev := range devices {
		before = append(before, copyDevice(t, dev))
	}

	proxy.Cut()
	for _, dev := range devices {
		fillDevice(t, dev, sizeBytes, rng) // eight times the journal
	}
	_, err = p.A.Sidecar.ModifyGroup(ctx, &sidecarpb.ModifyGroupRequest{Name: "shop",
		Settings: &sidecarpb.GroupSettings{ShipBytesPerSecond: new(int64(8 << 20))}})
	if err != nil {
		t.Fatal(err)
	}
	proxy.Heal()

	var ordinal uint64
	for i := range kills {
		g, err := p.B.WaitGroup(ctx, "shop", "in the middle of a resync", func(g *sidecarpb.GroupStatus) bool {
			return g.GetBeforeSync().GetKeptBytes() > int64(1+i)*sizeBytes/4
		})
		if err != nil {
			t.Fatal(err)
		}
		if ordinal == 0 {
			ordinal = g.GetBeforeSync().GetOrdinal()
		}
		if !g.GetPromotable() || g.GetBeforeSync().GetOrdinal() != ordinal {
			t.Fatalf("in the middle of a resync that began at ordinal %d: %v", ordinal, g)
		}
		killReplicator(t, ctx, p.B)
	}
	if err := p.A.Kill(); err != nil {
		t.Fatal(err)
	}

	g := promoteWithKills(t, ctx, p.B, rng)
	if got := g.GetLoss().GetRecoveredOrdinal(); got != ordinal || g.GetHeadOrdinal() != ordinal {
		t.Fatalf("promoted at ordinal %d (head %d), the resync began at %d", got, g.GetHeadOrdinal(), ordinal)
	}
	for i, v := range list {
		dev, err := p.B.Mount(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		sameDevices(t, before[i], dev)
	}
}

// fillDevice writes random content to all of a device.
func fillDevice(t *testing.T, dev string, sizeBytes int64, rng *rand.Rand) {
	t.Helper()
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1<<20)
	for off := int64(0); off < sizeBytes; off += int64(len(p)) {
		for i := 0; i < len(p); i += 512 {
			p[i] = byte(rng.Uint32())
		}
		p[0]++
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func killReplicator(t *testing.T, ctx context.Context, s *testsite.Site) {
	t.Helper()
	if err := s.Replicator().Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.LaunchReplicator(); err != nil {
		t.Fatal(err)
	}
	if err := s.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// promoteWithKills promotes a group by force, and kills the replicator a moment after it was asked to, twice.
func promoteWithKills(t *testing.T, ctx context.Context, s *testsite.Site, rng *rand.Rand) *sidecarpb.GroupStatus {
	t.Helper()
	promote := func() error {
		_, err := s.Sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: "shop", Force: true})
		return err
	}
	for range 2 {
		var asked sync.WaitGroup
		asked.Go(func() { _ = promote() }) // its answer may be lost with the process
		time.Sleep(time.Duration(5+rng.IntN(250)) * time.Millisecond)
		killReplicator(t, ctx, s)
		asked.Wait()
	}
	for {
		err := promote()
		if err == nil {
			break
		}
		t.Logf("promotion: %v", err) // the group opens when the promotion that was decided has restored its images
		select {
		case <-ctx.Done():
			t.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	g, err := s.Group(ctx, "shop")
	if err != nil {
		t.Fatal(err)
	}
	return g
}
