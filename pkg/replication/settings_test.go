package replication

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func settings(g *Group) core.Settings {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Settings
}

func mustModify(t *testing.T, g *Group, c Change) {
	t.Helper()
	if err := g.Modify(c); err != nil {
		t.Fatal(err)
	}
}

// load writes and flushes random blocks to every member until stop is called, which returns what each volume must hold.
// An error of any write or flush fails the test.
func load(t *testing.T, g *Group, seed uint64) (stop func() map[string][]byte) {
	t.Helper()
	ended, done := make(chan struct{}), make(chan map[string][]byte)
	go func() {
		rng := rand.New(rand.NewPCG(seed, 1))
		want := map[string][]byte{}
		for _, v := range g.Volumes() {
			p := make([]byte, v.Size())
			if _, err := v.ReadAt(p, 0); err != nil {
				t.Error(err)
			}
			want[v.ID()] = p
		}
		for n := 0; ; n++ {
			select {
			case <-ended:
				done <- want
				return
			case <-time.After(2 * time.Millisecond): // a copy has to be able to catch up
			}
			for _, v := range g.Volumes() {
				p := block(byte(rng.IntN(256)), 4096*(1+rng.IntN(4)))
				off := rng.Int64N(v.Size()/4096)*4096 - int64(len(p))
				off = max(0, off)
				if _, err := v.WriteAt(p, off); err != nil {
					t.Error(err)
				}
				copy(want[v.ID()][off:], p)
				if n%4 == 0 {
					if err := v.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		}
	}()
	return func() map[string][]byte { close(ended); return <-done }
}

// Every setting is changed under load, several times; no write fails, and the copy ends up the same.
func TestModifyUnderLoad(t *testing.T) {
	net, a, b := pair(t)
	c := newTestSite(t, net, "site-c", nil)
	g := a.createGroup("shop", "site-b", 2, 1<<20, func(s *GroupSpec) { s.JournalSizeBytes = 64 << 20 })
	stop := load(t, g, 1)
	caughtUpNow := func(s *testSite) { // the stream goes on: under load there is no standstill to wait for
		t.Helper()
		eventually(t, "the copy is whole", func() bool {
			gs, err := s.site.Group("shop")
			return err == nil && gs.Status().Promotable && g.Status().State == "streaming"
		})
	}
	caughtUpNow(b)
	for _, change := range []Change{
		func(s *core.Settings) { s.JournalSizeBytes = MinJournalBytes },
		func(s *core.Settings) { s.JournalFull = core.PolicyStall },
		func(s *core.Settings) { s.JournalSizeBytes, s.JournalFull = 128<<20, core.PolicyTrack },
		func(s *core.Settings) { s.RPOTargetMillis, s.ShipBytesPerSecond = 60_000, core.MinShipBytesPerSecond },
		func(s *core.Settings) { s.ShipBytesPerSecond = 0 },
		func(s *core.Settings) { s.PeerAddress = "elsewhere" },
		func(s *core.Settings) { s.SetPeer("") },
		func(s *core.Settings) { s.SetPeer("site-c") },
	} {
		mustModify(t, g, change)
		mustModify(t, g, change) // once more is no error
		time.Sleep(20 * time.Millisecond)
	}
	caughtUpNow(c)
	mustModify(t, g, func(s *core.Settings) { s.SetPeer("site-b"); s.JournalSizeBytes = MinJournalBytes })
	caughtUpNow(b)
	want := stop()
	gb := caughtUp(t, g, b)
	sameContent(t, g, gb)
	for id, p := range want {
		if !bytes.Equal(content(t, volumeOf(t, g, id)), p) {
			t.Errorf("volume %s is not what was written", id)
		}
		if rec, err := a.pool.Get(id); err != nil || rec.Remote != "site-b" {
			t.Errorf("%v, %v", rec, err)
		}
	}
	if got := settings(gb); got.JournalSizeBytes != MinJournalBytes || got.RPOTargetMillis != 60_000 {
		t.Errorf("the secondary has %+v", got)
	}
	eventually(t, "the journal has its new size", func() bool {
		return g.journal.TotalBytes() <= MinJournalBytes && gb.journal.TotalBytes() <= MinJournalBytes
	})
}

func TestModifyRefuses(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	gb := caughtUp(t, g, b)
	for _, tc := range []struct {
		name   string
		group  *Group
		change Change
		want   error
	}{
		{"small journal", g, func(s *core.Settings) { s.JournalSizeBytes = MinJournalBytes - 1 }, ErrInvalid},
		{"itself", g, func(s *core.Settings) { s.SetPeer("site-a") }, ErrInvalid},
		{"slow", g, func(s *core.Settings) { s.ShipBytesPerSecond = 1 }, ErrInvalid},
		{"negative target", g, func(s *core.Settings) { s.RPOTargetMillis = -1 }, ErrInvalid},
		{"no such policy", g, func(s *core.Settings) { s.JournalFull = core.Policy("x") }, ErrInvalid},
		{"address of no peer", g, func(s *core.Settings) { s.SetPeer(""); s.PeerAddress = "there" }, ErrInvalid},
		{"stall without a peer", g, func(s *core.Settings) { s.SetPeer(""); s.JournalFull = core.PolicyStall },
			core.ErrPrecondition},
		{"remote of a secondary", gb, func(s *core.Settings) { s.SetPeer("site-c") }, core.ErrPrecondition},
		{"journal of a secondary", gb, func(s *core.Settings) { s.JournalSizeBytes = 8 << 20 }, core.ErrPrecondition},
		{"target of a secondary", gb, func(s *core.Settings) { s.RPOTargetMillis = 1000 }, core.ErrPrecondition},
	} {
		before := settings(tc.group)
		if err := tc.group.Modify(tc.change); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got := settings(tc.group); got != before {
			t.Errorf("%s: changed to %+v", tc.name, got)
		}
	}
	// What counts once it is promoted can be set.
	mustModify(t, gb, func(s *core.Settings) { s.JournalFull, s.ShipBytesPerSecond = core.PolicyStall, 1<<20 })
	spare := a.createGroup("spare", "site-b", 0, 0, nil)
	if _, err := spare.Demote(); err != nil {
		t.Fatal(err)
	}
	if err := spare.Modify(func(s *core.Settings) { s.SetPeer("") }); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("a demoted group: %v", err)
	}
	// The peer was promoted in its place: it may not be forgotten here.
	net.Cut("site-a")
	if _, err := gb.Promote(true); err != nil {
		t.Fatal(err)
	}
	net.Heal("site-a")
	eventually(t, "the old primary knows", func() bool { return g.Status().State == "diverged" })
	if err := g.Modify(func(s *core.Settings) { s.SetPeer("") }); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("a group that was superseded: %v", err)
	}
}

