package operator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
	"github.com/slipstream-storage/slipstream/pkg/operator/plan"
)

// newShardSite is a site whose nodes reach each other.
func newShardSite(t *testing.T, nodes ...string) *site {
	t.Helper()
	s := newSite(t, nodes...)
	s.reach(nodes...)
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	return s
}

// reach has these nodes reach each other, and no others.
func (s *site) reach(nodes ...string) {
	for name, n := range s.Nodes {
		n.Others = func() []string {
			return slices.DeleteFunc(slices.Clone(nodes), func(other string) bool { return other == name })
		}
	}
}

// shards returns the numbers of the groups at the engine by node, and the names of the groups that they are shards of.
func (s *site) shards() (numbers map[string]int, names []string) {
	numbers = map[string]int{}
	for name, n := range s.Nodes {
		n.Mu.Lock()
		for _, g := range n.Groups {
			numbers[name] = -1
			if shard := g.GetShard(); shard != nil {
				numbers[name] = int(shard.GetId())
				names = append(names, shard.GetGroup())
			}
		}
		n.Mu.Unlock()
	}
	slices.Sort(names)
	return numbers, slices.Compact(names)
}

func (s *site) wantShards(want map[string]int) string {
	s.T.Helper()
	numbers, names := s.shards()
	if !maps.Equal(numbers, want) {
		s.T.Fatalf("shards: %v, want %v", numbers, want)
	}
	if len(names) != 1 {
		s.T.Fatalf("shards of %q", names)
	}
	return names[0]
}

// order changes spec.writeOrder.
func (s *site) order(to v1alpha1.WriteOrder) {
	s.T.Helper()
	g := s.Group("shop", "shop")
	g.Spec.WriteOrder = to
	s.Update(g)
}

func wantRecord(t *testing.T, g *v1alpha1.ConsistencyGroup, name string, numbers ...int32) {
	t.Helper()
	var got []int32
	if g.Status.Shards != nil {
		for _, n := range g.Status.Shards.Numbers {
			got = append(got, n.Number)
		}
	}
	if g.Status.Shards == nil || g.Status.Shards.Name != name || !slices.Equal(got, numbers) {
		t.Errorf("record: %+v, want %s with %v", g.Status.Shards, name, numbers)
	}
}

// TestGroupOverNodes: a group grows to a second and a third node, and every write of it has one order.
func TestGroupOverNodes(t *testing.T) {
	s := newShardSite(t, "a", "b", "c")
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	s.wantPlain("a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	name := s.wantShards(map[string]int{"a": 0, "b": 1})
	g := s.Group("shop", "shop")
	wantRecord(t, g, name, 0, 1)
	operatortest.WantCondition(t, g, v1alpha1.ConditionWriteOrder, metav1.ConditionTrue, "Group")
	operatortest.WantCondition(t, g, v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one"}, "b/shop": {"vol-shop-two"}})
	for _, e := range g.Status.EngineGroups {
		if e.Shard == nil || int(*e.Shard) != map[string]int{"a": 0, "b": 1}[e.Node] {
			t.Errorf("shard in the status: %+v", e)
		}
	}
	s.Claim("shop", "three", "c")
	s.Settle("shop")
	if again := s.wantShards(map[string]int{"a": 0, "b": 1, "c": 2}); again != name {
		t.Errorf("the group is now %s, and was %s", again, name)
	}
	for node, n := range s.Nodes {
		n.Took()
		s.Settle("shop")
		if calls := n.Took(); len(calls) > 0 {
			t.Errorf("asked for again at %s: %q", node, calls)
		}
	}
}

// wantPlain wants groups on nodes that are no shards.
func (s *site) wantPlain(nodes ...string) {
	s.T.Helper()
	numbers, _ := s.shards()
	want := map[string]int{}
	for _, node := range nodes {
		want[node] = -1
	}
	if !maps.Equal(numbers, want) {
		s.T.Errorf("shards: %v, want none on %v", numbers, nodes)
	}
}

// TestGroupBeginsOnNodes: the claims are on two nodes before the label is there.
func TestGroupBeginsOnNodes(t *testing.T) {
	s := newShardSite(t, "a", "b")
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	name := s.wantShards(map[string]int{"a": 0, "b": 1})
	if !strings.HasPrefix(name, "shop-") {
		t.Errorf("name %q", name)
	}
	for node, n := range s.Nodes {
		for _, call := range n.Took() {
			if strings.HasPrefix(call, "ModifyGroup") {
				t.Errorf("node %s: %s", node, call)
			}
		}
	}
}

// TestSeparateGroupsStay: groups of an earlier version stay as they are until a person says otherwise.
func TestSeparateGroupsStay(t *testing.T) {
	s := newShardSite(t, "a", "b", "c")
	for _, n := range s.Nodes {
		n.Others = nil
	}
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	s.wantPlain("a", "b")
	s.reach("a", "b", "c")
	s.Claim("shop", "three", "c")
	s.Settle("shop")
	s.wantPlain("a", "b", "c")
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionWriteOrder, metav1.ConditionFalse, "Node")
	if !strings.Contains(g.Status.NextStep, `patch cg shop --type merge -p '{"spec":{"writeOrder":"Group"}}'`) {
		t.Errorf("next step: %s", g.Status.NextStep)
	}
	s.order(v1alpha1.WriteOrderGroup)
	s.Settle("shop")
	s.wantShards(map[string]int{"a": 0, "b": 1, "c": 2})
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionWriteOrder, metav1.ConditionTrue, "Group")
}

