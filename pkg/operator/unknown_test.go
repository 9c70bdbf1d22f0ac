package operator

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// unlabel takes the label off a namespace, so that its group is deleted.
func (s *site) unlabel(namespace string) {
	s.T.Helper()
	ns := &corev1.Namespace{}
	s.Get(ns, "", namespace)
	ns.Labels = nil
	s.Update(ns)
	s.Settle(namespace)
}

// wantGone wants that a group was deleted, or that its deletion waits.
func (s *site) wantGone(gone bool) {
	s.T.Helper()
	g := &v1alpha1.ConsistencyGroup{}
	err := s.Client.Get(context.Background(), types.NamespacedName{Namespace: "shop", Name: "shop"}, g)
	if client.IgnoreNotFound(err) != nil {
		s.T.Fatal(err)
	}
	if (err != nil) != gone || !gone && (g.DeletionTimestamp.IsZero() || len(g.Finalizers) == 0) {
		s.T.Errorf("the group is gone: %v, want %v: %+v", err != nil, gone, g.ObjectMeta)
	}
}

// TestRollsBack: a group whose images are restored takes no calls, whatever its list of volumes says, and its object
// stays until it is known what it becomes.
func TestRollsBack(t *testing.T) {
	for _, c := range []struct {
		name         string
		during, then sidecarpb.Role
	}{
		{"a trial is taken back", sidecarpb.Role_ROLE_PRIMARY, sidecarpb.Role_ROLE_SECONDARY},
		{"a copy is promoted", sidecarpb.Role_ROLE_SECONDARY, sidecarpb.Role_ROLE_PRIMARY},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "a")
			s.Shop("a")
			volumes := map[string][]*sidecarpb.VolumeStatus{}
			s.Change(func(g *sidecarpb.GroupStatus) {
				volumes[g.GetName()] = g.GetVolumes()
				g.Role, g.State, g.Volumes = c.during, sidecarpb.GroupState_GROUP_STATE_CONNECTING, nil
				g.Connected, g.RollingBack = false, true
			})
			s.Nodes["a"].Took()
			s.Settle("shop")
			s.unlabel("shop")
			s.wantGone(false)
			if calls := s.Nodes["a"].Took(); len(calls) > 0 {
				t.Errorf("calls: %v", calls)
			}
			s.Change(func(g *sidecarpb.GroupStatus) {
				g.Role, g.Volumes, g.RollingBack = c.then, volumes[g.GetName()], false
			})
			s.Settle("shop")
			s.wantGone(true)
			want := map[string][]string{}
			if c.then == sidecarpb.Role_ROLE_SECONDARY {
				want["a/shop"] = []string{"vol-shop-one"}
			}
			s.WantEngine(want)
		})
	}
}