// A site that had a whole copy, was left out and is the peer again gets what was written meanwhile, though none of that
// is in the journal any more.
func TestRemoteComesBack(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 1<<20))
	mustFlush(t, v)
	gb := caughtUp(t, g, b)
	mustModify(t, g, func(s *core.Settings) { s.SetPeer("") })
	if s := g.Status(); s.State != "idle" || s.Connected {
		t.Fatalf("%s, connected %v", s.State, s.Connected)
	}
	last := gb.Status().DurableOrdinal
	for i := range int64(40) { // more than the journal holds
		mustWrite(t, v, 0, block(byte(i), 256<<10))
		mustFlush(t, v)
	}
	if err := g.applier.applyAll(g.ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the journal let go", func() bool { return g.log.retained() > last+1 })
	if got := gb.Status().DurableOrdinal; got != last {
		t.Fatalf("the old peer has ordinal %d, it was left at %d", got, last)
	}
	a.restart()
	g = a.group("shop")
	mustModify(t, g, func(s *core.Settings) { s.SetPeer("site-b") })
	sameContent(t, g, caughtUp(t, g, b))
}

// The bound holds over any time, and a group is not slower than it is told to be.
func TestShipRate(t *testing.T) {
	const rate = 1 << 20
	for name, set := range map[string]func(*core.Settings){
		"rate":     func(s *core.Settings) { s.ShipBytesPerSecond = rate },
		"schedule": func(s *core.Settings) { s.ShipBytesPerSecond, s.ShipSchedule = 1<<30, "*=1MiB" },
	} {
		t.Run(name, func(t *testing.T) { testShipRate(t, rate, set) })
	}
}