// TestOrderOfNodes: a person wants an order for each node.
func TestOrderOfNodes(t *testing.T) {
	s := newShardSite(t, "a", "b")
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	s.order(v1alpha1.WriteOrderNode)
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	s.wantPlain("a", "b")
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionWriteOrder, metav1.ConditionFalse, "Node")
}

// TestNodesUnable: nodes that cannot have one group. A group that did not ask for it is replicated by node; one that
// did, or that has shards, waits. Nothing at the engine changes for those that are there.
func TestNodesUnable(t *testing.T) {
	for _, c := range []struct {
		name, want string
		unable     func(*site)
	}{
		{"old", "version without", func(s *site) { s.Nodes["b"].Others = nil }},
		{"unreached", "does not reach that of node b", func(s *site) { s.reach("a") }},
		{"unconnected", "when it is connected", func(s *site) {
			s.Change(func(g *sidecarpb.GroupStatus) { g.Connected = false })
		}},
		{"silent", "nodes c do not answer", func(s *site) { s.Nodes["c"].Silent = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, asked := range []bool{false, true} {
				s := newShardSite(t, "a", "b", "c")
				s.Claim("shop", "one", "a")
				s.Settle("shop")
				if asked {
					s.order(v1alpha1.WriteOrderGroup)
				}
				c.unable(s)
				s.Claim("shop", "two", "b")
				s.Settle("shop")
				g := s.Group("shop", "shop")
				if waits := asked || c.name == "unconnected" || c.name == "silent"; !waits {
					s.wantPlain("a", "b")
					continue
				}
				s.wantPlain("a")
				m := g.Status.Members[slices.IndexFunc(g.Status.Members,
					func(m v1alpha1.Member) bool { return m.Claim == "two" })]
				if m.State != v1alpha1.MemberPending || !strings.Contains(m.Reason, c.want) {
					t.Errorf("member: %+v, want %q", m, c.want)
				}
				operatortest.WantCondition(t, g, v1alpha1.ConditionWriteOrder, metav1.ConditionFalse, "NodeUnable")
				if g.Status.Shards != nil {
					t.Errorf("numbers are recorded: %+v", g.Status.Shards)
				}
				s.Nodes["c"].Silent = false
				s.reach("a", "b", "c")
				s.Change(func(g *sidecarpb.GroupStatus) { g.Connected = true })
				s.Settle("shop")
				s.wantShards(map[string]int{"a": 0, "b": 1})
			}
		})
	}
}

