package shards

import (
	"context"
	"errors"
	"slices"
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
	for range 50 {
		if err := w.write(); err != nil {
			t.Fatal(err)
		}
	}
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
	if err := <-ended; err == nil {
		t.Fatal("the promotion ended although one copy has not heard of it")
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
