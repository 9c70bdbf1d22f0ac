package shards

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// relocate moves the group away from a site, by way of one of its nodes.
func (c *cluster) relocate(site string, by int) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	_, err := c.sites[site][by].node.Relocate(ctx, "shop")
	return err
}

// TestRelocatesAllShards moves a group there and back, with writes at both sites.
func TestRelocatesAllShards(t *testing.T) {
	for nodes := 2; nodes <= 3; nodes++ {
		c := newCluster(t, nodes)
		c.create(nil)
		w := &chain{c: c, site: "a"}
		for round, to := range []string{"b", "a", "b"} {
			w.writes(50)
			if err := c.relocate(w.site, round%nodes); err != nil {
				t.Fatalf("to %s: %v", to, err)
			}
			if err := c.relocate(w.site, 0); err != nil {
				t.Fatalf("repeated: %v", err)
			}
			for _, stand := range c.stands(w.site) {
				if stand != epoch.StandFollowing {
					t.Errorf("after the move to %s: %v", to, c.stands(w.site))
				}
			}
			w.site = to
			for _, m := range c.sites[to] { // known before the promotion: no group is founded anew
				if id, _ := m.group().Shard().Identity(); len(id.Config.Shards) != nodes {
					t.Errorf("after the move to %s shard %d knows of the shards %v", to, id.ID, id.Config.Shards)
				}
			}
			if got := c.check(to); got != w.next {
				t.Fatalf("%d of %d writes at %s", got, w.next, to)
			}
		}
		c.waitShown("a")
		c.stop()
	}
}

// TestRelocationIsRepeated interrupts a move before the demotion, because a copy is not connected, after it, and in the
// middle of the other site's promotion. What is repeated, or taken back, goes on.
func TestRelocationIsRepeated(t *testing.T) {
	for _, back := range []bool{false, true} {
		c := newCluster(t, 2)
		c.create(nil)
		c.waitShown("b")
		w := &chain{c: c, site: "a"}
		w.writes(50)
		a, b := c.sites["a"], c.sites["b"]
		b[1].kill()
		c.eventually("the primary knows that it is gone", func() bool {
			return a[1].group().Status().State != core.StateStreaming
		})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, err := a[0].node.Relocate(ctx, "shop")
		cancel()
		if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "shop-1 on node a1") {
			t.Fatalf("with a copy that is not connected: %v", err)
		}
		w.writes(50) // nothing was changed
		b[1].start()
		c.waitShown("b")
		a[0].failAt(shardpb.Part_PART_HAND_OVER, 0)
		if err = c.relocate("a", 1); err == nil || !strings.Contains(err.Error(), "the whole group is demoted here") {
			t.Fatalf("with a node that does not ask the other site: %v", err)
		}
		if stands := c.stands("a"); stands[0] != epoch.StandDemoted || stands[1] != epoch.StandDemoted {
			t.Fatalf("after that: %v", stands)
		}
		if back {
			c.promote("a", 0, false)
			w.writes(50)
		}
		a[0].heal()
		b[1].failAt(shardpb.Part_PART_PROMOTE, 0) // the one of shard 0 does not reach it; it is asked by itself then
		if err := c.relocate("a", 0); err != nil {
			t.Fatalf("repeated: %v", err)
		}
		if got := c.check("b"); got != w.next {
			t.Errorf("%d of %d writes at site b", got, w.next)
		}
		c.stop()
	}
}
