package operator

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func ownedBy(kind string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: kind, Name: "x", UID: "x"}}
	}
}

func (s *site) excluded(namespace string) map[string]string {
	s.T.Helper()
	reasons := map[string]string{}
	for _, e := range s.Group(namespace, namespace).Status.Excluded {
		reasons[e.Claim] = e.Reason
	}
	return reasons
}

// TestSharedAndImported: a claim with ReadWriteMany is left out and named; a volume that CDI imported is a member, and
// what CDI and populators of volumes make for the time of the import is not. Neither is a restore from a snapshot of
// another namespace. A clone of a claim is a claim as any other.
func TestSharedAndImported(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "shared", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	disk := s.Claim("shop", "disk", "a", ownedBy("DataVolume"))
	s.Claim("shop", "prime-0b1c", "a", ownedBy("PersistentVolumeClaim"))
	s.Claim("shop", "disk-scratch", "a", ownedBy("Pod"))
	s.Claim("shop", "restored", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: "VolumeSnapshot", Name: "s", Namespace: new("backups")}
	})
	clone := s.Claim("shop", "clone", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "disk"}
	})
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {clone, disk}})
	want := map[string]string{"shared": membership.ReasonShared, "prime-0b1c": membership.ReasonTemporary,
		"disk-scratch": membership.ReasonEphemeral, "restored": membership.ReasonRestore}
	if got := s.excluded("shop"); !maps.Equal(got, want) {
		t.Errorf("excluded: %v, want %v", got, want)
	}
	covered, err := membership.CoverageOf(context.Background(), s.Client, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range covered {
		if c.Name == "shared" && (c.Deliberate() || c.Reason != membership.ReasonShared) {
			t.Errorf("the shared claim counts as left out on purpose: %+v", c)
		}
	}
}

// TestOptOutAndBack: a claim leaves by its label and comes back when the label goes, and the volume is not copied into
// two groups in between.
func TestOptOutAndBack(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	one, two := s.Claim("shop", "one", "a"), s.Claim("shop", "two", "a")
	s.Settle("shop")
	relabel := func(labels map[string]string) {
		t.Helper()
		claim := &corev1.PersistentVolumeClaim{}
		s.Get(claim, "shop", "two")
		claim.Labels = labels
		s.Update(claim)
		s.Settle("shop")
	}
	relabel(map[string]string{v1alpha1.LabelReplicate: "false"})
	s.WantEngine(map[string][]string{"a/shop": {one}})
	if got := s.excluded("shop"); got["two"] != membership.ReasonOptedOut {
		t.Errorf("excluded: %v", got)
	}
	relabel(nil)
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
	// A group that a person wrote takes what it selects, and gives it back when it goes.
	relabel(map[string]string{"tier": "reports"})
	s.Create(&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "reports"},
		Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b",
			Claims: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "reports"}}}})
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one}, "a/shop.reports": {two}})
	if err := s.Client.Delete(context.Background(), s.Group("shop", "reports")); err != nil {
		t.Fatal(err)
	}
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
}

// TestInvalidSelector: a selector that says nothing takes no member out, neither at once nor into another group, and
// adds none.
func TestInvalidSelector(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"),
		&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "reports"},
			Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b",
				Claims: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "reports"}}}})
	one := s.Claim("shop", "one", "a")
	two := s.Claim("shop", "two", "a", label("tier", "reports"))
	s.Settle("shop")
	want := map[string][]string{"a/shop": {one}, "a/shop.reports": {two}}
	s.WantEngine(want)
	for _, selector := range []*metav1.LabelSelector{
		{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "in", Values: []string{"reports"}}}},
		{MatchLabels: map[string]string{"tier": "all reports"}},
	} {
		g := s.Group("shop", "reports")
		g.Spec.Claims = selector
		s.Update(g)
		for range 3 {
			s.Settle("shop")
			s.Clock = s.Clock.Add(2 * secondLook)
		}
		s.WantEngine(want)
		g = s.Group("shop", "reports")
		operatortest.WantCondition(t, g, v1alpha1.ConditionAllowed, metav1.ConditionFalse, "InvalidSelector")
		if g.Status.MembersReady != "1/1" || !strings.Contains(g.Status.NextStep, "kubectl -n shop edit cg reports") {
			t.Errorf("status: %+v", g.Status)
		}
	}
	g := s.Group("shop", "reports")
	g.Spec.Claims = &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "other"}}
	s.Update(g)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
}