func testShipRate(t *testing.T, rate float64, set func(*core.Settings)) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 4<<20, nil)
	caughtUp(t, g, b)
	mustModify(t, g, set)
	net.Cut("site-a")
	v := volumeOf(t, g, "v0")
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range int64(12) { // 3 MiB that do not compress, in 12 records
		p := make([]byte, 256<<10)
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		mustWrite(t, v, i<<18, p)
	}
	mustFlush(t, v)
	_, before := g.ShippedBytes()
	start := monotonicNanos()
	net.Heal("site-a")
	caughtUp(t, g, b)
	elapsed := time.Duration(monotonicNanos() - start)
	_, after := g.ShippedBytes()
	// The last batch, of at most batchBytes and a record, is sent on credit.
	paid := float64(after-before) - batchBytes - maxWriteBytes
	if least := time.Duration(paid / rate * 1e9); elapsed < least-shipBurst {
		t.Fatalf("%d bytes in %v: at %v bytes/s they take %v at least", after-before, elapsed, rate, least)
	}
	if after-before < 3<<20 {
		t.Fatalf("only %d bytes were sent", after-before)
	}
	// Lifted while it is owed.
	mustModify(t, g, func(s *core.Settings) {
		s.ShipBytesPerSecond, s.ShipSchedule = core.MinShipBytesPerSecond, ""
	})
	mustWrite(t, v, 0, block('x', 1<<20))
	mustFlush(t, v)
	mustModify(t, g, func(s *core.Settings) { s.ShipBytesPerSecond = 0 })
	caughtUp(t, g, b)
}

func TestRPOTarget(t *testing.T) {
	var skew atomic.Int64
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	clock := func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(skew.Load())) } }
	a, b := newTestSite(t, net, "site-a", clock), newTestSite(t, net, "site-b", clock)
	g := a.createGroup("shop", "site-b", 1, 1<<20, func(s *GroupSpec) { s.RPOTargetMillis = 3_600_000 })
	gb := caughtUp(t, g, b)
	eventually(t, "the secondary has heard of its primary", func() bool { return !gb.Status().Lagging })
	if s := g.Status(); s.Lagging || s.RPOTargetMillis != 3_600_000 || gb.Status().RPOTargetMillis != 3_600_000 {
		t.Fatal(s)
	}
	net.Cut("site-a")
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	if g.Status().Lagging {
		t.Fatal("lagging at once")
	}
	skew.Store(int64(2 * time.Hour))
	if !g.Status().Lagging || !gb.Status().Lagging {
		t.Fatalf("two hours behind: primary says %v, secondary %v", g.Status().Lagging, gb.Status().Lagging)
	}
	mustModify(t, g, func(s *core.Settings) { s.RPOTargetMillis = 3 * 3_600_000 })
	if g.Status().Lagging {
		t.Fatal("beyond a target of three hours")
	}
	mustModify(t, g, func(s *core.Settings) { s.SetPeer("") })
	if g.Status().Lagging {
		t.Fatal("lagging without a peer")
	}
	mustModify(t, g, func(s *core.Settings) { s.SetPeer("site-c") })
	if !g.Status().Lagging {
		t.Fatal("no copy at all, and not beyond its target")
	}
	mustModify(t, g, func(s *core.Settings) { s.RPOTargetMillis = 0 })
	if g.Status().Lagging {
		t.Fatal("lagging without a target")
	}
}

