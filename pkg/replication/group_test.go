package replication

import (
	"bytes"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

func pair(t *testing.T) (net *link.Network, a, b *testSite) {
	t.Helper()
	net = link.NewNetwork(nil)
	a = newTestSite(t, net, "site-a", nil)
	b = newTestSite(t, net, "site-b", nil)
	t.Cleanup(net.Close)
	return net, a, b
}

func TestVolumeIsADevice(t *testing.T) {
	blockdevtest.Run(t, "journaled", func(t *testing.T, sizeBytes int64) blockdev.Device {
		s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
		g := s.createGroup("shop", "", 1, sizeBytes, nil)
		return volumeOf(t, g, "v0")
	})
}

// Flushed writes survive a power loss; what was not flushed is there wholly or not at all, in order.
func TestFlushSurvivesPowerLoss(t *testing.T) {
	rng := seeded(t)
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	s.createGroup("shop", "", 2, 1<<20, nil)
	want := map[string][]byte{"v0": make([]byte, 1<<20), "v1": make([]byte, 1<<20)}
	for round := range 30 {
		g := s.group("shop")
		for i := range 20 {
			id := []string{"v0", "v1"}[rng.IntN(2)]
			off := int64(rng.IntN(255)) * 4096
			data := block(byte(round*20+i), 4096)
			mustWrite(t, volumeOf(t, g, id), off, data)
			copy(want[id][off:], data)
		}
		mustFlush(t, volumeOf(t, g, "v0")) // one flush covers the group
		s.crash(rng.IntN(101), rng)
		for id, w := range want {
			if !bytes.Equal(content(t, volumeOf(t, s.group("shop"), id)), w) {
				t.Fatalf("round %d: volume %s lost a flushed write", round, id)
			}
		}
	}
}

// A kill of the process loses nothing that was acknowledged, flushed or not.
func TestKillLosesNothing(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) { c.CommitInterval = time.Hour })
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	for i := range 50 {
		mustWrite(t, volumeOf(t, g, "v0"), int64(i)*4096, block(byte(i+1), 4096))
		s.restart()
		g = s.group("shop")
	}
	got := content(t, volumeOf(t, g, "v0"))
	for i := range 50 {
		if got[i*4096] != byte(i+1) || got[i*4096+4095] != byte(i+1) {
			t.Fatalf("write %d is gone", i)
		}
	}
}

// A record that another flush makes durable before its writer has put it into the index is applied all the same. One
// that apply passed over would stay in the index for good, and be gone after the next open.
func TestApplyMissesNoRecord(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) { c.ApplyInterval = time.Hour })
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	data := block('x', 4096)

	// A writer between its two steps.
	g.log.mu.Lock()
	h, loc, err := g.journal.Append(journal.Header{Kind: journal.KindWrite, Volume: v.index, Length: 4096}, data)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Sync(); err != nil {
		t.Fatal(err)
	}
	applied := make(chan error, 1)
	go func() { applied <- g.applier.apply(g.ctx) }()
	select {
	case err = <-applied: // too early, and what comes shows it
		applied <- err
	case <-time.After(50 * time.Millisecond):
	}
	v.indexRecord(h, loc)
	g.log.mu.Unlock()
	if err := <-applied; err != nil {
		t.Fatal(err)
	}
	if err := g.applier.applyAll(g.ctx); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if !bytes.Equal(content(t, volumeOf(t, s.group("shop"), "v0"))[:4096], data) {
		t.Fatal("a durable write is gone")
	}
}

// A group that was opened with everything trimmed goes on applying: its journal no longer knows where it had ended.
func TestAppliesAfterTheJournalWasEmptied(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	for i := range 3 {
		mustWrite(t, volumeOf(t, g, "v0"), int64(i)*4096, block(byte(i+1), 4096))
		mustFlush(t, volumeOf(t, g, "v0"))
		eventually(t, "everything is applied", func() bool { st := g.Status(); return st.AppliedOrdinal == st.HeadOrdinal })
		s.restart() // the segment takes nothing more, so it goes
		g = s.group("shop")
		eventually(t, "the journal is empty", func() bool { return len(g.journal.Segments()) == 0 })
		s.restart()
		g = s.group("shop")
	}
}

