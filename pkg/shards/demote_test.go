package shards

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// writes writes a number of blocks, which must be answered.
func (w *chain) writes(n int) {
	w.c.t.Helper()
	for range n {
		if err := w.write(); err != nil {
			w.c.t.Fatal(err)
		}
	}
}

// demote demotes the group at a site, by way of one of its nodes.
func (c *cluster) demote(site string, by int) (epoch.ID, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	return c.sites[site][by].node.Demote(ctx, "shop")
}

// stands are what the shards at a site do.
func (c *cluster) stands(site string) (list []epoch.Stand) {
	for _, m := range c.sites[site] {
		if g := m.group(); g != nil {
			list = append(list, g.Shard().Standing().Stand)
		}
	}
	return list
}

// failAt has a node lose a part of a command, from its n-th time on.
func (m *member) failAt(part shardpb.Part, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = func(r *shardpb.DoRequest) error {
		if r.GetPart() != part {
			return nil
		}
		if n--; n < 0 {
			return errors.New("lost")
		}
		return nil
	}
}

func (m *member) heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = nil
}

// TestDemotionEndsAtAnEpochWithEverything demotes a group whose writer has just stopped. All copies show the last
// epoch, with every write, before anything is promoted. A forced promotion loses nothing then.
func TestDemotionEndsAtAnEpochWithEverything(t *testing.T) {
	for nodes := 2; nodes <= 3; nodes++ {
		c := newCluster(t, nodes)
		c.create(func(s *core.Settings) { s.Shard.EpochMillis = core.MaxEpochMillis / 2 }) // none comes by itself in time
		w := &chain{c: c, site: "a"}
		w.writes(100)
		last, err := c.demote("a", nodes-1)
		if err != nil || last.IsZero() {
			t.Fatalf("%d nodes: epoch %s, %v", nodes, last, err)
		}
		if again, err := c.demote("a", 0); err != nil || again != last {
			t.Fatalf("repeated: epoch %s, %v; want %s", again, err, last)
		}
		if err := w.write(); err == nil {
			t.Fatal("a demoted group took a write")
		}
		c.eventually("the copies show the last epoch", func() bool { return c.waitShown("b") == last })
		for _, m := range c.sites["a"] {
			m.kill()
		}
		c.promote("b", 0, true)
		if got := c.check("b"); got != 100 {
			t.Errorf("%d nodes: %d of 100 writes", nodes, got)
		}
		c.stop()
	}
}

// TestDemotionIsRepeated interrupts a demotion at each of its steps, with kills of the nodes of the site. No shard
// takes writes meanwhile, and the repetition ends it with everything.
func TestDemotionIsRepeated(t *testing.T) {
	for _, part := range []shardpb.Part{shardpb.Part_PART_CLOSE, shardpb.Part_PART_CUT, shardpb.Part_PART_DEMOTE} {
		for at := range 2 {
			t.Run(fmt.Sprintf("%s-%d", part, at), func(t *testing.T) {
				c := newCluster(t, 2)
				c.create(nil)
				w := &chain{c: c, site: "a"}
				w.writes(50)
				other := c.sites["a"][at]
				other.failAt(part, 0)
				_, err := c.demote("a", 1-at)
				if (err != nil) != (part != shardpb.Part_PART_CUT) {
					t.Fatalf("with a node that loses the command: %v", err)
				}
				t.Logf("%v after %v", c.stands("a"), err)
				if err != nil {
					if !strings.Contains(err.Error(), fmt.Sprintf("group shop-%d on node a%d", at, at)) {
						t.Errorf("the error does not name the shard: %v", err)
					}
					if part == shardpb.Part_PART_CLOSE {
						w.writes(50) // nothing was changed
					} else if err := w.write(); err == nil {
						t.Fatal("a write was answered in the middle of a demotion")
					}
				}
				other.heal()
				for _, m := range c.sites["a"] {
					m.crash(seeded(t))
					m.start()
				}
				last, err := c.demote("a", at)
				if err != nil || last.IsZero() {
					t.Fatalf("repeated: epoch %s, %v", last, err)
				}
				c.eventually("the copies show the last epoch", func() bool { return c.waitShown("b") == last })
				c.eventually("it is promoted by plan", func() bool {
					return c.sites["b"][0].node.Promote(t.Context(), "shop", false) == nil
				})
				if got := c.check("b"); got != w.next {
					t.Errorf("%d of %d writes", got, w.next)
				}
			})
		}
	}
}

