package operator

import (
	"context"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

const (
	isPrimary = sidecarpb.Role_ROLE_PRIMARY
	isCopy    = sidecarpb.Role_ROLE_SECONDARY
)

// engineGroup puts a group at the engine of a node, with a volume for each of these namespaces.
func (s *site) engineGroup(node, name string, role sidecarpb.Role, namespaces ...string) *sidecarpb.GroupStatus {
	g := &sidecarpb.GroupStatus{Name: name, Role: role, Peer: "site-b", Timeline: "t", Connected: true,
		State: sidecarpb.GroupState_GROUP_STATE_STREAMING}
	for _, namespace := range namespaces {
		g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: "vol-" + name, ClaimNamespace: namespace})
	}
	s.Nodes[node].Groups[name] = g
	return g
}

// names makes an object of an admitted namespace that names groups at the engine.
func (s *site) names(namespace string, groups ...string) {
	s.T.Helper()
	s.Create(operatortest.Labelled(namespace), &v1alpha1.ConsistencyGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "byhand"},
		Spec:       v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", EngineGroups: groups}})
}

// wantTaken wants the reason of the condition Allowed of an object, and that it stands for groups only if that is True.
func (s *site) wantTaken(namespace, reason string) {
	s.T.Helper()
	s.Settle(namespace)
	g := s.Group(namespace, "byhand")
	c := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.ConditionAllowed)
	if c == nil || c.Reason != reason {
		s.T.Errorf("%s: the condition is %+v, want %s", namespace, c, reason)
	}
	if has := len(g.Status.EngineGroups) > 0; has != (reason == "Admitted") {
		s.T.Errorf("%s: with %s the object stands for %+v", namespace, reason, g.Status.EngineGroups)
	}
}

const (
	taken   = "Admitted"
	foreign = "ForeignEngineGroup"
	unsure  = "UnknownEngineGroup"
)

// TestWhoseGroup: an object stands for the groups that it names if they are of its namespace. Of a copy the namespace
// is one of the other site, and is mapped. What is not known is not taken for anything.
func TestWhoseGroup(t *testing.T) {
	mapped := func(s *v1alpha1.RemoteSite) {
		s.Spec.Map.Namespaces = []v1alpha1.NameMapping{{Remote: "shop", Local: "shop-dr"}}
	}
	volumeIn := func(namespace string) func(*site) {
		return func(s *site) { s.Create(operatortest.Volume("vol-x", namespace, "one", "a")) }
	}
	for _, tc := range []struct {
		name string
		site func(*v1alpha1.RemoteSite) // nil: there is none
		role sidecarpb.Role
		has  []string // namespaces of the volumes, by the engine
		more func(*site)
		want map[string]string // reasons by namespace
	}{
		{name: "a copy", site: func(*v1alpha1.RemoteSite) {}, role: isCopy, has: []string{"shop"},
			want: map[string]string{"shop": taken, "bank": foreign}},
		{name: "a copy that is mapped away", site: mapped, role: isCopy, has: []string{"shop"},
			want: map[string]string{"shop": foreign, "shop-dr": taken, "bank": foreign}},
		{name: "one volume of another namespace", site: mapped, role: isCopy, has: []string{"shop", "bank"},
			want: map[string]string{"shop": foreign, "shop-dr": foreign, "bank": foreign}},
		{name: "a primary", site: func(*v1alpha1.RemoteSite) {}, role: isPrimary, has: []string{"shop"},
			want: map[string]string{"shop": taken, "bank": foreign}},
		{name: "a primary with a name that is mapped", site: mapped, role: isPrimary, has: []string{"shop"},
			want: map[string]string{"shop": unsure, "shop-dr": unsure, "bank": foreign}},
		{name: "promoted here, with its PersistentVolume", site: mapped, role: isPrimary, has: []string{"shop"},
			more: volumeIn("shop-dr"), want: map[string]string{"shop": unsure, "shop-dr": taken, "bank": foreign}},
		{name: "made here, with its PersistentVolume", site: mapped, role: isPrimary, has: []string{"shop"},
			more: volumeIn("shop"), want: map[string]string{"shop": taken, "shop-dr": unsure, "bank": foreign}},
		{name: "of a site that is not there", role: isCopy, has: []string{"shop"},
			want: map[string]string{"shop": unsure, "shop-dr": unsure}},
		{name: "without volumes", site: mapped, role: isPrimary,
			want: map[string]string{"shop": unsure, "shop-dr": unsure, "bank": unsure}},
		{name: "a copy without volumes", site: mapped, role: isCopy,
			want: map[string]string{"shop": unsure, "shop-dr": unsure, "bank": unsure}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, "a")
			s.Create(operatortest.Remote("site-c"))
			if tc.site != nil {
				site := operatortest.Remote("site-b")
				tc.site(site)
				s.Create(site)
			}
			s.engineGroup("a", "x", tc.role, tc.has...)
			if tc.more != nil {
				tc.more(s)
			}
			for namespace, reason := range tc.want {
				s.names(namespace, "x")
				if tc.site == nil { // that the site is missing is another reason for the condition
					g := s.Group(namespace, "byhand")
					g.Spec.RemoteSite = "site-c"
					s.Update(g)
					ns := operatortest.Namespace(namespace, nil)
					s.Get(ns, "", namespace)
					ns.Labels = map[string]string{v1alpha1.LabelReplicateTo: "site-c"}
					s.Update(ns)
				}
				s.wantTaken(namespace, reason)
			}
		})
	}
}

