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
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func ownedBy(kind string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: kind, Name: "x", UID: "x"}}
	}
}

func (s *site) excluded(namespace string) map[string]string {
	s.t.Helper()
	reasons := map[string]string{}
	for _, e := range s.group(namespace, namespace).Status.Excluded {
		reasons[e.Claim] = e.Reason
	}
	return reasons
}

// TestSharedAndImported: a claim with ReadWriteMany is left out and named; a volume that CDI imported is a member, and
// what CDI and populators of volumes make for the time of the import is not. Neither is a restore from a snapshot of
// another namespace. A clone of a claim is a claim as any other.
func TestSharedAndImported(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "shared", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	})
	disk := s.claim("shop", "disk", "a", ownedBy("DataVolume"))
	s.claim("shop", "prime-0b1c", "a", ownedBy("PersistentVolumeClaim"))
	s.claim("shop", "disk-scratch", "a", ownedBy("Pod"))
	s.claim("shop", "restored", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: "VolumeSnapshot", Name: "s", Namespace: new("backups")}
	})
	clone := s.claim("shop", "clone", "a", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "PersistentVolumeClaim", Name: "disk"}
	})
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {clone, disk}})
	want := map[string]string{"shared": ReasonShared, "prime-0b1c": ReasonTemporary, "disk-scratch": ReasonEphemeral,
		"restored": ReasonRestore}
	if got := s.excluded("shop"); !maps.Equal(got, want) {
		t.Errorf("excluded: %v, want %v", got, want)
	}
	covered, err := CoverageOf(context.Background(), s.client, "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range covered {
		if c.Name == "shared" && (c.Deliberate() || c.Reason != ReasonShared) {
			t.Errorf("the shared claim counts as left out on purpose: %+v", c)
		}
	}
}

// TestOptOutAndBack: a claim leaves by its label and comes back when the label goes, and the volume is not copied into
// two groups in between.
func TestOptOutAndBack(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	one, two := s.claim("shop", "one", "a"), s.claim("shop", "two", "a")
	s.settle("shop")
	relabel := func(labels map[string]string) {
		t.Helper()
		claim := &corev1.PersistentVolumeClaim{}
		s.get(claim, "shop", "two")
		claim.Labels = labels
		s.update(claim)
		s.settle("shop")
	}
	relabel(map[string]string{v1alpha1.LabelReplicate: "false"})
	wantEngine(t, s, map[string][]string{"a/shop": {one}})
	if got := s.excluded("shop"); got["two"] != ReasonOptedOut {
		t.Errorf("excluded: %v", got)
	}
	relabel(nil)
	wantEngine(t, s, map[string][]string{"a/shop": {one, two}})
	// A group that a person wrote takes what it selects, and gives it back when it goes.
	relabel(map[string]string{"tier": "reports"})
	s.create(&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "reports"},
		Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b",
			Claims: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "reports"}}}})
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {one}, "a/shop.reports": {two}})
	if err := s.client.Delete(context.Background(), s.group("shop", "reports")); err != nil {
		t.Fatal(err)
	}
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {one, two}})
}

// TestResizeLabelsAndClass: a claim that grows, gets other labels, or loses its StorageClass stays where it is; its
// size in the status is the engine's, and the engine is not called.
func TestResizeLabelsAndClass(t *testing.T) {
	s := newSite(t, "a")
	class := "fast"
	s.create(remote("site-b"), labelled("shop"),
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: plugin.Name})
	id := s.claim("shop", "one", "a", func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = &class })
	s.settle("shop")
	s.nodes["a"].took()
	claim := &corev1.PersistentVolumeClaim{}
	s.get(claim, "shop", "one")
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("3Gi")
	claim.Labels = map[string]string{"tier": "db", "app": "shop"}
	s.update(claim)
	for _, g := range s.nodes["a"].groups { // the driver grows it
		g.Volumes[0].SizeBytes = 3 << 30
	}
	s.settle("shop")
	if m := s.group("shop", "shop").Status.Members[0]; m.SizeBytes != 3<<30 || m.State != v1alpha1.MemberIn {
		t.Errorf("member: %+v", m)
	}
	// The class is replaced by one of another driver.
	old := &storagev1.StorageClass{}
	s.get(old, "", class)
	if err := s.client.Delete(context.Background(), old); err != nil {
		t.Fatal(err)
	}
	s.settle("shop")
	s.create(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: "ebs.csi.aws.com"})
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {id}})
	wantCondition(t, s.group("shop", "shop"), v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
	if calls := s.nodes["a"].took(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestClaimMadeAgain: a claim of the same name, with another volume on another node, is a member by its own volume. The
// volume of the first one leaves after two looks, and the status has both until then.
func TestClaimMadeAgain(t *testing.T) {
	s := newSite(t, "a", "b")
	s.create(remote("site-b"), labelled("shop"))
	first := s.claim("shop", "data", "a")
	s.settle("shop")
	claim := &corev1.PersistentVolumeClaim{}
	s.get(claim, "shop", "data")
	if err := s.client.Delete(context.Background(), claim); err != nil {
		t.Fatal(err)
	}
	again := &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-vol-2"}}
	again.Namespace, again.Name, again.UID = "shop", "data", "claim-vol-2"
	s.create(again)
	again.Status.Phase = corev1.ClaimBound
	if err := s.client.Status().Update(context.Background(), again); err != nil {
		t.Fatal(err)
	}
	s.create(volume("vol-2", "shop", "data", "b"))
	s.nodes["b"].claims["vol-2"] = [2]string{"shop", "data"}
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {first}, "b/shop": {"vol-2"}})
	members := map[string]string{}
	for _, m := range s.group("shop", "shop").Status.Members {
		members[m.Claim] = m.Volume
	}
	if want := map[string]string{"data": "vol-2", first: first}; !maps.Equal(members, want) {
		t.Errorf("members: %v, want %v", members, want)
	}
	s.clock = s.clock.Add(secondLook + time.Second)
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"b/shop": {"vol-2"}})
	wantCondition(t, s.group("shop", "shop"), v1alpha1.ConditionWriteOrder, metav1.ConditionTrue, "Group")
}