// TestShardStatus: what the condition says of shards.
func TestShardStatus(t *testing.T) {
	s := newShardSite(t, "a", "b")
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	at := func(node string, change func(*sidecarpb.GroupStatus)) {
		for _, g := range s.Nodes[node].Groups {
			change(g)
		}
	}
	want := func(status metav1.ConditionStatus, reason string) {
		t.Helper()
		s.Settle("shop")
		operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionWriteOrder, status, reason)
	}
	joined := func(is bool) func(*sidecarpb.GroupStatus) {
		return func(g *sidecarpb.GroupStatus) { g.Shard.Shards[0].Joined = is }
	}
	at("b", joined(false))
	want(metav1.ConditionFalse, "Joining")
	at("b", joined(true))
	at("a", func(g *sidecarpb.GroupStatus) { g.Shard.SilentNodes = []string{"10.0.0.2:9443"} })
	want(metav1.ConditionFalse, "ShardAway")
	at("a", func(g *sidecarpb.GroupStatus) { g.Shard.SilentNodes, g.Shard.Numbers = nil, []uint32{0, 1, 2} })
	want(metav1.ConditionFalse, "ShardAway")
	wantRecord(t, s.Group("shop", "shop"), s.Group("shop", "shop").Status.Shards.Name, 0, 1, 2)
	at("a", func(g *sidecarpb.GroupStatus) { g.Shard.Numbers = []uint32{0, 1} })
	want(metav1.ConditionTrue, "Group")

	slow := 7.0
	at("b", func(g *sidecarpb.GroupStatus) { g.LagSeconds = &slow })
	s.Clock = s.Clock.Add(figuresInterval)
	want(metav1.ConditionTrue, "Group")
	lag := s.Group("shop", "shop").Status.Lag
	if lag == nil || lag.Time.Seconds() != 7 || !strings.HasPrefix(lag.EngineGroup, "shop-") ||
		s.Nodes["b"].Groups[lag.EngineGroup] == nil {
		t.Errorf("lag: %+v, the slowest is on node b", lag)
	}
	s.Nodes["b"].Silent = true
	want(metav1.ConditionUnknown, "NodeSilent")
}

// TestEmptyShardStays: without it the others would have no complete epochs. When all are empty, all are deleted, and
// what is made then is another group.
func TestEmptyShardStays(t *testing.T) {
	s := newShardSite(t, "a", "b")
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	first := s.wantShards(map[string]int{"a": 0, "b": 1})
	out := func(claim, value string) {
		c := &corev1.PersistentVolumeClaim{}
		s.Get(c, "shop", claim)
		c.Labels = map[string]string{v1alpha1.LabelReplicate: value}
		s.Update(c)
		s.Settle("shop")
	}
	out("two", "false")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one"}, "b/shop": {}})
	out("one", "false")
	s.WantEngine(map[string][]string{"a/shop": {}, "b/shop": {}}) // the copies hear of it
	s.Clock = s.Clock.Add(settleTime)
	s.Settle("shop")
	s.WantEngine(map[string][]string{})
	if g := s.Group("shop", "shop"); g.Status.Shards != nil {
		t.Errorf("the record stays: %+v", g.Status.Shards)
	}
	out("one", "true")
	out("two", "true")
	if second := s.wantShards(map[string]int{"a": 0, "b": 1}); second == first {
		t.Errorf("another group has the name %s again", second)
	}
}

