package replication

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A full copy in the place of what the sites wrote is named with its reason at both sites, and so is the reason in the
// report of a site that gives way. Each cause in docs/limitations.md, "Some forks cost a full copy", has its case.
func TestFullCopyIsNamed(t *testing.T) {
	for _, c := range []struct {
		name, reason string
		// run makes the sites copy everything, and returns who is primary then.
		run func(t *testing.T) (primary, secondary *testSite)
	}{
		{"both began a timeline", "both sites began a timeline of their own", func(t *testing.T) (_, _ *testSite) {
			rng := seeded(t)
			net, a, b := pair(t)
			g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
			writeSome(t, g, rng, 10)
			caughtUp(t, g, b)
			net.Cut("site-a")
			if _, err := g.Demote(); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*testSite{a, b} { // at site-a that takes the demotion back
				if _, err := s.group("shop").Promote(true); err != nil {
					t.Fatal(err)
				}
			}
			writeSome(t, b.group("shop"), rng, 5)
			writeSome(t, a.group("shop"), rng, 5)
			net.Heal("site-a")
			awaitFork(t, a)
			mustYield(t, a)
			return b, a
		}},
		{"the copy of a primary that lost writes", "what site-b holds past the fork came from site-a",
			func(t *testing.T) (_, _ *testSite) {
				rng := seeded(t)
				_, a, b := pair(t)
				g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
				writeSome(t, g, rng, 10)
				caughtUp(t, g, b)
				old := a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100, RNG: rng})
				writeSome(t, g, rng, 10)
				caughtUp(t, g, b)
				a.kill()
				a.fs = old
				a.open()
				awaitState(t, a, core.StateDiverged)
				awaitFork(t, b)
				mustYield(t, b)
				return a, b
			}},
		{"the write at the fork is not known", "the last that both sites have, has left a journal",
			func(t *testing.T) (_, _ *testSite) {
				rng := seeded(t)
				net, a, b := pair(t)
				g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
				writeSome(t, g, rng, 10)
				caughtUp(t, g, b)
				net.Cut("site-a")
				if _, err := b.group("shop").Promote(true); err != nil {
					t.Fatal(err)
				}
				writeSome(t, b.group("shop"), rng, 5)
				for i := range 2 * MinJournalBytes / (64 << 10) { // more than the journal holds
					mustWrite(t, volumeOf(t, g, "v0"), int64(i%16)<<16, block(byte(i), 64<<10))
				}
				mustFlush(t, volumeOf(t, g, "v0"))
				net.Heal("site-a")
				awaitFork(t, a)
				mustYield(t, a)
				return b, a
			}},
		{"the list is lost", "the list of what site-a wrote past the fork is lost", func(t *testing.T) (_, _ *testSite) {
			rng := seeded(t)
			net, a, b, _ := forkedPair(t, rng, true)
			net.Cut("site-a")
			mustYield(t, a)
			list := a.group("shop").path(yieldFile)
			a.kill()
			if err := a.fs.Remove(list); err != nil {
				t.Fatal(err)
			}
			a.open()
			net.Heal("site-a")
			return b, a
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			primary, secondary := c.run(t)
			caughtUp(t, primary.group("shop"), secondary)
			p, s := primary.group("shop").Status(), secondary.group("shop").Status()
			if p.FullCopy != s.FullCopy || !strings.Contains(p.FullCopy, c.reason) {
				t.Errorf("%s says %q, %s says %q", primary.name, p.FullCopy, secondary.name, s.FullCopy)
			}
			if s.Yield == nil || !s.Yield.All || !strings.Contains(s.Yield.Reason, c.reason) {
				t.Errorf("the yield reports %+v", s.Yield)
			}
			sameContent(t, primary.group("shop"), secondary.group("shop"))
			if t.Failed() {
				return
			}
			afterOutage(t, primary, secondary)
		})
	}
}

// afterOutage makes the copy fall behind the journal: what follows is no full copy, and neither site says so any more.
func afterOutage(t *testing.T, primary, secondary *testSite) {
	t.Helper()
	primary.net.Cut(primary.name)
	g := primary.group("shop")
	for i := range 2 * MinJournalBytes / (64 << 10) {
		mustWrite(t, volumeOf(t, g, "v0"), int64(i%16)<<16, block(byte(i), 64<<10))
	}
	mustFlush(t, volumeOf(t, g, "v0"))
	eventually(t, "the journal is folded", func() bool { return g.Status().ChangeMapBytes > 0 })
	primary.net.Heal(primary.name)
	caughtUp(t, g, secondary)
	if p, s := g.Status().FullCopy, secondary.group("shop").Status().FullCopy; p != "" || s != "" {
		t.Errorf("after a resync %s says %q, %s says %q", primary.name, p, secondary.name, s)
	}
}

// A yield that is no full copy is not called one.
func TestYieldWithoutFullCopyNamesNone(t *testing.T) {
	_, a, b, _ := forkedPair(t, seeded(t), true)
	mustYield(t, a)
	caughtUp(t, b.group("shop"), a)
	if p, s := b.group("shop").Status().FullCopy, a.group("shop").Status().FullCopy; p != "" || s != "" {
		t.Errorf("site-b says %q, site-a says %q", p, s)
	}
}
