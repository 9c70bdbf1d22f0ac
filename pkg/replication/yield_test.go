package replication

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const shopBytes = 2 << 20

// forkedPair is a group that both sites wrote to after a forced promotion at b, and found out about it.
func forkedPair(t *testing.T, rng *rand.Rand, reflink bool) (net *link.Network, a, b *testSite, written uint64) {
	t.Helper()
	net, a, b = pair(t)
	a.fs.SetReflink(reflink)
	b.fs.SetReflink(reflink)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 40)
	caughtUp(t, g, b)
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	written = writeSome(t, g, rng, 30) + writeSome(t, b.group("shop"), rng, 20)
	net.Heal("site-a")
	awaitState(t, a, core.StateDiverged)
	return net, a, b, written
}

// writeSome writes pages all over the group, and returns how many bytes that were.
func writeSome(t *testing.T, g *Group, rng *rand.Rand, n int) (bytes uint64) {
	t.Helper()
	for range n {
		v := volumeOf(t, g, fmt.Sprintf("v%d", rng.IntN(2)))
		page := block(byte(1+rng.IntN(255)), 4096)
		mustWrite(t, v, int64(rng.IntN(shopBytes/4096))*4096, page)
		bytes += uint64(len(page))
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	return bytes
}

func awaitState(t *testing.T, s *testSite, state core.State) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s is %s", s.name, state),
		func() bool { return s.group("shop").Status().State == state })
}

// hashes are of the group's volumes as they are read.
func hashes(t *testing.T, g *Group) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for _, v := range g.Volumes() {
		sums[v.ID()] = fmt.Sprintf("%x", sha256.Sum256(content(t, v)))
	}
	return sums
}

// tailHashes are of the images of a tail.
func tailHashes(t *testing.T, s *testSite, tail *TailInfo) map[string]string {
	t.Helper()
	sums := map[string]string{}
	for _, rec := range tail.Snapshots {
		if rec.State != blockdev.SnapshotReady {
			t.Fatalf("snapshot %s of the tail is %s", rec.ID, rec.State)
		}
		path, err := s.pool.SnapshotImagePath(rec.ID)
		if err != nil {
			t.Fatal(err)
		}
		image, err := blockdev.OpenImage(s.fs, path, blockdev.ExpectSize(rec.SizeBytes))
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, rec.SizeBytes)
		if _, err := image.ReadAt(p, 0); err != nil {
			t.Fatal(err)
		}
		_ = image.Close()
		sums[rec.SourceVolumeID] = fmt.Sprintf("%x", sha256.Sum256(p))
	}
	return sums
}

