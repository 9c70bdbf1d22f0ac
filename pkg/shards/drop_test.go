package shards

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// part is a cluster with some of the nodes.
func (c *cluster) part(nodes ...int) *cluster {
	p := &cluster{t: c.t, sites: map[string][]*member{}}
	for _, i := range nodes {
		for site := range c.sites {
			p.sites[site] = append(p.sites[site], c.sites[site][i])
		}
	}
	return p
}

// goOn waits until copies show later epochs, of exactly those shards.
func (c *cluster) goOn(site string, shards ...epoch.ShardID) {
	c.t.Helper()
	var first epoch.ID
	c.eventually(fmt.Sprintf("the copies show epochs of the shards %v", shards), func() bool {
		for _, m := range c.sites[site] {
			g := m.group()
			if g == nil {
				return false
			}
			p := g.Shard().Progress()
			if !slices.Equal(p.Shards, shards) || p.Shown.IsZero() {
				return false
			}
			if first.IsZero() {
				first = p.Shown
			}
			if p.Shown.Number < first.Number+3 {
				return false
			}
		}
		return true
	})
}

// TestShardLeaves has an empty shard leave its group, also the one that cut the epochs. The others go on without it,
// whatever becomes of its node.
func TestShardLeaves(t *testing.T) {
	for _, leaves := range []int{2, 0} {
		c := newCluster(t, 3)
		c.create(nil)
		c.waitShown("b")
		id := epoch.ShardID(leaves)
		rest := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == leaves })
		remaining := []epoch.ShardID{epoch.ShardID(rest[0]), epoch.ShardID(rest[1])}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		by := c.sites["a"][rest[1]]
		if err := by.node.Drop(ctx, "shop", id, false); !errors.Is(err, core.ErrPrecondition) ||
			!strings.Contains(err.Error(), "volumes") {
			t.Fatalf("a shard with a volume leaves: %v", err)
		}
		if err := by.node.Drop(ctx, "shop", id, true); !errors.Is(err, core.ErrPrecondition) {
			t.Fatalf("a shard that answers is given up: %v", err)
		}
		gone := c.sites["a"][leaves]
		gone.net.Cut("b")
		if err := gone.group().RemoveVolume(fmt.Sprintf("v%d", leaves), nil); err != nil {
			t.Fatal(err)
		}
		c.leavesOnlyWithItsCopy(by, gone, id)
		for range 2 {
			if err := by.node.Drop(ctx, "shop", id, false); err != nil {
				t.Fatal(err)
			}
		}
		c.eventually("the copy has taken the volume out", func() bool {
			return len(c.sites["b"][leaves].group().Volumes()) == 0
		})
		others := c.part(rest...)
		others.goOn("b", remaining...)
		rec, err := gone.pool.Create(blockdev.VolumeRecord{ID: "late", Name: "late", SizeBytes: volumeBytes, Replicable: true,
			Order: blockdev.OrderAck})
		if err != nil {
			t.Fatal(err)
		}
		if err := gone.group().AddVolume(rec, nil); !errors.Is(err, core.ErrPrecondition) {
			t.Errorf("a volume joins a shard that has left: %v", err)
		}
		gone.kill()
		others.goOn("b", remaining...)
		// What is done to the whole group does not wait for it, although older configurations name it.
		if _, err := by.node.Demote(ctx, "shop"); err != nil {
			t.Errorf("demotion without the shard that left: %v", err)
		}
		if err := by.node.Promote(ctx, "shop", false); err != nil {
			t.Errorf("taken back: %v", err)
		}
		for _, m := range others.sites["a"] {
			m.kill()
		}
		if err := others.sites["b"][0].node.Promote(ctx, "shop", true); err != nil {
			t.Errorf("promotion without the shard that left: %v", err)
		}
		c.stop()
	}
}

// leavesOnlyWithItsCopy: while its line is cut, a shard does not leave. The line heals.
func (c *cluster) leavesOnlyWithItsCopy(by, leaving *member, id epoch.ShardID) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- by.node.Drop(ctx, "shop", id, false) }()
	select {
	case err := <-ended:
		c.t.Fatalf("a shard leaves whose copy still has a volume: %v", err)
	case <-time.After(10 * dropPoll):
	}
	cancel()
	if err := <-ended; !errors.Is(err, core.ErrNotYet) && !errors.Is(err, context.Canceled) {
		c.t.Fatalf("interrupted: %v", err)
	}
	leaving.net.Heal("b")
}

