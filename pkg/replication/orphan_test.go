package replication

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// startCopied makes a group of two volumes at a with content, and waits for its copy at b.
func startCopied(t *testing.T, a, b *testSite, change func(*GroupSpec)) (primary, secondary *Group) {
	t.Helper()
	primary = a.createGroup("shop", b.name, 2, 1<<20, change)
	for _, id := range []string{"v0", "v1"} {
		mustWrite(t, volumeOf(t, primary, id), 0, block('a', 64<<10))
		mustFlush(t, volumeOf(t, primary, id))
	}
	return primary, caughtUp(t, primary, b)
}

func (s *testSite) copies() (ids []string) {
	s.t.Helper()
	list, err := s.site.Copies()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, c := range list {
		ids = append(ids, c.VolumeID)
	}
	return ids
}

func (s *testSite) has(id string) bool {
	s.t.Helper()
	_, err := s.pool.Get(id)
	if err != nil && !errors.Is(err, blockdev.ErrNoVolume) {
		s.t.Fatal(err)
	}
	return err == nil
}

func (s *testSite) hasGroup(name string) bool {
	_, err := s.site.Group(name)
	return err == nil
}

// A copy whose volume left its group stays, says where it comes from, and is deleted by name alone.
func TestCopyWithoutAGroup(t *testing.T) {
	_, a, b := pair(t)
	g, _ := startCopied(t, a, b, nil)
	if ids := b.copies(); len(ids) > 0 {
		t.Errorf("copies in a group are listed: %v", ids)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, g, b)
	list, err := b.site.Copies()
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	if c := list[0]; c.VolumeID != "v0" || c.Peer != "site-a" || c.Group != "shop" || c.LeftUnixNanos == 0 || c.Member ||
		c.SizeBytes != 1<<20 || c.AllocatedBytes < 64<<10 {
		t.Errorf("%+v", c)
	}
	for id, want := range map[string]error{"v1": core.ErrPrecondition, "none": ErrNotFound} {
		if err := b.site.DeleteCopy(id); !errors.Is(err, want) {
			t.Errorf("deleting %s: %v, not %v", id, err, want)
		}
	}
	b.createVolume("own", 1<<20)
	if err := b.site.DeleteCopy("own"); !errors.Is(err, core.ErrPrecondition) || !b.has("own") {
		t.Errorf("deleting a volume that is no copy: %v", err)
	}
	if err := b.site.DeleteCopy("v0"); err != nil || b.has("v0") {
		t.Fatal(err)
	}
	if err := b.site.DeleteCopy("v0"); !errors.Is(err, ErrNotFound) {
		t.Errorf("repeated: %v", err)
	}
	sameContent(t, g, b.group("shop"))
}