func mustYield(t *testing.T, s *testSite) *core.Yield {
	t.Helper()
	y, err := s.group("shop").Yield(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func tailsOf(t *testing.T, s *testSite) []*TailInfo {
	t.Helper()
	list, err := s.site.Tails("shop")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// An old primary that gives way keeps what it wrote past the fork, and becomes the copy of the other side by what the
// two wrote since, not by a full copy. On file systems with and without shared blocks.
func TestYield(t *testing.T) {
	for _, reflink := range []bool{true, false} {
		t.Run(fmt.Sprintf("reflink=%v", reflink), func(t *testing.T) {
			rng := seeded(t)
			_, a, b, written := forkedPair(t, rng, reflink)
			old := hashes(t, a.group("shop"))
			plan, err := a.group("shop").PlanYield(t.Context())
			if err != nil || plan.Yield.Stage != "" || plan.Tail.Writes != 30 || plan.Tail.Bytes != 30*4096 ||
				len(plan.VolumeIDs) != 2 || plan.SizeBytes != 2*shopBytes {
				t.Fatalf("plan %+v, %v", plan, err)
			}
			y := mustYield(t, a)
			if y == nil || y.Head-y.Fork != 30 || y.All {
				t.Fatalf("yields %+v", y)
			}
			caughtUp(t, b.group("shop"), a)
			sameContent(t, b.group("shop"), a.group("shop"))
			tails := tailsOf(t, a)
			if len(tails) != 1 || tails[0].Writes != 30 || tails[0].Bytes != 30*4096 || tails[0].ForkOrdinal != y.Fork ||
				tails[0].Cut.Ordinal != y.Head {
				t.Fatalf("tails %+v", tails)
			}
			if got := tailHashes(t, a, tails[0]); fmt.Sprint(got) != fmt.Sprint(old) {
				t.Fatalf("the tail has %v, the site had %v", got, old)
			}
			done := a.group("shop").Status().Yield
			if done.Stage != core.YieldDone || done.CopiedBytes == 0 || done.CopiedBytes > 2*written {
				t.Fatalf("copied %d bytes for %d written: %+v", done.CopiedBytes, written, done)
			}
			t.Logf("copied %d bytes for %d written, of volumes of %d bytes", done.CopiedBytes, written, 2*shopBytes)
			// Repeated, and after a restart. The plan of that undoes nothing, and does not look as if it did.
			a.restart()
			if plan, err := a.group("shop").PlanYield(t.Context()); err != nil || plan.Yield.Stage != core.YieldDone {
				t.Fatalf("plan of a yield that is done: %+v, %v", plan, err)
			}
			if y := mustYield(t, a); y != nil {
				t.Fatalf("yields again: %+v", y)
			}
			if _, err := a.fs.Stat(a.group("shop").path(yieldFile)); err == nil {
				t.Error("the list of ranges is left")
			}
			// What b writes goes on to a, and a takes over again.
			writeSome(t, b.group("shop"), rng, 10)
			caughtUp(t, b.group("shop"), a)
			sameContent(t, b.group("shop"), a.group("shop"))
			if err := a.site.DeleteTail(tails[0].ID); err != nil {
				t.Fatal(err)
			}
			if err := a.site.DeleteTail(tails[0].ID); !errors.Is(err, ErrNotFound) {
				t.Fatalf("a second deletion: %v", err)
			}
			if list := tailsOf(t, a); len(list) != 0 {
				t.Fatalf("tails %+v", list)
			}
		})
	}
}

// The old primary hears of the promotion before it writes past the fork, as it does when the link is up. What it writes
// then is undone like any other tail, not by a full copy.
func TestYieldAfterAnIdleContact(t *testing.T) {
	rng := seeded(t)
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 40)
	caughtUp(t, g, b)
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	awaitFork(t, a)
	written := writeSome(t, g, rng, 30) + writeSome(t, b.group("shop"), rng, 20)
	if y := mustYield(t, a); y == nil || y.Head-y.Fork != 30 || y.All {
		t.Fatalf("yields %+v", y)
	}
	caughtUp(t, b.group("shop"), a)
	sameContent(t, b.group("shop"), a.group("shop"))
	y := a.group("shop").Status().Yield
	if y.All || y.CopiedBytes == 0 || y.CopiedBytes > 2*written {
		t.Fatalf("copied %d bytes for %d written: %+v", y.CopiedBytes, written, y)
	}
}

// The site that was promoted gives way to the old primary, which went on.
func TestYieldByThePromotedSite(t *testing.T) {
	rng := seeded(t)
	_, a, b, written := forkedPair(t, rng, true)
	awaitState(t, b, core.StateDiverged)
	kept := hashes(t, b.group("shop"))
	if y := mustYield(t, b); y == nil || y.All {
		t.Fatalf("yields %+v", y)
	}
	caughtUp(t, a.group("shop"), b)
	sameContent(t, a.group("shop"), b.group("shop"))
	if got := tailHashes(t, b, tailsOf(t, b)[0]); fmt.Sprint(got) != fmt.Sprint(kept) {
		t.Fatalf("the tail has %v, the site had %v", got, kept)
	}
	if done := b.group("shop").Status().Yield; done.CopiedBytes > 2*written {
		t.Fatalf("copied %d bytes for %d written", done.CopiedBytes, written)
	}
}

// An old primary that wrote nothing past the fork follows without a tail.
func TestYieldOfNothing(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 10)
	caughtUp(t, g, b)
	if _, err := g.Yield(t.Context()); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("a yield without a fork: %v", err)
	}
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	net.Heal("site-a")
	awaitState(t, a, core.StateDiverged)
	if y := mustYield(t, a); y != nil {
		t.Fatalf("yields %+v", y)
	}
	writeSome(t, b.group("shop"), rng, 10)
	caughtUp(t, b.group("shop"), a)
	sameContent(t, b.group("shop"), a.group("shop"))
	if list := tailsOf(t, a); len(list) != 0 {
		t.Fatalf("tails %+v", list)
	}
}