// TestResizeLabelsAndClass: a claim that grows, gets other labels, or loses its StorageClass stays where it is; its
// size in the status is the engine's, and the engine is not called.
func TestResizeLabelsAndClass(t *testing.T) {
	s := newSite(t, "a")
	class := "fast"
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"),
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: plugin.Name})
	id := s.Claim("shop", "one", "a", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	s.Settle("shop")
	s.Nodes["a"].Took()
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "one")
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("3Gi")
	claim.Labels = map[string]string{"tier": "db", "app": "shop"}
	s.Update(claim)
	for _, g := range s.Nodes["a"].Groups { // the driver grows it
		g.Volumes[0].SizeBytes = 3 << 30
	}
	s.Settle("shop")
	if m := s.Group("shop", "shop").Status.Members[0]; m.SizeBytes != 3<<30 || m.State != v1alpha1.MemberIn {
		t.Errorf("member: %+v", m)
	}
	// The class is replaced by one of another driver.
	old := &storagev1.StorageClass{}
	s.Get(old, "", class)
	if err := s.Client.Delete(context.Background(), old); err != nil {
		t.Fatal(err)
	}
	s.Settle("shop")
	s.Create(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "ebs.csi.aws.com"})
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {id}})
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestClaimMadeAgain: a claim of the same name, with another volume on another node, is a member by its own volume. The
// volume of the first one leaves after two looks, and the status has both until then.
func TestClaimMadeAgain(t *testing.T) {
	s := newSite(t, "a", "b")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	first := s.Claim("shop", "data", "a")
	s.Settle("shop")
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "data")
	if err := s.Client.Delete(context.Background(), claim); err != nil {
		t.Fatal(err)
	}
	again := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-vol-2"}}
	again.Namespace, again.Name, again.UID = "shop", "data", "claim-vol-2"
	s.Create(again)
	again.Status.Phase = corev1.ClaimBound
	if err := s.Client.Status().Update(context.Background(), again); err != nil {
		t.Fatal(err)
	}
	s.Create(operatortest.Volume("vol-2", "shop", "data", "b"))
	s.Nodes["b"].Claims["vol-2"] = [2]string{"shop", "data"}
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {first}, "b/shop": {"vol-2"}})
	members := map[string]string{}
	for _, m := range s.Group("shop", "shop").Status.Members {
		members[m.Claim] = m.Volume
	}
	if want := map[string]string{"data": "vol-2", first: first}; !maps.Equal(members, want) {
		t.Errorf("members: %v, want %v", members, want)
	}
	s.Clock = s.Clock.Add(secondLook + time.Second)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"b/shop": {"vol-2"}})
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionWriteOrder, metav1.ConditionTrue, "Group")
}

// TestNamespaceMadeAgain: a namespace with the name of one that is gone gets a group of its own at the engine. What the
// first one left there, with the policy Keep, stays as it is.
func TestNamespaceMadeAgain(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	g := s.Group("shop", "shop")
	g.Spec.DeletionPolicy = v1alpha1.DeletionKeep
	s.Update(g)
	claim, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	s.Get(claim, "shop", "one")
	s.Get(pv, "", claim.Spec.VolumeName)
	ns := &corev1.Namespace{}
	s.Get(ns, "", "shop")
	for _, o := range []client.Object{g, claim, pv, ns} {
		if err := s.Client.Delete(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		s.Settle("shop")
	}
	first := s.Nodes["a"].Names()
	if len(first) != 1 {
		t.Fatalf("groups: %v", first)
	}
	again := operatortest.Labelled("shop")
	again.UID = "uid-second"
	s.Create(again)
	id := s.Claim("shop", "two", "a")
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one", id}}) // of both, without the digests
	if names := s.Nodes["a"].Names(); len(names) != 2 {
		t.Errorf("groups: %v", names)
	}
	if members := s.Group("shop", "shop").Status.Members; len(members) != 1 || members[0].Volume != id {
		t.Errorf("members: %+v", members)
	}
}

// TestPeerAway: a namespace and its group end while the other site is away: nothing waits for it.
func TestPeerAway(t *testing.T) {
	for name, end := range map[string]func(*site){
		"label": func(s *site) {
			ns := &corev1.Namespace{}
			s.Get(ns, "", "shop")
			ns.Labels = nil
			s.Update(ns)
		},
		"group": func(s *site) {
			// As Kubernetes does with what is in a namespace that is deleted.
			if err := s.Client.Delete(context.Background(), s.Group("shop", "shop")); err != nil {
				s.T.Fatal(err)
			}
			ns := &corev1.Namespace{}
			s.Get(ns, "", "shop")
			ns.Finalizers = []string{"kubernetes"}
			s.Update(ns)
			if err := s.Client.Delete(context.Background(), ns); err != nil {
				s.T.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, "a", "b")
			s.Shop("a", "b")
			s.Change(func(g *sidecarpb.GroupStatus) {
				g.Connected, g.State = false, sidecarpb.GroupState_GROUP_STATE_CONNECTING
			})
			s.Settle("shop")
			operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionPeerReachable,
				metav1.ConditionFalse, "NotConnected")
			end(s)
			s.Settle("shop")
			s.WantEngine(map[string][]string{})
			err := s.Client.Get(context.Background(), types.NamespacedName{Namespace: "shop", Name: "shop"},
				&v1alpha1.ConsistencyGroup{})
			if client.IgnoreNotFound(err) != nil || err == nil {
				t.Errorf("the group is left: %v", err)
			}
		})
	}
}

