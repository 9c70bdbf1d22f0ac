package replication

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// openErrors are errors of opening a file that say nothing of the file. A group that met one that can pass opens by
// itself.
var openErrors = []struct {
	err    error
	passes bool
}{{syscall.EIO, false}, {syscall.EMFILE, true}, {syscall.ENOMEM, true}}

// A group that has everything that outlives a restart: images that are preserved, a view, a snapshot that is being
// copied, and what changed since it. Where a file of these cannot be opened, the group stays closed and says which file
// that is. When the file can be opened again, nothing is lost.
func TestErrorOfOpeningIsNoLoss(t *testing.T) {
	s, held := newTestSite(t, link.NewNetwork(nil), "site-a", nil), make(chan struct{})
	s.kill()
	s.before = func(op vfs.Op, name string) {
		if op == vfs.OpWrite && strings.HasPrefix(name, "/pool/snapshots/") && strings.HasSuffix(name, "/image") {
			<-held
		}
	}
	s.open()
	g := s.createGroup("shop", "", 1, 2<<20, nil)
	l, v := newCutLog(g), volumeOf(t, g, "v0")
	write := func(g *Group, off int64, fill byte) {
		l.note(cutOp{volume: "v0", off: off, n: 4096, fill: fill})
		mustWrite(t, volumeOf(t, g, "v0"), off, block(fill, 4096))
	}
	write(g, 0, 1)
	view := mustView(t, g, ViewSpec{Name: "look"}).rec.Ordinal
	set := mustPreserve(t, g, preserveOrWait).record.Ordinal
	write(g, 1<<20, 2)
	targets := createSnapshots(t, s.pool, "1", "v0")
	cut := mustCut(t, g, targets)
	mustFlush(t, v)
	fs := s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100}) // while the copy is held
	close(held)

	for _, suffix := range []string{preservedFile, "/0.kept", "/0.log", "/view.json", "/0.extents", "/0.image", cutsFile,
		"/snapshot.json", "/" + copiedFile, "/snapshots/" + targets[0].SnapshotID + "/image",
		"/" + sincePrefix + targets[0].SnapshotID} {
		for _, c := range openErrors {
			t.Run(fmt.Sprintf("%s %v", suffix, c.err), func(t *testing.T) {
				var fails atomic.Bool
				fails.Store(true)
				s := &testSite{t: t, name: "site-a", net: link.NewNetwork(nil),
					fs: fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100})}
				s.fails = func(op vfs.Op, name string) error {
					if fails.Load() && op == vfs.OpOpen && strings.HasSuffix(name, suffix) {
						return c.err
					}
					return nil
				}
				s.open()
				t.Cleanup(s.kill)
				_, err := s.site.Group("shop")
				if !errors.Is(err, ErrNotOpen) || !errors.Is(err, c.err) || !strings.Contains(err.Error(), suffix) {
					t.Fatalf("the group with a file that cannot be opened: %v", err)
				}
				fails.Store(false)
				if !c.passes {
					s.restart()
				}
				eventually(t, "the group is open", func() bool { _, err := s.site.Group("shop"); return err == nil })
				g := s.group("shop")
				for off := int64(0); off < 2<<20; off += 256 << 10 {
					mustWrite(t, volumeOf(t, g, "v0"), off, block(3, 4096))
				}
				mustFlush(t, volumeOf(t, g, "v0"))
				for _, p := range g.preserved.of(ownerTest) {
					if err := checkPreserved(p, l); err != nil || p.record.Ordinal != set {
						t.Errorf("the set of ordinal %d, of %d: %v", p.record.Ordinal, set, err)
					}
				}
				if n := len(g.preserved.of(ownerTest)); n != 1 {
					t.Errorf("%d sets, want 1", n)
				}
				look, err := g.View("look")
				if err != nil {
					t.Fatal(err)
				}
				if got := viewContent(t, look.Volumes()[0]); firstDifference(got, l.at("v0", view)) >= 0 {
					t.Error("the view shows what it did not")
				}
				if err := waitReady(s.pool, targets); err != nil {
					t.Fatal(err)
				}
				got, err := snapshotContent(s.fs, s.pool, targets[0].SnapshotID)
				if err != nil || firstDifference(got, l.at("v0", cut.Ordinal)) >= 0 {
					t.Errorf("the snapshot's content, %v", err)
				}
				next := createSnapshots(t, s.pool, "2", "v0")
				mustCut(t, g, next)
				if rec, err := s.pool.GetSnapshot(next[0].SnapshotID); err != nil || rec.ParentID != targets[0].SnapshotID {
					t.Errorf("the next snapshot's parent: %+v, %v", rec, err)
				}
			})
		}
	}
}

// A promotion in the middle of a sync is decided, and the images of before the sync cannot be opened: they are kept,
// and the promotion goes on when they can.
func TestErrorOfOpeningKeepsAPromotion(t *testing.T) {
	for _, c := range openErrors {
		t.Run(c.err.Error(), func(t *testing.T) {
			p := newResyncPair(t, seeded(t))
			var fails atomic.Bool
			p.b.kill()
			p.b.fails = func(op vfs.Op, name string) error {
				if fails.Load() && op == vfs.OpOpen && strings.HasSuffix(name, ".kept") {
					return c.err
				}
				return nil
			}
			p.b.open()
			caughtUp(t, p.g, p.b)
			p.begin(3)
			eventually(t, "the sync runs", func() bool { return p.b.group("shop").Status().Before != nil })
			fails.Store(true)
			if _, err := p.b.group("shop").Promote(true); !errors.Is(err, c.err) {
				t.Fatalf("a promotion whose images cannot be opened: %v", err)
			}
			if _, err := p.b.site.Group("shop"); !errors.Is(err, c.err) {
				t.Fatalf("the group whose images cannot be opened: %v", err)
			}
			fails.Store(false)
			if !c.passes {
				p.b.restart()
			}
			g, err := waitPromoted(p.b.site, "shop")
			if err != nil {
				t.Fatal(err)
			}
			if err := p.before.check(g); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a site wrote past a fork is listed in a file. One that cannot be opened is not lost: not all is copied.
func TestErrorOfOpeningKeepsRanges(t *testing.T) {
	for _, c := range openErrors {
		t.Run(c.err.Error(), func(t *testing.T) {
			net, a, b, _ := forkedPair(t, seeded(t), true)
			net.Cut("site-a")
			mustYield(t, a)
			a.kill()
			var fails atomic.Bool
			fails.Store(true)
			a.fails = func(op vfs.Op, name string) error {
				if fails.Load() && op == vfs.OpOpen && strings.HasSuffix(name, yieldFile) {
					return c.err
				}
				return nil
			}
			a.open()
			if _, err := a.site.Group("shop"); !errors.Is(err, c.err) {
				t.Fatalf("the group whose list cannot be opened: %v", err)
			}
			fails.Store(false)
			if !c.passes {
				a.restart()
			}
			eventually(t, "the group is open", func() bool { _, err := a.site.Group("shop"); return err == nil })
			net.Heal("site-a")
			caughtUp(t, b.group("shop"), a)
			if y := a.group("shop").Status().Yield; y == nil || y.All {
				t.Errorf("the yield reports %+v", y)
			}
			sameContent(t, b.group("shop"), a.group("shop"))
		})
	}
}