// A power loss at any operation while settings change leaves the old ones or the new ones, and everything that was
// flushed; the change can be repeated. Once Modify has returned, it leaves the new ones.
func TestCrashWhileModifying(t *testing.T) {
	rng := seeded(t)
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	m := &moves{t: t, rng: rng, want: map[string][]byte{"v0": make([]byte, movedBytes)}}
	fast := func(c *Config) { c.ApplyInterval = time.Hour }
	m.a = &testSite{t: t, name: "site-a", fs: vfs.NewMem(), net: net, conf: fast, before: m.before("at site-a")}
	m.a.open()
	t.Cleanup(m.a.kill)
	m.b = newTestSite(t, net, "site-b", nil)
	newTestSite(t, net, "site-c", nil)
	g := m.a.createGroup("shop", "site-b", 1, movedBytes, func(s *GroupSpec) { s.JournalSizeBytes = 16 << 20 })
	m.write(volumeOf(t, g, "v0"), "v0", 0, 1)
	caughtUp(t, g, m.b)
	type crash struct {
		moment
		old, next core.Settings
		change    Change
	}
	var seen []crash
	for i, change := range []Change{
		func(s *core.Settings) { s.JournalSizeBytes, s.RPOTargetMillis = MinJournalBytes, 5000 },
		func(s *core.Settings) { s.SetPeer("site-c"); s.ShipBytesPerSecond = 1 << 20 },
		func(s *core.Settings) { s.SetPeer(""); s.JournalSizeBytes = 32 << 20 },
		func(s *core.Settings) { s.SetPeer("site-b"); s.JournalFull = core.PolicyStall },
	} {
		m.write(volumeOf(t, g, "v0"), "v0", int64(i)*4096, byte(10+i))
		old := settings(g)
		m.arm(true)
		if err := g.Modify(change); err != nil {
			t.Fatal(err)
		}
		m.arm(false)
		next := settings(g)
		for _, at := range m.seen {
			seen = append(seen, crash{at, old, next, change})
		}
		m.seen = nil
		// After it has returned only the new ones are right.
		seen = append(seen, crash{moment{
			a:    m.a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 0, RNG: rng}),
			want: map[string][]byte{"v0": bytes.Clone(m.want["v0"])}, step: fmt.Sprintf("after change %d", i),
		}, next, next, change})
	}
	if len(seen) < 20 {
		t.Fatalf("only %d crashes", len(seen))
	}
	t.Logf("%d crashes", len(seen))
	m.a.kill()
	alone := link.NewNetwork(nil)
	defer alone.Close()
	for _, at := range seen {
		a := &testSite{t: t, name: "site-a", fs: at.a, net: alone}
		a.open()
		if broken := a.site.Broken(); len(broken) > 0 {
			t.Fatalf("%s: %v", at.step, broken)
		}
		g := a.group("shop")
		if got := settings(g); got != at.old && got != at.next {
			t.Fatalf("%s: settings %+v, were %+v or %+v", at.step, got, at.old, at.next)
		}
		if err := g.Modify(at.change); err != nil {
			t.Fatalf("%s: %v", at.step, err)
		}
		if got := settings(g); got != at.next {
			t.Fatalf("%s: settings %+v, want %+v", at.step, got, at.next)
		}
		if rec, err := a.pool.Get("v0"); err != nil || rec.Remote != at.next.Peer {
			t.Fatalf("%s: %+v, %v", at.step, rec, err)
		}
		if !bytes.Equal(content(t, volumeOf(t, g, "v0")), at.want["v0"]) {
			t.Fatalf("%s: the volume differs from what was flushed", at.step)
		}
		a.kill()
	}
}