// TestNamespaceMadeAgain: a namespace with the name of one that is gone gets a group of its own at the engine. What the
// first one left there, with the policy Keep, stays as it is.
func TestNamespaceMadeAgain(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "one", "a")
	s.settle("shop")
	g := s.group("shop", "shop")
	g.Spec.DeletionPolicy = v1alpha1.DeletionKeep
	s.update(g)
	claim, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
	s.get(claim, "shop", "one")
	s.get(pv, "", claim.Spec.VolumeName)
	ns := &corev1.Namespace{}
	s.get(ns, "", "shop")
	for _, o := range []client.Object{g, claim, pv, ns} {
		if err := s.client.Delete(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		s.settle("shop")
	}
	first := s.nodes["a"].names()
	if len(first) != 1 {
		t.Fatalf("groups: %v", first)
	}
	again := labelled("shop")
	again.UID = "uid-second"
	s.create(again)
	id := s.claim("shop", "two", "a")
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {"vol-shop-one", id}}) // of both, without the digests
	if names := s.nodes["a"].names(); len(names) != 2 {
		t.Errorf("groups: %v", names)
	}
	if members := s.group("shop", "shop").Status.Members; len(members) != 1 || members[0].Volume != id {
		t.Errorf("members: %+v", members)
	}
}

func (n *fakeNode) names() (names []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for name := range n.groups {
		names = append(names, name)
	}
	return names
}

// TestPeerAway: a namespace and its group end while the other site is away: nothing waits for it.
func TestPeerAway(t *testing.T) {
	for name, end := range map[string]func(*site){
		"label": func(s *site) {
			ns := &corev1.Namespace{}
			s.get(ns, "", "shop")
			ns.Labels = nil
			s.update(ns)
		},
		"group": func(s *site) {
			// As Kubernetes does with what is in a namespace that is deleted.
			if err := s.client.Delete(context.Background(), s.group("shop", "shop")); err != nil {
				s.t.Fatal(err)
			}
			ns := &corev1.Namespace{}
			s.get(ns, "", "shop")
			ns.Finalizers = []string{"kubernetes"}
			s.update(ns)
			if err := s.client.Delete(context.Background(), ns); err != nil {
				s.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := primary(t)
			s.change(func(g *sidecarpb.GroupStatus) {
				g.Connected, g.State = false, sidecarpb.GroupState_GROUP_STATE_CONNECTING
			})
			s.settle("shop")
			wantCondition(t, s.group("shop", "shop"), v1alpha1.ConditionPeerReachable, metav1.ConditionFalse, "NotConnected")
			end(s)
			s.settle("shop")
			wantEngine(t, s, map[string][]string{})
			err := s.client.Get(context.Background(), types.NamespacedName{Namespace: "shop", Name: "shop"},
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
	s.create(remote("site-b"), labelled("shop"), namespace("bank", nil))
	one := s.claim("shop", "one", "a")
	early := s.claim("bank", "early", "b")
	s.settle("shop")
	s.settle("bank")
	backup := s.objects()

	two, late := s.claim("shop", "two", "b"), s.claim("bank", "late", "a")
	ns := &corev1.Namespace{}
	s.get(ns, "", "bank")
	ns.Labels = map[string]string{v1alpha1.LabelReplicateTo: "site-b"}
	s.update(ns)
	s.create(labelled("new"))
	only := s.claim("new", "only", "a")
	for _, name := range []string{"shop", "bank", "new"} {
		s.settle(name)
	}
	want := map[string][]string{"a/shop": {one}, "b/shop": {two}, "a/bank": {late}, "b/bank": {early}, "a/new": {only}}
	wantEngine(t, s, want)

	restored := newSite(t, "a", "b")
	restored.nodes, restored.clock = s.nodes, s.clock
	for _, n := range s.nodes {
		n.took()
	}
	restored.create(backup...)
	for range 3 {
		for _, name := range []string{"shop", "bank", "new"} {
			restored.settle(name)
		}
		restored.clock = restored.clock.Add(2 * secondLook)
	}
	wantEngine(t, restored, want)
	for name, n := range restored.nodes {
		for _, call := range n.took() {
			if !strings.HasPrefix(call, "List") {
				t.Errorf("node %s: %s", name, call)
			}
		}
	}
	// The label comes back, and the groups are found again.
	restored.get(ns, "", "bank")
	ns.Labels = map[string]string{v1alpha1.LabelReplicateTo: "site-b"}
	restored.update(ns)
	restored.settle("bank")
	wantEngine(t, restored, want)
	if g := restored.group("bank", "bank"); len(g.Status.EngineGroups) != 2 {
		t.Errorf("groups at the engine: %+v", g.Status.EngineGroups)
	}
}

// objects returns copies of all objects, as a backup has them.
func (s *site) objects() (all []client.Object) {
	s.t.Helper()
	for _, list := range []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeClaimList{},
		&corev1.PersistentVolumeList{}, &v1alpha1.RemoteSiteList{}, &v1alpha1.ConsistencyGroupList{}} {
		if err := s.client.List(context.Background(), list); err != nil {
			s.t.Fatal(err)
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, item := range items {
			o := item.DeepCopyObject().(client.Object)
			o.SetResourceVersion("")
			all = append(all, o)
		}
	}
	return all
}