// TestOlderObjects: the cluster's objects are those of an earlier backup, and the engine is of now. Nothing is taken
// out of groups, no group is deleted, and what joins is what the objects ask for.
func TestOlderObjects(t *testing.T) {
	s := newSite(t, "a", "b")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"), operatortest.Namespace("bank", nil))
	one := s.Claim("shop", "one", "a")
	early := s.Claim("bank", "early", "b")
	s.Settle("shop")
	s.Settle("bank")
	backup := s.objects()

	two, late := s.Claim("shop", "two", "b"), s.Claim("bank", "late", "a")
	ns := &corev1.Namespace{}
	s.Get(ns, "", "bank")
	ns.Labels = map[string]string{v1alpha1.LabelReplicateTo: "site-b"}
	s.Update(ns)
	s.Create(operatortest.Labelled("new"))
	only := s.Claim("new", "only", "a")
	for _, name := range []string{"shop", "bank", "new"} {
		s.Settle(name)
	}
	want := map[string][]string{"a/shop": {one}, "b/shop": {two}, "a/bank": {late}, "b/bank": {early}, "a/new": {only}}
	s.WantEngine(want)

	restored := newSite(t, "a", "b")
	restored.Nodes, restored.Clock = s.Nodes, s.Clock
	for _, n := range s.Nodes {
		n.Took()
	}
	restored.Create(backup...)
	for range 3 {
		for _, name := range []string{"shop", "bank", "new"} {
			restored.Settle(name)
		}
		restored.Clock = restored.Clock.Add(2 * secondLook)
	}
	restored.WantEngine(want)
	for name, n := range restored.Nodes {
		for _, call := range n.Took() {
			if !strings.HasPrefix(call, "List") {
				t.Errorf("node %s: %s", name, call)
			}
		}
	}
	// The label comes back, and the groups are found again.
	restored.Get(ns, "", "bank")
	ns.Labels = map[string]string{v1alpha1.LabelReplicateTo: "site-b"}
	restored.Update(ns)
	restored.Settle("bank")
	restored.WantEngine(want)
	if g := restored.Group("bank", "bank"); len(g.Status.EngineGroups) != 2 {
		t.Errorf("groups at the engine: %+v", g.Status.EngineGroups)
	}
}

// objects returns copies of all objects, as a backup has them.
func (s *site) objects() (all []client.Object) {
	s.T.Helper()
	for _, list := range []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeClaimList{},
		&corev1.PersistentVolumeList{}, &v1alpha1.RemoteSiteList{}, &v1alpha1.ConsistencyGroupList{}} {
		if err := s.Client.List(context.Background(), list); err != nil {
			s.T.Fatal(err)
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			s.T.Fatal(err)
		}
		for _, item := range items {
			o := item.DeepCopyObject().(client.Object)
			o.SetResourceVersion("")
			all = append(all, o)
		}
	}
	return all
}