// Nothing is given up while volumes are attached, nor where the peer is not primary; the messages say who has to do
// what.
func TestYieldRefuses(t *testing.T) {
	rng := seeded(t)
	_, a, _, _ := forkedPair(t, rng, true)
	g := a.group("shop")
	if _, err := g.Reattach("v1"); err != nil {
		t.Fatal(err)
	}
	_, err := g.Yield(t.Context())
	if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "v1") ||
		!strings.Contains(err.Error(), "`slipctl group yield shop` at site-a") {
		t.Fatalf("with an attached volume: %v", err)
	}
	if role(g) != core.RolePrimary {
		t.Fatalf("the role is %s", role(g))
	}
	if err := g.Detach("v1"); err != nil {
		t.Fatal(err)
	}
	// Taken back before anything is undone.
	before := hashes(t, g)
	a.net.Cut("site-a")
	mustYield(t, a)
	if _, err := g.Promote(true); err != nil {
		t.Fatal(err)
	}
	if got := hashes(t, g); fmt.Sprint(got) != fmt.Sprint(before) {
		t.Fatal("the content is another one after a yield that was taken back")
	}
	writeSome(t, g, rng, 1)
}

// Volumes that joined at either site past the fork, both as the same member, and one that left at the site that gives
// way. The site gets all of the peer's; what joined here is a volume without a group again, and in the tail.
func TestYieldWithOtherMembers(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 3, shopBytes, nil)
	writeSome(t, g, rng, 40)
	mustWrite(t, volumeOf(t, g, "v2"), 4096, block('2', 8192))
	mustFlush(t, volumeOf(t, g, "v2"))
	caughtUp(t, g, b)
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	mine, theirs := block('m', 4096), block('t', 4096)
	if err := g.AddVolume(a.contentVolume("mine", shopBytes, mine), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.group("shop").AddVolume(b.contentVolume("theirs", shopBytes, theirs), nil); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v2", nil); err != nil {
		t.Fatal(err)
	}
	if err := a.pool.Delete("v2"); err != nil {
		t.Fatal(err)
	}
	writeSome(t, g, rng, 20)
	writeSome(t, b.group("shop"), rng, 20)
	net.Heal("site-a")
	awaitState(t, a, core.StateDiverged)
	mustYield(t, a)
	caughtUp(t, b.group("shop"), a)
	sameContent(t, b.group("shop"), a.group("shop"))
	for id, want := range map[string][]byte{"theirs": theirs, "v2": append(block(0, 4096), block('2', 8192)...)} {
		if got := content(t, volumeOf(t, a.group("shop"), id)); string(got[:len(want)]) != string(want) {
			t.Errorf("volume %s has other content", id)
		}
	}
	if _, err := a.group("shop").Volume("mine"); !errors.Is(err, ErrNotFound) {
		t.Errorf("volume mine is still a member: %v", err)
	}
	rec, err := a.pool.Get("mine")
	if err != nil || rec.Group != "" || rec.Secondary || rec.Remote != "" {
		t.Errorf("volume mine: %+v, %v", rec, err)
	}
	if tails := tailsOf(t, a); len(tails) != 1 || len(tails[0].Snapshots) != 3 {
		t.Errorf("tails %+v", tails)
	}
	a.restart()
	caughtUp(t, b.group("shop"), a)
	sameContent(t, b.group("shop"), a.group("shop"))
}

// The peer is lost while the site undoes its writes: a forced promotion opens the site with all that it had written.
func TestPromoteWhileUndoing(t *testing.T) {
	rng := seeded(t)
	net, a, b, _ := forkedPair(t, rng, true)
	had := hashes(t, a.group("shop"))
	b.conf = func(c *Config) { c.HeartbeatInterval = time.Hour }
	slow := func(s *core.Settings) { s.ShipBytesPerSecond = core.MinShipBytesPerSecond }
	if err := b.group("shop").Modify(slow); err != nil {
		t.Fatal(err)
	}
	mustYield(t, a)
	eventually(t, "the undoing has begun", func() bool {
		y := a.group("shop").Status().Yield
		return y != nil && (y.Stage == core.YieldUndoing || y.Stage == core.YieldDone)
	})
	net.Cut("site-a")
	if st := a.group("shop").Status(); st.Yield.Stage == core.YieldDone {
		t.Skip("it was undone already")
	} else if !st.Promotable {
		t.Fatalf("not promotable: %v", st)
	}
	if _, err := a.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	if got := hashes(t, a.group("shop")); fmt.Sprint(got) != fmt.Sprint(had) {
		t.Fatal("the site does not open with what it had")
	}
	// And the way back from that.
	writeSome(t, a.group("shop"), rng, 5)
	net.Heal("site-a")
	awaitFork(t, b)
	mustYield(t, b)
	caughtUp(t, a.group("shop"), b)
	sameContent(t, a.group("shop"), b.group("shop"))
}