func TestReplicatesInOrder(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	rng := seeded(t)
	var wg sync.WaitGroup
	for _, id := range []string{"v0", "v1"} {
		v := volumeOf(t, g, id)
		offsets := rng.Perm(256)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i, o := range offsets {
				if _, err := v.WriteAt(block(byte(i), 4096), int64(o)*4096); err != nil {
					t.Error(err)
				}
				if i%16 == 0 {
					if err := v.Flush(); err != nil {
						t.Error(err)
					}
				}
			}
		}()
	}
	wg.Wait()
	if err := volumeOf(t, g, "v0").Discard(0, 128<<10); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	sameContent(t, g, caughtUp(t, g, b))
}

// A volume with content joins a group: its content is copied while it is written to.
func TestInitialSyncUnderWrites(t *testing.T) {
	_, a, b := pair(t)
	rec := a.createVolume("old", 4<<20)
	image, err := a.pool.OpenImage("old")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(block('x', 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	image.Close()
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	rng := seeded(t)
	for i := range 400 {
		mustWrite(t, volumeOf(t, g, "old"), int64(rng.IntN(1023))*4096, block(byte(i), 4096))
		if i%10 == 0 {
			mustFlush(t, volumeOf(t, g, "old"))
		}
	}
	mustFlush(t, volumeOf(t, g, "old"))
	sameContent(t, g, caughtUp(t, g, b))
}

// The link is down for longer than the journal lasts: writers do not wait, and the change map brings the peer back.
func TestCutLongerThanTheJournal(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 8<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)
	net.Cut("site-a")
	rng := seeded(t)
	for i := range 4000 { // 16 MiB through a journal of 4 MiB
		mustWrite(t, volumeOf(t, g, []string{"v0", "v1"}[i%2]), int64(rng.IntN(2047))*4096, block(byte(i), 4096))
		if i%20 == 0 {
			mustFlush(t, volumeOf(t, g, "v0"))
		}
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	eventually(t, "the journal was folded", func() bool { return g.Status().ChangeMapBytes > 0 })
	if state := b.group("shop").Status(); !state.Promotable {
		t.Fatal("the secondary lost its last good copy by a cut")
	}
	net.Heal("site-a")
	sameContent(t, g, caughtUp(t, g, b))
	if n := g.Status().ChangeMapBytes; n != 0 {
		t.Fatalf("the change map still has %d bytes after the resync", n)
	}
}

func TestStallPolicyWaitsForThePeer(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 8<<20, func(s *GroupSpec) { s.JournalFull = core.PolicyStall })
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)
	net.Cut("site-a")
	done := make(chan error, 1)
	go func() {
		v := volumeOf(t, g, "v0")
		for i := range 4000 { // four times the journal
			if _, err := v.WriteAt(block(byte(i), 4096), int64(i%2000)*4096); err != nil {
				done <- err
				return
			}
			if i%50 == 0 {
				if err := v.Flush(); err != nil {
					done <- err
					return
				}
			}
		}
		done <- v.Flush()
	}()
	eventually(t, "the journal is full",
		func() bool { return g.Status().JournalUsedBytes+g.log.segBytes.Load() >= MinJournalBytes })
	select {
	case err := <-done:
		t.Fatalf("writers did not wait: %v", err)
	default:
	}
	net.Heal("site-a")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	sameContent(t, g, caughtUp(t, g, b))
	if n := g.Status().ChangeMapBytes; n != 0 {
		t.Fatalf("stall folded %d bytes", n)
	}
}

func TestForcedPromotionAndLossReport(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	caughtUp(t, g, b)
	net.Cut("site-a")
	for i := range 7 {
		mustWrite(t, v, int64(i)*4096, block('z', 4096))
	}
	mustFlush(t, v)
	gb := b.group("shop")
	if _, err := gb.Promote(false); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("planned promotion without a demotion: %v", err)
	}
	loss, err := gb.Promote(true)
	if err != nil {
		t.Fatal(err)
	}
	if loss.Exact || loss.RecoveredOrdinal != gb.Status().DurableOrdinal {
		t.Fatalf("loss %+v", loss)
	}
	mustWrite(t, volumeOf(t, gb, "v0"), 8192, block('b', 4096))
	mustFlush(t, volumeOf(t, gb, "v0"))
	net.Heal("site-a")
	eventually(t, "the loss is exact", func() bool { l := gb.Status().Loss; return l != nil && l.Exact })
	if l := gb.Status().Loss; orZero(l.LostOrdinals) != 7 || orZero(l.LostWrites) != 7 || orZero(l.LostBytes) != 7*4096 ||
		l.Partial {
		t.Fatalf("loss %+v, want 7 writes of 4096 bytes", l)
	}
	eventually(t, "the old primary knows", func() bool { return g.Status().State == "diverged" })
	eventually(t, "the new primary knows", func() bool { return gb.Status().State == "diverged" })
	if _, err := gb.Attach("v0"); err != nil {
		t.Fatalf("the new primary's volume cannot be attached because of the old one's history: %v", err)
	}
	if _, err := g.Attach("v0"); !errors.Is(err, ErrNotPrimary) {
		t.Fatalf("attaching at the old primary: %v", err)
	}
	if got := content(t, volumeOf(t, gb, "v0"))[0]; got != 'a' {
		t.Fatalf("the new primary has %q: the old one overwrote it", got)
	}
	if got := content(t, v)[0]; got != 'z' {
		t.Fatalf("the old primary has %q: the new one overwrote it", got)
	}
}