// TestTakenOverStays: an object that was made by hand before the copy had volumes gets the copy with its first volume,
// and keeps it: through a promotion, while the engine still has the names of the other site, through the loss of the
// RemoteSite, and when it has no volumes anymore.
func TestTakenOverStays(t *testing.T) {
	s := newSite(t, "a")
	site := operatortest.Remote("site-b")
	site.Spec.Map.Namespaces = []v1alpha1.NameMapping{{Remote: "shop", Local: "shop-dr"}}
	s.Create(site)
	s.names("shop-dr", "x")
	s.Settle("shop-dr")
	s.names("shop", "x")
	g := s.engineGroup("a", "x", isCopy)
	s.wantTaken("shop-dr", unsure)
	s.wantTaken("shop", unsure)
	g.Volumes = []*sidecarpb.VolumeStatus{{VolumeId: "vol-x", ClaimNamespace: "shop"}}
	s.wantTaken("shop-dr", taken)
	s.wantTaken("shop", foreign)
	g.Role = isPrimary
	s.wantTaken("shop-dr", taken)
	s.wantTaken("shop", unsure)
	g.Volumes = nil
	s.wantTaken("shop-dr", taken)
	s.wantTaken("shop", unsure)

	g.Role, g.Volumes = isCopy, []*sidecarpb.VolumeStatus{{VolumeId: "vol-x", ClaimNamespace: "shop"}}
	s.wantTaken("shop-dr", taken)
	s.Get(site, "", "site-b")
	if err := s.Client.Delete(context.Background(), site); err != nil {
		t.Fatal(err)
	}
	s.Settle("shop-dr")
	if g := s.Group("shop-dr", "byhand"); len(g.Status.EngineGroups) != 1 {
		t.Errorf("without the RemoteSite: %+v", g.Status)
	}
}

// TestEmptyShard: a shard without volumes belongs to the namespace of the other shards of its group. An object of
// another namespace that names it can neither act on it, nor delete it.
func TestEmptyShard(t *testing.T) {
	s := newShardSite(t, "a", "b")
	for i, g := range []*sidecarpb.GroupStatus{s.engineGroup("a", "x", isPrimary, "bank"),
		s.engineGroup("b", "y", isPrimary)} {
		g.Shard = &sidecarpb.ShardStatus{Group: "whole", Id: uint32(i), Numbers: []uint32{0, 1}}
	}
	s.names("bank", "x", "y")
	s.wantTaken("bank", taken)
	if groups := s.Group("bank", "byhand").Status.EngineGroups; len(groups) != 2 {
		t.Errorf("the object of the group stands for %+v", groups)
	}

	s.Create(&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "byhand"},
		Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", EngineGroups: []string{"y"}}})
	s.wantTaken("shop", unsure)
	s.Nodes["b"].Took()
	for _, kind := range []v1alpha1.ActionType{v1alpha1.ActionDemote, v1alpha1.ActionSuspend, v1alpha1.ActionFailover} {
		a := s.Act(strings.ToLower(string(kind)), v1alpha1.GroupActionSpec{Group: "byhand", Type: kind})
		if a.Status.Phase != v1alpha1.ActionFailed || !strings.Contains(a.Status.Message, "Allowed") ||
			!strings.Contains(a.Status.Message, "has no volumes") {
			t.Errorf("%s: %+v", kind, a.Status)
		}
	}
	if err := s.Client.Delete(context.Background(), s.Group("shop", "byhand")); err != nil {
		t.Fatal(err)
	}
	s.Clock = s.Clock.Add(2 * settleTime)
	s.Settle("shop")
	s.Clock = s.Clock.Add(2 * settleTime)
	s.Settle("shop")
	if calls := s.Nodes["b"].Took(); len(calls) > 0 {
		t.Errorf("calls for the shard of another namespace: %v", calls)
	}
}
