package shards

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// TestPromotionOutlivesItsCollector keeps the decision of a promotion from one copy until the other one is primary, and
// nothing but that one knows the decision any more. A repetition at any node has to end, at the same epoch.
func TestPromotionOutlivesItsCollector(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(50)
	c.waitShown("b")
	for _, m := range c.sites["a"] {
		m.kill()
	}
	first, second := c.sites["b"][0], c.sites["b"][1]
	second.mu.Lock()
	second.deliver = func(r *shardpb.DeliverRequest) error {
		if r.GetDecide() != nil {
			return errors.New("lost")
		}
		return nil
	}
	second.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- first.node.Promote(ctx, "shop", true) }()
	c.eventually("the first copy is primary", func() bool {
		g := first.group()
		if g == nil {
			return false
		}
		id, _ := g.Shard().Identity()
		return id.Role == core.RolePrimary
	})
	cancel()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), string(promotionDecided)) {
		t.Fatalf("one copy has not heard of the promotion: %v", err)
	}
	first.kill() // with its collector
	second.mu.Lock()
	second.deliver = nil
	second.mu.Unlock()
	first.start()
	began := time.Now()
	c.promote("b", 1, true)
	t.Logf("ended after %v, with %d of %d writes", time.Since(began), c.check("b"), w.next)
}

// TestPromotionWhileAShardJoins: the primary site is lost while a shard joins. Its copy has marks of the configuration
// with it, and the group is promoted at an epoch of the one before. From then on that one is the group's.
func TestPromotionWhileAShardJoins(t *testing.T) {
	c := newCluster(t, 3)
	for i, m := range c.sites["a"][:2] {
		c.add(m, i, c.shardOf(i))
	}
	c.part(0, 1).goOn("b", 0, 1)
	c.sites["a"][0].net.Cut("b") // no epoch with the third shard is complete
	c.add(c.sites["a"][2], 2, c.shardOf(2))
	c.eventually("the joining copy has marks", func() bool {
		g := c.sites["b"][2].group()
		return g != nil && !g.Shard().Progress().Newest.IsZero()
	})
	for _, m := range c.sites["a"] {
		m.kill()
	}
	c.promote("b", 0, true)
	node := c.sites["b"][0].node
	if err := node.fresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	places := node.of("shop")
	if len(places) != 3 {
		t.Fatalf("%d of 3 shards answer", len(places))
	}
	for range 100 { // the order of a map is another one each time
		if list := shardsOf(places); !slices.Equal(list, []epoch.ShardID{0, 1}) {
			t.Fatalf("the group has the shards %v", list)
		}
	}
}

// promoteLater begins a forced promotion at a node, and returns when its collector has been asked. end gives it up.
func (c *cluster) promoteLater(m *member, lost ...epoch.ShardID) (end func() error) {
	c.t.Helper()
	m.node.mu.Lock()
	r := m.node.runners["shop"]
	m.node.mu.Unlock()
	waiting := func() int {
		n := make(chan int, 1)
		if !r.do(func() { n <- len(r.wishes) }) {
			return 0
		}
		return <-n
	}
	before := waiting()
	ctx, cancel := context.WithCancel(c.t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.node.Promote(ctx, "shop", true, lost...) }()
	c.eventually("the promotion waits", func() bool { return waiting() > before })
	return func() error { cancel(); return <-ended }
}

// TestPromotionIsGivenUp: a forced promotion fails because a node is away. When that node comes back, no shard is
// promoted, and the copies go on. A later promotion succeeds. Nor does a caller that gives up end the promotion of
// another one.
func TestPromotionIsGivenUp(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	w := &chain{c: c, site: "a"}
	w.writes(50)
	shown := c.waitShown("b")
	stays, away := c.sites["b"][0], c.sites["b"][1]
	away.kill()
	c.eventually("the node is missed", func() bool { return len(stays.node.silentNodes()) > 0 })
	end := c.promoteLater(stays)
	err := end()
	if !errors.Is(err, core.ErrPrecondition) || !errors.Is(err, context.Canceled) ||
		!strings.Contains(err.Error(), string(promotionOff)) {
		t.Fatalf("given up: %v", err)
	}
	away.start()
	c.eventually("the copies show later epochs", func() bool { return shown.Before(c.waitShown("b")) })
	for _, m := range c.sites["b"] {
		if role := m.role(); role != core.RoleSecondary {
			t.Fatalf("node %s is %s, and the promotion was given up", m.Address(), role)
		}
	}

	away.kill()
	first, second := c.promoteLater(stays), c.promoteLater(stays)
	if err := second(); err == nil || !strings.Contains(err.Error(), string(promotionWanted)) {
		t.Fatalf("given up while another caller waits: %v", err)
	}
	for _, m := range c.sites["a"] {
		m.kill()
	}
	away.start()
	c.eventually("the group is promoted for the other caller", func() bool {
		return stays.role() == core.RolePrimary && away.role() == core.RolePrimary
	})
	_ = first() // it may have ended, or not have seen it yet
	c.promote("b", 1, true)
	if got := c.check("b"); got < 50 {
		t.Errorf("%d of %d writes at site b", got, w.next)
	}
}

// TestFailbackWithACopyThatIsNoPart: a shard has left its group, and its copy is still there when the group is promoted
// by force. After the group was moved back, the copies show epochs, also after a restart, and can be promoted again.
func TestFailbackWithACopyThatIsNoPart(t *testing.T) {
	for _, restart := range []bool{false, true} {
		c := newCluster(t, 3)
		c.create(nil)
		c.waitShown("b")
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		gone, left := c.sites["a"][2], c.sites["b"][2]
		if err := gone.group().RemoveVolume("v2", nil); err != nil {
			t.Fatal(err)
		}
		if err := c.sites["a"][0].node.Drop(ctx, "shop", 2, false); err != nil {
			t.Fatal(err)
		}
		rest := c.part(0, 1)
		rest.goOn("b", 0, 1)
		w := &chain{c: rest, site: "a"}
		w.writes(50)
		for _, m := range rest.sites["a"] {
			m.net.Cut("a")
		}
		rest.promote("b", 0, true)
		if id, _ := left.group().Shard().Identity(); id.Role != core.RoleSecondary || id.Decided {
			t.Fatalf("the copy that is no part: %+v", id)
		}
		for _, m := range rest.sites["a"] {
			m.net.Heal("a")
		}
		c.eventually("both shards know of the other site", func() bool {
			return rest.sites["a"][0].group().Status().State == core.StateDiverged &&
				rest.sites["a"][1].group().Status().State == core.StateDiverged
		})
		if _, err := rest.sites["a"][0].node.Yield(ctx, "shop", false); err != nil {
			t.Fatal(err)
		}
		rest.waitShown("a")
		w = &chain{c: rest, site: "b", next: rest.check("b")}
		w.writes(20)
		if err := rest.relocate("b", 0); err != nil {
			t.Fatal(err)
		}
		w.site = "a"
		w.writes(20)
		if restart {
			for _, m := range c.sites["b"] {
				m.kill()
			}
			for _, m := range c.sites["b"] {
				m.start()
			}
		}
		rest.goOn("b", 0, 1)
		for _, m := range rest.sites["a"] {
			m.kill()
		}
		rest.promote("b", 1, true)
		if got := rest.check("b"); got != w.next {
			t.Errorf("%d of %d writes at site b", got, w.next)
		}
		c.stop()
	}
}