// Both sites give way at once: each waits for the other's call, and has all that it wrote. When one of them takes the
// yield back, the other follows.
func TestBothYield(t *testing.T) {
	rng := seeded(t)
	net, a, b, _ := forkedPair(t, rng, true)
	awaitFork(t, b)
	net.Cut("site-a")
	hadA, hadB := hashes(t, a.group("shop")), hashes(t, b.group("shop"))
	mustYield(t, a)
	mustYield(t, b)
	net.Heal("site-a")
	time.Sleep(300 * time.Millisecond) // for calls
	if fmt.Sprint(hashes(t, a.group("shop"))) != fmt.Sprint(hadA) || role(a.group("shop")) != core.RoleDemoted {
		t.Fatalf("site-a is %v", a.group("shop").Status())
	}
	if fmt.Sprint(hashes(t, b.group("shop"))) != fmt.Sprint(hadB) || role(b.group("shop")) != core.RoleDemoted {
		t.Fatalf("site-b is %v", b.group("shop").Status())
	}
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, b.group("shop"), a)
	if got := hashes(t, a.group("shop")); fmt.Sprint(got) != fmt.Sprint(hadB) {
		t.Fatal("site-a is not what site-b was")
	}
}

// The disk of a site is put back to the moment before it followed, after the peer was done with it. What the peer had
// sent since is in no list any more: everything is copied.
func TestOldYieldIsCopiedAnew(t *testing.T) {
	rng := seeded(t)
	net, a, b, _ := forkedPair(t, rng, true)
	net.Cut("site-a")
	mustYield(t, a)
	ready := a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100, RNG: rng})
	net.Heal("site-a")
	caughtUp(t, b.group("shop"), a)
	writeSome(t, b.group("shop"), rng, 60)
	caughtUp(t, b.group("shop"), a)
	a.kill()
	a.fs = ready
	a.open()
	caughtUp(t, b.group("shop"), a)
	sameContent(t, b.group("shop"), a.group("shop"))
}

// The site that was promoted wrote nothing, and gives way to the old primary, which went on.
func TestYieldOfAnEmptyTimeline(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 10)
	caughtUp(t, g, b)
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	writeSome(t, g, rng, 10)
	net.Heal("site-a")
	awaitFork(t, b)
	mustYield(t, b)
	caughtUp(t, g, b)
	sameContent(t, g, b.group("shop"))
	if list := tailsOf(t, b); len(list) != 0 {
		t.Fatalf("tails %+v", list)
	}
}

// A sync that the fork interrupted is over when its site has given way: as primary again the site reports none.
func TestYieldEndsTheSync(t *testing.T) {
	rng := seeded(t)
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 40)
	caughtUp(t, g, b)
	net.Cut("site-a")
	if err := g.Modify(func(s *core.Settings) { s.ShipBytesPerSecond = core.MinShipBytesPerSecond }); err != nil {
		t.Fatal(err)
	}
	g.changes.mark(0, 0, shopBytes)
	net.Heal("site-a")
	eventually(t, "a sync runs", func() bool { return orZero(g.Status().SyncTotalBytes) > 0 })
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	writeSome(t, g, rng, 5)
	writeSome(t, b.group("shop"), rng, 5)
	net.Heal("site-a")
	awaitState(t, a, core.StateDiverged)
	mustYield(t, a)
	caughtUp(t, b.group("shop"), a)
	if _, err := b.group("shop").Relocate(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, a.group("shop"), b)
	if st := a.group("shop").Status(); orZero(st.SyncTotalBytes) != 0 {
		t.Errorf("a sync of %d bytes is reported, and none runs: %v", *st.SyncTotalBytes, st)
	}
}
