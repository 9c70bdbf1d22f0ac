package shards

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// separate makes a group of its own on each of the first nodes of site a, with one volume.
func (c *cluster) separate(nodes int) {
	c.t.Helper()
	for i, m := range c.sites["a"][:nodes] {
		c.add(m, i, core.Shard{})
	}
}

// add makes the group of a node.
func (c *cluster) add(m *member, i int, shard core.Shard) {
	c.t.Helper()
	g, err := m.engine.CreateGroup(replication.GroupSpec{Name: m.groupName(), Settings: core.Settings{Peer: "b",
		JournalSizeBytes: replication.MinJournalBytes, Shard: shard}})
	if err != nil {
		c.t.Fatal(err)
	}
	name := fmt.Sprintf("v%d", i)
	rec, err := m.pool.Create(blockdev.VolumeRecord{ID: name, Name: name, SizeBytes: volumeBytes, Replicable: true,
		Order: blockdev.OrderAck})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) shardOf(i int) core.Shard {
	return core.Shard{Group: "shop", ID: epoch.ShardID(i), EpochMillis: 100}
}

// become makes the separate group of a node a shard.
func (c *cluster) become(i int) {
	c.t.Helper()
	err := c.sites["a"][i].group().Modify(func(s *core.Settings) { s.Shard = c.shardOf(i) })
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestGroupsBecomeShards: groups that replicate on their own, under writes, become the shards of one, in any order, and
// others join. From the first epoch of all of them on, no write is at the copy without its cause.
func TestGroupsBecomeShards(t *testing.T) {
	for _, before := range []int{1, 2, 3} {
		rng := seeded(t)
		const nodes = 3
		c := newCluster(t, nodes)
		c.separate(before)
		c.eventually("the separate groups are whole at the other site", func() bool {
			return !slices.ContainsFunc(c.sites["b"][:before], func(m *member) bool {
				return m.group() == nil || !m.group().Status().Promotable
			})
		})
		w := &chain{c: &cluster{t: t, sites: map[string][]*member{"a": c.sites["a"][:before]}}, site: "a"}
		w.writes(50)
		for _, i := range rng.Perm(nodes) {
			if i < before {
				c.become(i)
			} else {
				c.add(c.sites["a"][i], i, c.shardOf(i))
			}
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond)
		}
		c.waitShown("b")
		// The chain begins anew, over all nodes: what is in its blocks is overwritten first.
		first := w.next
		all := &chain{c: c, site: "a"}
		for range 2*first + 200 {
			if err := all.write(); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range c.sites["a"] {
			m.kill()
		}
		c.promote("b", rng.IntN(nodes), true)
		if got := c.check("b"); got < first {
			t.Errorf("%d writes are there, and those before the change are %d", got, first)
		}
		c.stop()
	}
}

// TestOthers: a node says which of the others it reaches.
func TestOthers(t *testing.T) {
	c := newCluster(t, 3)
	answering, silent, err := c.sites["a"][0].node.Others(t.Context())
	if err != nil || !slices.Equal(answering, []string{"a1", "a2"}) || len(silent) > 0 {
		t.Errorf("%q, %q, %v", answering, silent, err)
	}
	c.sites["a"][2].kill()
	answering, silent, err = c.sites["a"][0].node.Others(t.Context())
	if err != nil || !slices.Equal(answering, []string{"a1"}) || len(silent) != 1 {
		t.Errorf("%q, %q, %v", answering, silent, err)
	}
	alone := New(Options{Name: "x", Site: c.sites["a"][0].engine})
	defer alone.Close()
	if _, _, err := alone.Others(t.Context()); err != ErrAlone {
		t.Errorf("a node without others: %v", err)
	}
}

// TestDisasterBeforeTheFirstEpoch: the primary site is lost at any time after its groups became shards. What could be
// promoted before can be promoted then, also where no epoch is at the other site yet.
func TestDisasterBeforeTheFirstEpoch(t *testing.T) {
	rng := seeded(t)
	for _, before := range []int{1, 2} {
		for _, wait := range []int{3, 10, 30, 80} {
			c := newCluster(t, 2)
			c.separate(before)
			c.eventually("the separate groups are whole at the other site", func() bool {
				return !slices.ContainsFunc(c.sites["b"][:before], func(m *member) bool {
					return m.group() == nil || !m.group().Status().Promotable
				})
			})
			for i, m := range c.sites["a"][:before] {
				w := &chain{c: &cluster{t: t, sites: map[string][]*member{"a": {m}}}, site: "a"}
				for w.next < 20 && i == 0 {
					if err := w.write(); err != nil {
						t.Fatal(err)
					}
				}
				c.become(i)
			}
			if before == 1 && rng.IntN(2) == 0 {
				c.add(c.sites["a"][1], 1, c.shardOf(1))
			}
			time.Sleep(time.Duration(rng.IntN(wait)) * time.Millisecond)
			for _, m := range c.sites["a"] {
				m.kill()
			}
			if g := c.sites["b"][1].group(); before == 1 && g != nil && g.Shard().Separate() {
				t.Error("a copy that was that of a shard from the beginning counts as separate")
			}
			for _, m := range c.sites["b"][:before] {
				var err error
				if _, shard := m.group().Shard().Identity(); shard {
					ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
					err = m.node.Promote(ctx, "shop", true)
					cancel()
				} else { // it has not heard of it
					_, err = m.group().Promote(true)
				}
				if g := m.group(); g.Status().Role != core.RolePrimary {
					_, shard := g.Shard().Identity()
					t.Errorf("%d groups before, %d ms: node %s is %v (shard %v): %v", before, wait, m.Address(), g.Status().Role,
						shard, err)
					for _, m := range c.sites["b"] {
						if g := m.group(); g != nil {
							t.Logf("%s: separate %v, heard %v, %+v, %+v", m.Address(), g.Shard().Separate(), g.Shard().Heard(),
								g.Shard().Progress(), g.Status())
						}
					}
				}
			}
			c.stop()
		}
	}
}