// TestLostShardIsGivenUp loses a node of the primary site for good, also the one that cut the epochs. The others have
// no epochs until a person gives it up. If it comes back, it does not disturb them.
func TestLostShardIsGivenUp(t *testing.T) {
	for _, lost := range []int{1, 0} {
		c := newCluster(t, 3)
		c.create(nil)
		c.waitShown("b")
		rest := slices.DeleteFunc([]int{0, 1, 2}, func(i int) bool { return i == lost })
		remaining := []epoch.ShardID{epoch.ShardID(rest[0]), epoch.ShardID(rest[1])}
		gone, by := c.sites["a"][lost], c.sites["a"][rest[0]]
		gone.kill()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := by.node.Drop(ctx, "shop", epoch.ShardID(lost), false); !errors.Is(err, core.ErrPrecondition) ||
			!strings.Contains(err.Error(), "--lost") {
			t.Fatalf("a shard that does not answer leaves: %v", err)
		}
		for range 2 {
			if err := by.node.Drop(ctx, "shop", epoch.ShardID(lost), true); err != nil {
				t.Fatal(err)
			}
		}
		others := c.part(rest...)
		others.goOn("b", remaining...)
		gone.start()
		c.eventually("the lost shard knows that it was given up", func() bool {
			id, _ := gone.group().Shard().Identity()
			return !id.Config.Has(epoch.ShardID(lost)) || lost != 0 // no other one asks it
		})
		others.goOn("b", remaining...)
		c.stop()
	}
}

// TestPromotionWithoutALostCopy loses the primary site, and the copy of one shard for good. The others are promoted
// without it when a person says so, and not before.
func TestPromotionWithoutALostCopy(t *testing.T) {
	c := newCluster(t, 3)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	w.writes(60)
	after := c.waitShown("b")
	c.eventually("the writes are in an epoch", func() bool { return c.waitShown("b").Number > after.Number+1 })
	for _, m := range c.sites["a"] {
		m.kill()
	}
	c.sites["b"][2].kill()
	by := c.sites["b"][1].node
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := by.Promote(short, "shop", true); err == nil || !strings.Contains(err.Error(), "shard 2") {
		t.Fatalf("promoted without a copy: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := by.Promote(ctx, "shop", true)
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "--without") {
		t.Fatalf("promoted without a copy, or waited for it for too long: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := by.Promote(ctx, "shop", true, 0); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("a copy that answers is called lost: %v", err)
	}
	for range 2 {
		if err := by.Promote(ctx, "shop", true, 2); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.sites["b"][:2] {
		id, _ := m.group().Shard().Identity()
		if id.Role != core.RolePrimary || !slices.Equal(id.Config.Shards, []epoch.ShardID{0, 1}) {
			t.Errorf("node %s: %+v", m.Address(), id)
		}
		w.wholeAt(m)
	}
	rest := &chain{c: c.part(0, 1), site: "b"}
	rest.writes(20)
	c.yieldsWithoutALostShard(2)
}

// yieldsWithoutALostShard brings site a back after site b was promoted without a shard. As the message says, that one
// is deleted and given up, and the others give way.
func (c *cluster) yieldsWithoutALostShard(lost int) {
	c.t.Helper()
	a := c.sites["a"]
	for _, m := range a {
		m.start()
	}
	others := c.part(0, 1)
	c.eventually("the others know of the promotion", func() bool {
		return !slices.ContainsFunc(others.sites["a"], func(m *member) bool {
			return m.group().Status().State != core.StateDiverged
		})
	})
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	_, err := a[0].node.Yield(ctx, "shop", false)
	want := fmt.Sprintf("slipctl group drop-shard NAME %d --lost", lost)
	if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), want) {
		c.t.Fatalf("with the shard that has no copy: %v", err)
	}
	if err := a[lost].engine.DeleteGroup(a[lost].groupName(), true); err != nil {
		c.t.Fatal(err)
	}
	if err := a[0].node.Drop(ctx, "shop", epoch.ShardID(lost), true); err != nil {
		c.t.Fatal(err)
	}
	if _, err := a[0].node.Yield(ctx, "shop", false); err != nil {
		c.t.Fatal(err)
	}
	others.goOn("a", 0, 1)
}