// TestDemotionIsTakenBack takes a demotion back, whole and in the middle of it, and writes on.
func TestDemotionIsTakenBack(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(10)
	a := c.sites["a"]
	a[1].failAt(shardpb.Part_PART_DEMOTE, 0)
	if _, err := c.demote("a", 0); err == nil {
		t.Fatal("demoted although a node lost the command")
	}
	a[1].heal()
	if stands := c.stands("a"); stands[0] != epoch.StandDemoted || stands[1] != epoch.StandClosed {
		t.Fatalf("in the middle: %v", stands)
	}
	c.promote("a", 1, false)
	w.writes(10)
	first, err := c.demote("a", 1)
	if err != nil {
		t.Fatal(err)
	}
	c.promote("a", 0, false)
	w.writes(10)
	a[1].failAt(shardpb.Part_PART_OPEN, 0) // in the middle of taking back
	second, err := c.demote("a", 0)
	if err != nil || !first.Before(second) {
		t.Fatalf("epoch %s after %s, %v", second, first, err)
	}
	if err := a[0].node.Promote(t.Context(), "shop", false); err == nil {
		t.Fatal("taken back although a node lost the command")
	}
	a[1].heal()
	if _, err := a[1].group().Attach("v1"); err == nil {
		t.Error("a volume was attached in the middle of a demotion that is taken back")
	}
	c.promote("a", 1, false)
	w.writes(10)
	if _, err := c.demote("a", 0); err != nil {
		t.Fatal(err)
	}
	c.eventually("it is promoted by plan", func() bool {
		return c.sites["b"][1].node.Promote(t.Context(), "shop", false) == nil
	})
	if got := c.check("b"); got != 40 {
		t.Errorf("%d of 40 writes", got)
	}
}

// TestDemotionRefusesAttached leaves a group as it was if one shard has a volume in use.
func TestDemotionRefusesAttached(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	a := c.sites["a"]
	if _, err := a[1].group().Attach("v1"); err != nil {
		t.Fatal(err)
	}
	_, err := c.demote("a", 0)
	if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "v1") {
		t.Fatalf("with an attached volume: %v", err)
	}
	if stands := c.stands("a"); stands[0] != epoch.StandOpen || stands[1] != epoch.StandOpen {
		t.Errorf("after a refused demotion: %v", stands)
	}
	(&chain{c: c, site: "a"}).writes(10)
}

// TestSuspendsAllShards suspends and resumes a group by way of one node. A node that is down is named, and the
// repetition does the rest.
func TestSuspendsAllShards(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	w := &chain{c: c, site: "a"}
	w.writes(10)
	shown := c.waitShown("b")
	a := c.sites["a"]
	a[1].failAt(shardpb.Part_PART_SUSPEND, 0)
	changed, err := a[0].node.Suspend(t.Context(), "shop")
	if err == nil || !changed || !strings.Contains(err.Error(), "node a1") {
		t.Fatalf("changed %v, %v", changed, err)
	}
	a[1].heal()
	if changed, err := a[1].node.Suspend(t.Context(), "shop"); err != nil || !changed {
		t.Fatalf("repeated: changed %v, %v", changed, err)
	}
	if changed, err := a[0].node.Suspend(t.Context(), "shop"); err != nil || changed {
		t.Fatalf("repeated once more: changed %v, %v", changed, err)
	}
	if err := a[0].node.fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	list, _ := a[0].node.Places("shop")
	for _, p := range list {
		if !p.Suspended {
			t.Errorf("status of a suspended shard: %+v", p)
		}
	}
	w.writes(50)
	if _, err := c.demote("a", 0); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("a suspended group was demoted: %v", err)
	}
	if changed, err := a[1].node.Resume(t.Context(), "shop"); err != nil || !changed {
		t.Fatalf("resume: changed %v, %v", changed, err)
	}
	c.eventually("the copies go on", func() bool { return shown.Before(c.waitShown("b")) })
}
