package operatortest

import (
	"context"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// Namespace returns a namespace.
func Namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: labels}}
}

// Labelled returns a namespace that is to be replicated to site-b.
func Labelled(name string) *corev1.Namespace {
	return Namespace(name, map[string]string{v1alpha1.LabelReplicateTo: "site-b"})
}

// Remote returns a RemoteSite.
func Remote(name string) *v1alpha1.RemoteSite {
	return &v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// Claim adds a bound claim with its volume on a node.
func (s *Site) Claim(namespace, name, node string, change ...func(*corev1.PersistentVolumeClaim)) string {
	s.T.Helper()
	id := "vol-" + namespace + "-" + name
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
		UID: types.UID("claim-" + id)}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + id,
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	for _, c := range change {
		c(claim)
	}
	s.Create(claim)
	claim.Status.Phase = corev1.ClaimBound
	if err := s.Client.Status().Update(context.Background(), claim); err != nil {
		s.T.Fatal(err)
	}
	s.Create(Volume(id, namespace, name, node))
	if n := s.Nodes[node]; n != nil {
		n.Mu.Lock()
		n.Claims[id] = [2]string{namespace, name}
		n.Mu.Unlock()
	}
	return id
}

// Volume returns the volume of a claim.
func Volume(id, namespace, claim, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + id, UID: types.UID("pv-" + id)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: claim,
				UID: types.UID("claim-" + id)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: plugin.Name, VolumeHandle: id}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: plugin.TopologyKey,
						Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
		}}
}

// WantCondition wants a condition of a group.
func WantCondition(t *testing.T, g *v1alpha1.ConsistencyGroup, kind string, want metav1.ConditionStatus,
	reason string) {
	t.Helper()
	c := meta.FindStatusCondition(g.Status.Conditions, kind)
	if c == nil || c.Status != want || c.Reason != reason {
		t.Errorf("condition %s of %s/%s: %+v, want %s %s", kind, g.Namespace, g.Name, c, want, reason)
	}
}

// WantEngine wants groups with volumes at the engine, see Engine.
func (s *Site) WantEngine(want map[string][]string) {
	s.T.Helper()
	got := s.Engine()
	if !maps.EqualFunc(got, want, slices.Equal[[]string]) {
		s.T.Errorf("at the engine: %v, want %v", got, want)
	}
}

// TestFailover returns a test failover of group shop.
func TestFailover(checks ...v1alpha1.Check) v1alpha1.GroupActionSpec {
	return v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionTestFailover,
		Test: &v1alpha1.TestFailover{Checks: checks}}
}

// Shop makes the site primary of a namespace shop, with a claim on each of the nodes.
func (s *Site) Shop(nodes ...string) {
	s.T.Helper()
	s.Create(Remote("site-b"), Labelled("shop"))
	for i, node := range nodes {
		s.Claim("shop", []string{"one", "two"}[i], node)
	}
	s.Settle("shop")
}

// Change changes all groups of all nodes.
func (s *Site) Change(f func(*sidecarpb.GroupStatus)) {
	for _, n := range s.Nodes {
		n.Mu.Lock()
		for _, g := range n.Groups {
			f(g)
		}
		n.Mu.Unlock()
	}
}

// Follow makes all groups copies.
func (s *Site) Follow() {
	s.T.Helper()
	s.Settle("shop")
	s.Change(func(g *sidecarpb.GroupStatus) {
		g.Role, g.State, g.Connected = sidecarpb.Role_ROLE_SECONDARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING, false
	})
	s.Settle("shop")
	if g := s.Group("shop", "shop"); g.Status.Role != v1alpha1.RoleSecondary {
		s.T.Fatalf("role %s", g.Status.Role)
	}
}

// Act makes an action and carries it out as far as it goes.
func (s *Site) Act(name string, spec v1alpha1.GroupActionSpec) *v1alpha1.GroupAction {
	s.T.Helper()
	s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
		CreationTimestamp: metav1.NewTime(s.Clock)}, Spec: spec})
	return s.GoOn(name)
}

// GoOn carries an action on, with looks at the engine in between.
func (s *Site) GoOn(name string) *v1alpha1.GroupAction {
	s.T.Helper()
	for range 4 {
		s.Watcher.Look(context.Background())
		request := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "shop", Name: name}}
		if _, err := s.Actions.Reconcile(context.Background(), request); err != nil && !s.Down {
			s.T.Fatal(err)
		}
	}
	action := &v1alpha1.GroupAction{}
	s.Get(action, "shop", name)
	return action
}