// TestRecordLost: the status comes from an older backup, or is empty. The nodes tell of the numbers, and a number of a
// shard that no node tells of is not used again.
func TestRecordLost(t *testing.T) {
	s := newShardSite(t, "a", "b", "c", "d")
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	name := s.wantShards(map[string]int{"a": 0, "b": 1})
	g := s.Group("shop", "shop")
	g.Status.Shards = nil
	if err := s.Client.Status().Update(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	for _, group := range s.Nodes["a"].Groups {
		group.Shard.Numbers = []uint32{0, 1, 2} // of a node that is gone for good
	}
	s.Claim("shop", "three", "c")
	s.Settle("shop")
	if again := s.wantShards(map[string]int{"a": 0, "b": 1, "c": 3}); again != name {
		t.Errorf("the group is now %s, and was %s", again, name)
	}
	wantRecord(t, s.Group("shop", "shop"), name, 0, 1, 2, 3)
}

// TestTwoOperators: one of them decides from an older version of the object. It makes no shard.
func TestTwoOperators(t *testing.T) {
	s := newShardSite(t, "a", "b")
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	s.Claim("shop", "two", "b")
	s.Watcher.Look(context.Background())
	in, err := s.r.read(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	s.Settle("shop") // the other one
	name := s.wantShards(map[string]int{"a": 0, "b": 1})
	p := plan.Make(in)
	if !p.Groups[0].Shards.Added {
		t.Fatal("the older state needs no numbers")
	}
	if ok, err := s.r.recordShards(context.Background(), in, p.Groups[0]); ok || !apierrors.IsConflict(err) {
		t.Errorf("recorded: %v, %v", ok, err)
	}
	wantRecord(t, s.Group("shop", "shop"), name, 0, 1)
}

// TestGrowthSurvivesDeath: an operator that is killed at any call while a group grows to two nodes at once leaves what
// the next one completes: the same numbers, and one group.
func TestGrowthSurvivesDeath(t *testing.T) {
	for at := 1; ; at++ {
		for _, after := range []bool{false, true} {
			s := newShardSite(t, "a", "b", "c")
			s.Claim("shop", "one", "a")
			s.Settle("shop")
			s.Claim("shop", "two", "b")
			s.Claim("shop", "three", "c")
			s.Death = &operatortest.Death{At: at, After: after}
			s.pass()
			died := s.Death.IsDead()
			recorded := s.Group("shop", "shop").Status.Shards
			s.Death = nil
			s.Reset()
			s.Settle("shop")
			name := s.wantShards(map[string]int{"a": 0, "b": 2, "c": 1})
			if recorded != nil && recorded.Name != name {
				t.Errorf("killed at call %d: recorded %s, made %s", at, recorded.Name, name)
			}
			wantRecord(t, s.Group("shop", "shop"), name, 0, 1, 2)
			operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionReady, metav1.ConditionTrue,
				"Protected")
			if !died {
				if at < 8 {
					t.Errorf("only %d calls", at-1)
				}
				return
			}
		}
	}
}

// pass is one look and one reconciliation, which may fail.
func (s *site) pass() {
	s.Watcher.Look(context.Background())
	_, _ = s.r.Reconcile(context.Background(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "shop"}})
}

// TestFailoverOfShards: one call promotes all shards, and the others are not asked.
func TestFailoverOfShards(t *testing.T) {
	s := newShardSite(t, "a", "b")
	for i, node := range []string{"a", "b"} {
		id := s.Claim("shop", fmt.Sprint("data-", i), node)
		s.Nodes[node].Groups["copy-"+node] = &sidecarpb.GroupStatus{Name: "copy-" + node, Timeline: "t",
			Connected: true,
			Role:      sidecarpb.Role_ROLE_SECONDARY, State: sidecarpb.GroupState_GROUP_STATE_STREAMING, Promotable: true,
			Peer: "site-b", Volumes: []*sidecarpb.VolumeStatus{{VolumeId: id, ClaimNamespace: "shop"}},
			Shard: &sidecarpb.ShardStatus{Group: "whole", Id: uint32(i), Numbers: []uint32{0, 1}}}
	}
	s.Nodes["a"].Promotes = s.Nodes["b"] // as the replicators do it between them
	s.Settle("shop")
	g := s.Group("shop", "shop")
	g.Spec.EngineGroups = []string{"copy-a", "copy-b"}
	s.Update(g)
	s.Settle("shop")
	g = s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionWriteOrder, metav1.ConditionTrue, "Group")
	if g.Status.Role != v1alpha1.RoleSecondary {
		t.Fatalf("status: %+v", g.Status)
	}
	done := s.Act("failover", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover, Force: true,
		Confirm: g.Status.Confirm}).Status
	if done.Phase != v1alpha1.ActionSucceeded || len(done.Steps) != 1 || done.Result.Loss == nil {
		t.Errorf("action: %+v", done)
	}
	for _, call := range s.Nodes["b"].Took() {
		if strings.HasPrefix(call, "Promote") {
			t.Errorf("node b was asked: %s", call)
		}
	}
	s.Settle("shop")
	if g = s.Group("shop", "shop"); g.Status.Role != v1alpha1.RolePrimary {
		t.Errorf("role %s", g.Status.Role)
	}
	// The group grows at this site: the numbers are those of the shards that came from the other one.
	s.Nodes["c"] = newSite(t, "c").Nodes["c"]
	s.reach("a", "b", "c")
	s.Claim("shop", "three", "c")
	s.Settle("shop")
	wantRecord(t, s.Group("shop", "shop"), "whole", 0, 1, 2)
}
