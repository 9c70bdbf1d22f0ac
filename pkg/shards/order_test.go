package shards

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// TestOrderAcrossNodes has a writer whose writes cause each other across nodes, while links of single shards are cut
// and healed. Site a is lost, and site b is promoted: no write may be there without its causes.
func TestOrderAcrossNodes(t *testing.T) {
	found := uint64(0)
	for round, nodes := range []int{2, 3, 2, 3, 2, 3, 2, 3} { // each looks at one epoch
		rng := seeded(t)
		c := newCluster(t, nodes)
		c.create(nil)
		c.waitShown("b")
		c.delayMessages(seeded(t))
		w := &chain{c: c, site: "a"}
		for began := time.Now(); time.Since(began) < time.Second/2; {
			if err := w.write(); err != nil {
				t.Fatal(err)
			}
			if rng.IntN(100) == 0 {
				m := c.sites["a"][rng.IntN(nodes)]
				m.net.Cut("a")
				for range rng.IntN(30) {
					if err := w.write(); err != nil {
						t.Fatal(err)
					}
				}
				m.net.Heal("a")
			}
			time.Sleep(time.Duration(rng.IntN(2)) * time.Millisecond)
		}
		for _, m := range c.sites["a"] {
			m.kill()
		}
		c.promote("b", rng.IntN(nodes), true)
		got := c.check("b")
		t.Logf("round %d, %d nodes: %d of %d writes", round, nodes, got, w.next)
		found += got
		c.stop()
	}
	if found == 0 {
		t.Error("no write is there, so nothing was tested")
	}
}

// TestOrderThroughCrashes ends nodes of both sites at random, by kill and by power loss, while the writer goes on as
// far as it can. In the end site b is promoted, with crashes of its nodes in the middle.
func TestOrderThroughCrashes(t *testing.T) {
	for range 3 {
		rng := seeded(t)
		c := newCluster(t, 2)
		c.create(nil)
		c.waitShown("b")
		w := &chain{c: c, site: "a"}
		for range 8 {
			for range 20 + rng.IntN(100) {
				if err := w.write(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
			}
			c.disturb(rng, []string{"a", "b"}[rng.IntN(2)])
		}
		c.waitShown("b")
		for _, m := range c.sites["a"] {
			m.kill()
		}
		for range rng.IntN(3) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				c.disturb(rng, "b")
			}()
			<-done
		}
		c.promote("b", rng.IntN(2), true)
		got := c.check("b")
		t.Logf("%d of %d writes", got, w.next)
		if got == 0 {
			t.Errorf("nothing of %d writes is there", w.next)
		}
		c.stop()
	}
}

// disturb ends a node of a site and starts it again. A power loss leaves any part of what was not synced.
func (c *cluster) disturb(rng *rand.Rand, site string) {
	m := c.sites[site][rng.IntN(len(c.sites[site]))]
	if rng.IntN(2) == 0 {
		m.kill()
	} else {
		m.crash(rng)
	}
	time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
	m.start()
}

// TestThereAndBack moves a group to the other site by plan, writes there, loses that site, and goes on at the first.
func TestThereAndBack(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(100)
	ctx := t.Context()
	if err := c.sites["b"][0].node.Promote(ctx, "shop", false); err == nil {
		t.Fatal("promoted by plan although the group is primary at site a")
	}
	if _, err := c.sites["a"][1].node.Demote(ctx, "shop"); err != nil {
		t.Fatal(err)
	}
	c.eventually("it is promoted by plan", func() bool { return c.sites["b"][1].node.Promote(ctx, "shop", false) == nil })
	if got := c.check("b"); got != 100 {
		t.Fatalf("%d of 100 writes at site b", got)
	}
	w.site = "b"
	w.writes(100)
	heads := []uint64{}
	for _, m := range c.sites["b"] {
		heads = append(heads, m.group().Status().HeadOrdinal)
	}
	c.eventually("site a shows all writes", func() bool {
		for i, m := range c.sites["a"] {
			if g := m.group(); g == nil || g.Status().AppliedOrdinal < heads[i] {
				return false
			}
		}
		return true
	})
	for _, m := range c.sites["b"] {
		m.kill()
	}
	c.promote("a", 0, true)
	if got := c.check("a"); got != 200 {
		t.Fatalf("%d of 200 writes at site a", got)
	}
	for _, m := range c.sites["a"] {
		if l := m.group().Status().Loss; l == nil {
			t.Error("no report of the loss")
		}
		if id, _ := m.group().Shard().Identity(); id.Role != core.RolePrimary || len(id.Config.Shards) != 2 {
			t.Errorf("after the promotion: %+v", id)
		}
	}
	c.promote("a", 1, true) // repeated
}