func TestPlannedRelocation(t *testing.T) {
	_, a, b := pair(t)
	ga := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, ga, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	if _, err := ga.Attach("v0"); err != nil {
		t.Fatal(err)
	}
	if _, err := ga.Demote(); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("demotion with an attached volume: %v", err)
	}
	if err := ga.Detach("v0"); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, ga, b)
	if _, err := ga.Demote(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.WriteAt(block('b', 4096), 0); !errors.Is(err, ErrNotPrimary) {
		t.Fatalf("write after demotion: %v", err)
	}
	gb := b.group("shop")
	eventually(t, "the planned promotion is possible", func() bool { _, err := gb.Promote(false); return err == nil })
	mustWrite(t, volumeOf(t, gb, "v0"), 4096, block('c', 4096))
	mustFlush(t, volumeOf(t, gb, "v0"))
	eventually(t, "replication runs the other way", func() bool {
		return role(ga) == core.RoleSecondary && ga.Status().DurableOrdinal == gb.Status().HeadOrdinal
	})
	sameContent(t, gb, ga)
	// And back, after both replicators were restarted.
	a.restart()
	b.restart()
	ga, gb = a.group("shop"), b.group("shop")
	eventually(t, "the link is back", func() bool { return gb.Status().State == "streaming" })
	if _, err := gb.Demote(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the way back is possible", func() bool { _, err := ga.Promote(false); return err == nil })
	mustWrite(t, volumeOf(t, ga, "v0"), 8192, block('d', 4096))
	mustFlush(t, volumeOf(t, ga, "v0"))
	sameContent(t, ga, caughtUp(t, ga, b))
}

func TestFullDisk(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) { c.ApplyInterval = time.Millisecond })
	g := s.createGroup("shop", "", 1, 64<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	eventually(t, "two segments are ready", func() bool { return g.journal.TotalBytes() >= 3*g.log.segBytes.Load() })
	const roomy = 1 << 30
	s.fs.SetCapacity(roomy)
	total, available, err := s.fs.Space("/pool")
	if err != nil {
		t.Fatal(err)
	}
	written := int64(4096)
	s.fs.SetCapacity(total - available + 600<<10)
	var failed error
	for i := int64(1); i < 4096 && failed == nil; i++ {
		if _, failed = v.WriteAt(block(byte(i), 4096), i*4096); failed == nil {
			failed = v.Flush()
		}
		if failed == nil {
			written += 4096
		}
	}
	if !errors.Is(failed, syscall.ENOSPC) {
		t.Fatalf("writing to a full disk: %v", failed)
	}
	check := func() {
		t.Helper()
		got := content(t, volumeOf(t, s.group("shop"), "v0"))
		for i := int64(1); i < written/4096; i++ {
			if got[i*4096] != byte(i) {
				t.Fatalf("acknowledged block %d is gone", i)
			}
		}
	}
	check()
	s.crash(0, nil)
	check()
	s.fs.SetCapacity(roomy)
	v = volumeOf(t, s.group("shop"), "v0")
	eventually(t, "writes succeed again", func() bool { _, err := v.WriteAt(block('!', 4096), 32<<20); return err == nil })
	mustFlush(t, v)
	check()
}

func TestGrowReachesThePeer(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	if err := g.Resize("v0", 2<<20); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, g, "v0"), 2<<20-4096, block('e', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	gb := caughtUp(t, g, b)
	sameContent(t, g, gb)
	rec, err := b.pool.Get("v0")
	if err != nil || rec.SizeBytes != 2<<20 || !rec.Secondary {
		t.Fatalf("the peer's record is %+v, %v", rec, err)
	}
}