// TestDeletionWaitsForWhatIsUnknown: an object stays while a group of it could be primary here and cannot be asked. Its
// status names the group, its node and the way out, and the deletion ends when the group is known.
func TestDeletionWaitsForWhatIsUnknown(t *testing.T) {
	unreadable := func(n *operatortest.Node) {
		for name := range n.Groups {
			n.Groups[name] = &sidecarpb.GroupStatus{Name: name, State: sidecarpb.GroupState_GROUP_STATE_FAILED,
				StateReason: "group.json: input/output error"}
		}
	}
	for _, c := range []struct {
		name   string
		hide   func(*operatortest.Node)
		show   func(*operatortest.Node, map[string]*sidecarpb.GroupStatus)
		status metav1.ConditionStatus
		reason string
		says   string
	}{
		{"a group cannot be opened", unreadable,
			func(n *operatortest.Node, had map[string]*sidecarpb.GroupStatus) { n.Groups = had },
			metav1.ConditionFalse, "GroupUnreadable", "of node b cannot be opened: group.json: input/output error"},
		{"a group that never opens again is given up", unreadable,
			func(n *operatortest.Node, _ map[string]*sidecarpb.GroupStatus) { clear(n.Groups) },
			metav1.ConditionFalse, "GroupUnreadable", "on that node: slipctl group delete shop-"},
		{"a driver has no replicator", func(n *operatortest.Node) { n.Without = true },
			func(n *operatortest.Node, _ map[string]*sidecarpb.GroupStatus) { n.Without = false },
			metav1.ConditionUnknown, "NoReplicator", "replication.enabled=true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "a", "b")
			s.Shop("a", "b")
			b := s.Nodes["b"]
			had := maps.Clone(b.Groups)
			c.hide(b)
			s.Settle("shop")
			b.Took()
			s.unlabel("shop")
			s.Reset() // a new process
			s.Settle("shop")
			s.wantGone(false)
			g := s.Group("shop", "shop")
			operatortest.WantCondition(t, g, v1alpha1.ConditionPeerReachable, c.status, c.reason)
			message := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionPeerReachable).Message
			if !strings.Contains(message, "the deletion waits: ") || !strings.Contains(message, c.says) {
				t.Errorf("message: %s", message)
			}
			if calls := b.Took(); slices.ContainsFunc(calls, func(call string) bool { return call != "ListGroups" }) {
				t.Errorf("calls: %v", calls)
			}
			c.show(b, had)
			s.Settle("shop")
			s.wantGone(true)
			s.WantEngine(map[string][]string{})
		})
	}
}