// A copy is deleted with its volume at the primary only if this site said so before, also across crashes of both sites.
// What a promotion took back is not deleted.
func TestRemovedCopies(t *testing.T) {
	mark := func(b *testSite) {
		if _, err := b.pool.Update("v0", func(r *blockdev.VolumeRecord) error { r.Unwanted = true; return nil }); err != nil {
			b.t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		prepare func(a, b *testSite)
		deleted bool
	}{
		"keep":     {func(_, _ *testSite) {}, false},
		"unwanted": {func(_, b *testSite) { mark(b) }, true},
		"delete": {func(_, b *testSite) {
			if err := b.group("shop").Modify(func(s *core.Settings) { s.DeleteRemovedCopies = true }); err != nil {
				b.t.Fatal(err)
			}
		}, true},
		"only the primary says delete": {func(a, _ *testSite) {
			if err := a.group("shop").Modify(func(s *core.Settings) { s.DeleteRemovedCopies = true }); err != nil {
				a.t.Fatal(err)
			}
		}, false},
		"unwanted, then promoted and followed again": {func(a, b *testSite) {
			mark(b)
			for _, turn := range [][2]*testSite{{a, b}, {b, a}} {
				from, to := turn[0], turn[1]
				if _, err := from.group("shop").Demote(); err != nil {
					b.t.Fatal(err)
				}
				eventually(b.t, "the planned promotion", func() bool {
					_, err := to.group("shop").Promote(false)
					return err == nil
				})
				caughtUp(b.t, to.group("shop"), from)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			rng := seeded(t)
			for range 10 {
				_, a, b := pair(t)
				g, _ := startCopied(t, a, b, nil)
				tc.prepare(a, b)
				if err := g.RemoveVolume("v0", nil); err != nil {
					t.Fatal(err)
				}
				crashAt(t, b, rng)
				a.crash(rng.IntN(101), rng)
				g = a.group("shop")
				caughtUp(t, g, b)
				if b.has("v0") == tc.deleted {
					t.Fatalf("the copy is there: %v", b.has("v0"))
				}
				if !a.has("v0") {
					t.Fatal("the volume of the primary is gone")
				}
				if want := !tc.deleted; slices.Contains(b.copies(), "v0") != want {
					t.Errorf("copies %v", b.copies())
				}
			}
		})
	}
}

// crashAt crashes a site at a random instant soon.
func crashAt(t *testing.T, s *testSite, rng *rand.Rand) {
	t.Helper()
	for range rng.IntN(2000) {
		_ = s.site.Groups()
	}
	s.crash(rng.IntN(101), rng)
}

// Members that the primary does not know any more, because its disk was put back, keep their copies whatever was said.
func TestUnlistedCopyIsKept(t *testing.T) {
	_, a, b := pair(t)
	_, copied := startCopied(t, a, b, nil)
	if err := copied.Modify(func(s *core.Settings) { s.DeleteRemovedCopies = true }); err != nil {
		t.Fatal(err)
	}
	a.kill()
	eventually(t, "the stream ended", func() bool { return !copied.Status().Connected })
	if err := copied.copies.replaceAdmitted(nil, nil); err != nil {
		t.Fatal(err)
	}
	if ids := b.copies(); !slices.Equal(ids, []string{"v0", "v1"}) {
		t.Errorf("copies %v", ids)
	}
}

// What is left of a peer that is gone for good is kept or deleted, whatever role the groups have.
func TestForgetPeer(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, a, b *testSite) *testSite // returns the site that stays
		delete  bool
	}{
		"primary":   {prepare: func(_ *testing.T, a, b *testSite) *testSite { b.kill(); return a }},
		"secondary": {prepare: func(_ *testing.T, a, b *testSite) *testSite { a.kill(); return b }},
		"deleted":   {prepare: func(_ *testing.T, a, b *testSite) *testSite { a.kill(); return b }, delete: true},
		"demoted": {prepare: func(t *testing.T, a, b *testSite) *testSite {
			if _, err := a.group("shop").Demote(); err != nil {
				t.Fatal(err)
			}
			b.kill()
			return a
		}},
		"superseded": {prepare: func(t *testing.T, a, b *testSite) *testSite {
			if _, err := b.group("shop").Promote(true); err != nil {
				t.Fatal(err)
			}
			eventually(t, "a hears of it", func() bool { return a.group("shop").Status().State == core.StateDiverged })
			b.kill()
			return a
		}},
		"stalling": {prepare: func(t *testing.T, a, b *testSite) *testSite {
			if err := a.group("shop").Modify(func(s *core.Settings) { s.JournalFull = core.PolicyStall }); err != nil {
				t.Fatal(err)
			}
			b.kill()
			return a
		}},
	} {
		t.Run(name, func(t *testing.T) {
			_, a, b := pair(t)
			startCopied(t, a, b, nil)
			if _, err := b.site.ForgetPeer("site-a", tc.delete); !errors.Is(err, core.ErrPrecondition) {
				t.Fatalf("forgetting a peer that is connected: %v", err)
			}
			s := tc.prepare(t, a, b)
			peer := map[*testSite]string{a: "site-b", b: "site-a"}[s]
			eventually(t, "the stream ended", func() bool { return !s.group("shop").Status().Connected })
			if _, err := s.site.ForgetPeer("site-c", false); !errors.Is(err, ErrNotFound) {
				t.Fatalf("forgetting a site that is not known: %v", err)
			}
			if _, err := s.site.ForgetPeer(peer, tc.delete); err != nil {
				t.Fatal(err)
			}
			if _, err := s.site.ForgetPeer(peer, tc.delete); !errors.Is(err, ErrNotFound) {
				t.Errorf("repeated: %v", err)
			}
			s.restart()
			if tc.delete {
				if s.hasGroup("shop") || s.has("v0") || s.has("v1") {
					t.Error("group or copies are still there")
				}
				return
			}
			g := s.group("shop")
			if st := g.Status(); st.Role != core.RolePrimary || st.Peer != "" || st.State != core.StateIdle {
				t.Fatalf("%s", st)
			}
			if got := content(t, volumeOf(t, g, "v1")); got[0] != 'a' {
				t.Errorf("the content is %q", got[:1])
			}
			v, err := g.Attach("v0")
			if err != nil {
				t.Fatal(err)
			}
			mustWrite(t, v, 0, block('z', 4096))
			mustFlush(t, v)
		})
	}
}

// A copy that is not whole is not kept as a primary; it can be deleted.
func TestForgetPeerOfABrokenCopy(t *testing.T) {
	_, a, b := pair(t)
	_, copied := startCopied(t, a, b, nil)
	a.kill()
	eventually(t, "the stream ended", func() bool { return !copied.Status().Connected })
	copied.mu.Lock()
	copied.core.Meta.Copy = core.CopyPartial
	copied.mu.Unlock()
	if _, err := b.site.ForgetPeer("site-a", false); !errors.Is(err, core.ErrPrecondition) || !b.hasGroup("shop") {
		t.Fatalf("keeping half a copy: %v", err)
	}
	if _, err := b.site.ForgetPeer("site-a", true); err != nil || b.hasGroup("shop") || b.has("v0") {
		t.Fatal(err)
	}
}
