package shards

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// TestYieldsAllShards has both sites write after a forced promotion, and the old primary give way, with an
// interruption. Afterwards it shows what the other site wrote and nothing else, its own writes are kept at each node,
// and the group can be moved back.
func TestYieldsAllShards(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	old := &chain{c: c, site: "a"}
	old.writes(50)
	c.waitShown("b")
	a := c.sites["a"]
	for _, m := range a {
		m.net.Cut("a")
	}
	c.promote("b", 0, true)
	old.writes(300)
	w := &chain{c: c, site: "b", next: c.check("b")}
	w.writes(30)
	if _, err := a[1].group().Attach("v1"); err != nil {
		t.Fatal(err)
	}
	for _, m := range a {
		m.net.Heal("a")
	}
	c.eventually("both shards know of the other site", func() bool {
		return a[0].group().Status().State == core.StateDiverged && a[1].group().Status().State == core.StateDiverged
	})

	if _, err := a[0].node.Yield(t.Context(), "shop", false); !errors.Is(err, core.ErrPrecondition) ||
		!strings.Contains(err.Error(), "v1") {
		t.Fatalf("with an attached volume: %v", err)
	}
	if err := a[1].group().Detach("v1"); err != nil {
		t.Fatal(err)
	}
	if stands := c.stands("a"); stands[0] != epoch.StandOpen || stands[1] != epoch.StandOpen {
		t.Fatalf("after a refusal: %v", stands)
	}
	plan, err := a[1].node.Yield(t.Context(), "shop", true)
	if err != nil || len(plan) != 2 {
		t.Fatalf("plan %+v, %v", plan, err)
	}
	for _, y := range plan {
		if y.Plan == nil || y.Plan.Tail.Writes < 150 || y.Plan.Yield.Head <= y.Plan.Yield.Fork {
			t.Errorf("shard %d on node %s gives up %+v", y.ID, y.Node, y.Plan)
		}
	}
	a[1].failAt(shardpb.Part_PART_YIELD, 0)
	if _, err := a[0].node.Yield(t.Context(), "shop", false); err == nil || !strings.Contains(err.Error(), "node a1") {
		t.Fatalf("with a node that does not give way: %v", err)
	}
	a[1].heal()
	if _, err := a[0].node.Yield(t.Context(), "shop", false); err != nil {
		t.Fatalf("repeated: %v", err)
	}
	w.writes(20)
	c.waitShown("a")
	for _, m := range a {
		if tails, err := m.engine.Tails(""); err != nil || len(tails) != 1 || len(tails[0].Snapshots) != 1 {
			t.Errorf("%d tails at node a%d, %v", len(tails), m.number, err)
		}
	}
	if err := c.relocate("b", 1); err != nil {
		t.Fatal(err)
	}
	if got := c.check("a"); got != w.next {
		t.Errorf("site a has write %d last, site b wrote %d", got, w.next)
	}
}

// TestNewSecondaryWithoutAnEpochIsNotPromoted changes the direction of a group, by force or as planned, and loses the
// site that took over before the other one has an epoch of it. What its shards have arrived at are different instants,
// or histories, so no shard is promoted there.
func TestNewSecondaryWithoutAnEpochIsNotPromoted(t *testing.T) {
	for _, planned := range []bool{false, true} {
		c := newCluster(t, 2)
		c.create(nil)
		w := &chain{c: c, site: "a"}
		w.writes(50)
		c.waitShown("b")
		a, b := c.sites["a"], c.sites["b"]
		for _, m := range b { // no epoch comes about at site b
			m.mu.Lock()
			m.deliver = func(r *shardpb.DeliverRequest) error {
				if r.GetPrepare() != nil {
					return errors.New("lost")
				}
				return nil
			}
			m.mu.Unlock()
		}
		if planned {
			if err := c.relocate("a", 0); err != nil {
				t.Fatal(err)
			}
		} else {
			for _, m := range a {
				m.net.Cut("a")
			}
			c.promote("b", 0, true)
			w.writes(50)
			for _, m := range a {
				m.net.Heal("a")
			}
			c.eventually("both shards know of the other site", func() bool {
				return a[0].group().Status().State == core.StateDiverged && a[1].group().Status().State == core.StateDiverged
			})
			if _, err := a[0].node.Yield(t.Context(), "shop", false); err != nil {
				t.Fatal(err)
			}
		}
		c.eventually("both shards follow the other site", func() bool {
			_, first := a[0].group().Shard().Identity()
			_, second := a[1].group().Shard().Identity()
			return first && second && a[0].group().Status().Role == core.RoleSecondary &&
				a[1].group().Status().Role == core.RoleSecondary && b[0].group().Status().State == core.StateStreaming &&
				b[1].group().Status().State == core.StateStreaming
		})
		for _, m := range b {
			m.kill()
		}
		for _, m := range a {
			if m.group().Shard().Separate() {
				t.Errorf("planned %v: the copy at node %s counts as one of a group of its own", planned, m.Address())
			}
		}
		if err := c.promoteLater(a[0])(); err == nil || !strings.Contains(err.Error(), "no complete epoch") ||
			!strings.Contains(err.Error(), string(promotionOff)) {
			t.Errorf("planned %v: promoted without an epoch: %v", planned, err)
		}
		c.stop()
	}
}