// TestUnreadableIsNotEmpty: a group that cannot be opened gets no volumes and is not taken for an empty one.
func TestUnreadableIsNotEmpty(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a", label(v1alpha1.LabelConsistencyGroup, "reports"))
	s.Settle("shop")
	s.Change(func(g *sidecarpb.GroupStatus) { g.Role, g.Volumes = sidecarpb.Role_ROLE_UNSPECIFIED, nil })
	s.Nodes["a"].Took()
	s.Settle("shop")
	if m := s.Group("shop", "reports").Status.Members[0]; m.State != v1alpha1.MemberFailed ||
		!strings.Contains(m.Reason, "cannot be opened") {
		t.Errorf("member: %+v", m)
	}
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "one")
	claim.Labels = map[string]string{v1alpha1.LabelReplicate: "false"} // nothing asks for the group anymore
	s.Update(claim)
	s.Settle("shop")
	if g := s.Group("shop", "reports"); !g.DeletionTimestamp.IsZero() {
		t.Errorf("the group is deleted: %+v", g.ObjectMeta)
	}
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestConditionsOfWhatIsUnknown: a condition is True only if that is known, and what is known to be wrong stays False
// while something else is not known.
func TestConditionsOfWhatIsUnknown(t *testing.T) {
	const yes, no, unknown = metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionUnknown
	away := func(g *sidecarpb.GroupStatus) {
		g.Connected, g.State = false, sidecarpb.GroupState_GROUP_STATE_CONNECTING
	}
	type condition struct {
		kind   string
		status metav1.ConditionStatus
		reason string
	}
	for _, c := range []struct {
		name   string
		change func(*site)
		want   []condition
	}{
		{"all is known", func(*site) {}, []condition{
			{v1alpha1.ConditionConverged, yes, "OneHistory"}, {v1alpha1.ConditionWithinRPO, yes, "WithinTarget"},
			{v1alpha1.ConditionPeerReachable, yes, "Connected"}, {v1alpha1.ConditionReady, yes, "Protected"}}},
		{"a node is silent", func(s *site) { s.Nodes["b"].Silent = true }, []condition{
			{v1alpha1.ConditionConverged, unknown, "NodeSilent"}, {v1alpha1.ConditionWithinRPO, unknown, "NodeSilent"},
			{v1alpha1.ConditionPromotable, unknown, "NodeSilent"}, {v1alpha1.ConditionPeerReachable, unknown, "NodeSilent"}}},
		{"a node is silent for a new operator", func(s *site) {
			s.Nodes["b"].Silent = true
			s.Watcher = engine.NewWatcher(s, func(_, _ *engine.View) {})
			s.Reset()
		}, []condition{
			{v1alpha1.ConditionConverged, unknown, "NodeSilent"}, {v1alpha1.ConditionWithinRPO, unknown, "NodeSilent"},
			{v1alpha1.ConditionPromotable, unknown, "NodeSilent"}, {v1alpha1.ConditionPeerReachable, unknown, "NodeSilent"}}},
		{"the peer is away, and the lag is small", func(s *site) { s.Change(away) }, []condition{
			{v1alpha1.ConditionConverged, unknown, "PeerNotHeard"}, {v1alpha1.ConditionWithinRPO, yes, "WithinTarget"},
			{v1alpha1.ConditionPeerReachable, no, "NotConnected"}, {v1alpha1.ConditionReady, no, "NotConnected"}}},
		{"the peer is away, and the lag is large", func(s *site) {
			s.Change(away)
			s.Change(func(g *sidecarpb.GroupStatus) { g.Lagging = true })
		}, []condition{{v1alpha1.ConditionWithinRPO, no, "Lagging"}, {v1alpha1.ConditionReady, no, "NotConnected"}}},
		{"a node is silent, and the copy of the other one lags", func(s *site) {
			s.Nodes["b"].Silent = true
			for _, g := range s.Nodes["a"].Groups {
				g.Lagging = true
			}
		}, []condition{{v1alpha1.ConditionWithinRPO, no, "Lagging"}, {v1alpha1.ConditionConverged, unknown, "NodeSilent"}}},
		{"both sites wrote, and a node is silent", func(s *site) {
			s.Nodes["b"].Silent = true
			for _, g := range s.Nodes["a"].Groups {
				g.State = sidecarpb.GroupState_GROUP_STATE_DIVERGED
			}
		}, []condition{{v1alpha1.ConditionConverged, no, "Diverged"}}},
		{"the lag is not told", func(s *site) {
			s.Change(func(g *sidecarpb.GroupStatus) { g.LagSeconds = nil })
		}, []condition{{v1alpha1.ConditionWithinRPO, unknown, "LagUnknown"}, {v1alpha1.ConditionReady, no, "LagUnknown"}}},
		{"a group cannot be opened", func(s *site) {
			for _, g := range s.Nodes["b"].Groups {
				g.Role, g.State, g.Volumes = sidecarpb.Role_ROLE_UNSPECIFIED, sidecarpb.GroupState_GROUP_STATE_FAILED, nil
			}
		}, []condition{
			{v1alpha1.ConditionConverged, unknown, "GroupUnreadable"}, {v1alpha1.ConditionWithinRPO, unknown, "GroupUnreadable"},
			{v1alpha1.ConditionPromotable, unknown, "GroupUnreadable"},
			{v1alpha1.ConditionPeerReachable, no, "GroupUnreadable"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "a", "b")
			remote := operatortest.Remote("site-b")
			remote.Spec.Defaults.RPOTarget = &metav1.Duration{Duration: time.Minute}
			s.Create(remote, operatortest.Labelled("shop"))
			s.Claim("shop", "one", "a")
			s.Claim("shop", "two", "b")
			s.Settle("shop")
			c.change(s)
			s.Settle("shop")
			for _, want := range c.want {
				operatortest.WantCondition(t, s.Group("shop", "shop"), want.kind, want.status, want.reason)
			}
		})
	}
	t.Run("there are no claims", func(t *testing.T) {
		s := newSite(t, "a")
		s.Shop()
		for _, kind := range []string{v1alpha1.ConditionConverged, v1alpha1.ConditionPeerReachable,
			v1alpha1.ConditionPromotable} {
			operatortest.WantCondition(t, s.Group("shop", "shop"), kind, unknown, "NoMembers")
		}
		operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionReady, no, "NoMembers")
	})
}
