package shards

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
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
