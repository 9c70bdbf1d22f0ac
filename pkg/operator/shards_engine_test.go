package operator

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/shards"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestRealShards: drivers and replicators of two nodes, as they are, become one group when the operator asks for it.
// The other site has one node, which has both copies, and promotes both.
func TestRealShards(t *testing.T) {
	network := link.NewNetwork(nil)
	t.Cleanup(network.Close)
	pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(t.TempDir(), "pool"), blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	there, err := replication.Open(replication.Config{FS: vfs.OS, Pool: pool, Site: "site-b",
		Dialer: network.Dialer("site-b"), PeerAddress: func(string) string { return "memory" },
		HeartbeatInterval: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	network.Attach("site-b", there)
	node := shards.New(shards.Options{Name: "b1", Site: there})
	t.Cleanup(func() {
		node.Close()
		there.Kill()
		pool.Close()
	})

	replicators, create := realNodes(t, network, "a1", "a2")
	s := newSite(t, "a1", "a2")
	s.Events = events.NewFakeRecorder(1000)
	s.Watcher = engine.NewWatcher(replicators, func(_, _ *engine.View) {})
	s.Reset()
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	eventually(t, "the nodes answer", func() bool {
		s.Watcher.Look(context.Background())
		v := s.Watcher.View()
		return len(v.Nodes) == 2 && len(v.Silent()) == 0
	})
	bind := func(claim, at string) {
		s.Claim("shop", claim, at)
		pv := operatortest.Volume("vol-shop-"+claim, "shop", claim, at)
		s.Get(pv, "", pv.Name)
		pv.Spec.CSI.VolumeHandle = create[at](claim, true)
		s.Update(pv)
	}
	settled := func(what string, condition func(*v1alpha1.ConsistencyGroup) bool) {
		t.Helper()
		eventually(t, what, func() bool {
			s.Settle("shop")
			return condition(s.Group("shop", "shop"))
		})
	}
	bind("one", "a1")
	settled("the first node is connected", func(g *v1alpha1.ConsistencyGroup) bool {
		return len(g.Status.EngineGroups) == 1 && g.Status.State == "Streaming"
	})
	bind("two", "a2")
	settled("both nodes have one order", func(g *v1alpha1.ConsistencyGroup) bool {
		return len(g.Status.EngineGroups) == 2 && g.Status.State == "Streaming" && g.Status.MembersReady == "2/2"
	})
	eventually(t, "all shards have joined", func() bool {
		s.Settle("shop")
		for _, c := range s.Group("shop", "shop").Status.Conditions {
			if c.Type == v1alpha1.ConditionWriteOrder {
				return c.Status == metav1.ConditionTrue
			}
		}
		return false
	})
	g := s.Group("shop", "shop")
	wantRecord(t, g, g.Status.Shards.Name, 0, 1)
	numbers := map[string]int32{}
	for _, e := range g.Status.EngineGroups {
		if e.Shard == nil {
			t.Fatalf("no shard: %+v", e)
		}
		numbers[e.Node] = *e.Shard
	}
	if numbers["a1"] != 0 || numbers["a2"] != 1 {
		t.Errorf("numbers: %v", numbers)
	}

	copies := func(want func(*replication.Shard) bool) bool {
		list := there.Shards()
		for _, c := range list {
			if !want(c) {
				return false
			}
		}
		return len(list) == 2
	}
	eventually(t, "both copies show an epoch of both shards", func() bool {
		return copies(func(c *replication.Shard) bool {
			p := c.Progress()
			return !p.Shown.IsZero() && len(p.Shards) == 2
		})
	})
	// The label is removed and set again. The copies are empty by then, and make way for those of another group.
	relabel := func(labels map[string]string) {
		ns := operatortest.Labelled("shop")
		s.Get(ns, "", "shop")
		ns.Labels = labels
		s.Update(ns)
	}
	first := g.Status.Shards.Name
	relabel(nil)
	eventually(t, "nothing is left at the engine", func() bool {
		s.Settle("shop")
		time.Sleep(time.Second)
		s.Clock = s.Clock.Add(time.Second)
		return len(groupsAt(s.Watcher.View())) == 0
	})
	relabel(operatortest.Labelled("shop").Labels)
	settled("both nodes have one order again", func(g *v1alpha1.ConsistencyGroup) bool {
		return len(g.Status.EngineGroups) == 2 && g.Status.State == "Streaming" && g.Status.MembersReady == "2/2"
	})
	g = s.Group("shop", "shop")
	if g.Status.Shards == nil || g.Status.Shards.Name == first {
		t.Fatalf("shards of %+v, and before of %s", g.Status.Shards, first)
	}
	eventually(t, "both copies show an epoch of both shards again", func() bool {
		return copies(func(c *replication.Shard) bool {
			p := c.Progress()
			return !p.Shown.IsZero() && len(p.Shards) == 2
		})
	})

	network.Cut("site-a")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := node.Promote(ctx, g.Status.Shards.Name, true); err != nil {
		t.Fatal(err)
	}
	if !copies(func(c *replication.Shard) bool {
		id, _ := c.Identity()
		return id.Role == core.RolePrimary
	}) {
		t.Error("not all copies are primary")
	}
}
