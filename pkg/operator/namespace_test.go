package operator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func label(key, value string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Labels = map[string]string{key: value}
	}
}

// TestLabelledNamespace: claims that are there become members, one that is made later too, and the status says so.
func TestLabelledNamespace(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	var want []string
	for i := range 10 {
		want = append(want, s.Claim("shop", fmt.Sprintf("data-%d", i), "a"))
	}
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": want})
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
	if g.Status.Role != v1alpha1.RolePrimary || g.Status.MembersReady != "10/10" || g.Status.State != "Streaming" ||
		g.Spec.RemoteSite != "site-b" || g.Status.Confirm == "" || !membership.Managed(g) {
		t.Errorf("group: %+v", g)
	}
	want = append(want, s.Claim("shop", "later", "a"))
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": want})
	if len(s.Events.Events) == 0 {
		t.Error("no events")
	}
}

// TestNotReplicable: a volume that cannot be replicated is named with what to do, and the engine is not asked again.
func TestNotReplicable(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	plain, good := s.Claim("shop", "plain", "a"), s.Claim("shop", "good", "a")
	s.Nodes["a"].Replicable = func(id string) bool { return id != plain }
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {good}})
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionMembersReady, metav1.ConditionFalse, "NeedsRestage")
	operatortest.WantCondition(t, g, v1alpha1.ConditionReady, metav1.ConditionFalse, "NeedsRestage")
	if m := g.Status.Members[1]; m.State != v1alpha1.MemberNeedsRestage || !strings.Contains(m.Reason, "replicable") {
		t.Errorf("member: %+v", m)
	}
	s.Nodes["a"].Took()
	s.Settle("shop")
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("asked again: %v", calls)
	}
}

// TestPending: a claim joins when it is bound.
func TestPending(t *testing.T) {
	s := newSite(t, "a")
	class := "fast"
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"),
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: plugin.Name},
		&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "data", UID: "claim-vol-1"},
			Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class}})
	s.Settle("shop")
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionMembersReady, metav1.ConditionFalse, "Pending")
	s.WantEngine(map[string][]string{})
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "data")
	claim.Spec.VolumeName = "pv-vol-1"
	s.Update(claim)
	claim.Status.Phase = corev1.ClaimBound
	if err := s.Client.Status().Update(context.Background(), claim); err != nil {
		t.Fatal(err)
	}
	s.Create(operatortest.Volume("vol-1", "shop", "data", "a"))
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {"vol-1"}})
}

// TestExcluded: every claim that is left out is listed with its reason, and can be taken in by its label.
func TestExcluded(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	owner := func(kind string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) {
			c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: kind, Name: "x", UID: "x"}}
		}
	}
	snapshot := func(c *corev1.PersistentVolumeClaim) {
		c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "VolumeSnapshot", Name: "s"}
	}
	in := s.Claim("shop", "in", "a")
	s.Claim("shop", "cache", "a", label(v1alpha1.LabelReplicate, "false"))
	s.Claim("shop", "scratch", "a", owner("Pod"))
	s.Claim("shop", "copying", "a", owner("ReplicationDestination"))
	s.Claim("shop", "restored", "a", snapshot)
	wanted := s.Claim("shop", "wanted", "a", snapshot, label(v1alpha1.LabelReplicate, "true"))
	foreign := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "foreign"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-foreign"}}
	other := operatortest.Volume("foreign", "shop", "foreign", "a")
	other.Spec.CSI.Driver = "ebs.csi.aws.com"
	s.Create(foreign, other)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {in, wanted}})
	got := map[string]string{}
	for _, e := range s.Group("shop", "shop").Status.Excluded {
		got[e.Claim] = e.Reason
	}
	want := map[string]string{"cache": membership.ReasonOptedOut, "scratch": membership.ReasonEphemeral,
		"copying": membership.ReasonTemporary, "restored": membership.ReasonRestore,
		"foreign": membership.ReasonOtherDriver}
	if !maps.Equal(got, want) {
		t.Errorf("excluded: %v, want %v", got, want)
	}
	// Opting out takes a member out at once: the claim is there and says so.
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "in")
	claim.Labels = map[string]string{v1alpha1.LabelReplicate: "false"}
	s.Update(claim)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {wanted}})
}

// TestSeveralNodes: where the replicators do not know groups over several nodes, there is one group at the engine for
// each node, and the status says that order ends there.
func TestSeveralNodes(t *testing.T) {
	s := newSite(t, "a", "b")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one"}, "b/shop": {"vol-shop-two"}})
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionWriteOrder, metav1.ConditionFalse, "Node")
	operatortest.WantCondition(t, g, v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
	if !strings.Contains(g.Status.NextStep, "writeOrder") {
		t.Errorf("next step: %q", g.Status.NextStep)
	}
	// A silent node takes nothing out, and the other one goes on.
	s.Nodes["b"].Silent = true
	third := s.Claim("shop", "three", "a")
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one", third}, "b/shop": {"vol-shop-two"}})
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionMembersReady, metav1.ConditionFalse,
		"NodeSilent")
}

// TestSeveralGroups: claims name groups of their own, and move between them by their label.
func TestSeveralGroups(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "a", label(v1alpha1.LabelConsistencyGroup, "reports"))
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {"vol-shop-one"}, "a/shop.reports": {"vol-shop-two"}})
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "one")
	claim.Labels = map[string]string{v1alpha1.LabelConsistencyGroup: "reports"}
	s.Update(claim)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop.reports": {"vol-shop-one", "vol-shop-two"}})
	// Without the namespace's label a claim's label is nothing.
	s.Create(operatortest.Namespace("other", nil))
	s.Claim("other", "one", "a", label(v1alpha1.LabelConsistencyGroup, "reports"))
	s.Settle("other")
	if groups := s.Engine(); len(groups) != 1 {
		t.Errorf("a tenant made a group: %v", groups)
	}
}

// TestRemoteChange: another site costs the copy at the first one, so it waits for a confirmation.
func TestRemoteChange(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Remote("site-c"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	peer := func() string {
		for _, g := range s.Nodes["a"].Groups {
			return g.GetPeer()
		}
		return ""
	}
	ns := &corev1.Namespace{}
	s.Get(ns, "", "shop")
	ns.Labels[v1alpha1.LabelReplicateTo] = "site-c"
	s.Update(ns)
	s.Settle("shop")
	g := s.Group("shop", "shop")
	operatortest.WantCondition(t, g, v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionFalse, "ConfirmationNeeded")
	if peer() != "site-b" || g.Spec.RemoteSite != "site-c" {
		t.Fatalf("peer %s, spec %s", peer(), g.Spec.RemoteSite)
	}
	g.Annotations = map[string]string{v1alpha1.AnnotationConfirmRemote: "site-b"} // of another change
	s.Update(g)
	s.Settle("shop")
	if peer() != "site-b" {
		t.Fatal("a confirmation for another site was taken")
	}
	g = s.Group("shop", "shop")
	g.Annotations = map[string]string{v1alpha1.AnnotationConfirmRemote: "site-c"}
	s.Update(g)
	s.Settle("shop")
	if peer() != "site-c" {
		t.Errorf("peer is %s after the confirmation", peer())
	}
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionTrue,
		"AsDeclared")
}

// TestLabelRemoved: the policy says what becomes of the replication; it happens also if the operator was away
// meanwhile.
func TestLabelRemoved(t *testing.T) {
	for _, policy := range []v1alpha1.DeletionPolicy{v1alpha1.DeletionStop, v1alpha1.DeletionKeep} {
		t.Run(string(policy), func(t *testing.T) {
			s := newSite(t, "a")
			s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
			id := s.Claim("shop", "one", "a")
			s.Settle("shop")
			g := s.Group("shop", "shop")
			g.Spec.DeletionPolicy = policy
			s.Update(g)
			ns := &corev1.Namespace{}
			s.Get(ns, "", "shop")
			ns.Labels = nil
			s.Update(ns)
			s.Reset() // a new process
			s.Settle("shop")
			err := s.Client.Get(context.Background(), types.NamespacedName{Namespace: "shop", Name: "shop"}, g)
			if !apierrors.IsNotFound(err) {
				t.Errorf("the group is still there: %v, %v", err, g.Finalizers)
			}
			want := map[string][]string{}
			if policy == v1alpha1.DeletionKeep {
				want["a/shop"] = []string{id}
			}
			s.WantEngine(want)
		})
	}
}

// TestDeletionWaitsForNodes: a group whose node is silent stays until the node is back or retired; Keep ends it at
// once.
func TestDeletionWaitsForNodes(t *testing.T) {
	s := newSite(t, "a", "b")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Claim("shop", "two", "b")
	s.Settle("shop")
	s.Nodes["b"].Silent = true
	ns := &corev1.Namespace{}
	s.Get(ns, "", "shop")
	ns.Labels = nil
	s.Update(ns)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"b/shop": {"vol-shop-two"}})
	if g := s.Group("shop", "shop"); g.DeletionTimestamp.IsZero() || len(g.Finalizers) == 0 {
		t.Fatalf("group: %+v", g.ObjectMeta)
	}
	s.Nodes["b"].Silent = false
	s.Settle("shop")
	s.WantEngine(map[string][]string{})
}

// TestClaimDeleted: a volume whose claim is gone leaves after two looks, and not if the claim was only not seen.
func TestClaimDeleted(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	one, two := s.Claim("shop", "one", "a"), s.Claim("shop", "two", "a")
	s.Settle("shop")
	claim := &corev1.PersistentVolumeClaim{}
	s.Get(claim, "shop", "one")
	if err := s.Client.Delete(context.Background(), claim); err != nil {
		t.Fatal(err)
	}
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
	s.Clock = s.Clock.Add(secondLook + time.Second)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {two}})
}

// TestObjectsLost: a cluster whose objects are from an earlier time takes nothing out of groups.
func TestObjectsLost(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	one, two := s.Claim("shop", "one", "a"), s.Claim("shop", "two", "a")
	s.Settle("shop")
	for _, o := range []string{"one"} { // claim and volume are as if they had never been
		claim, pv := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolume{}
		s.Get(claim, "shop", o)
		s.Get(pv, "", claim.Spec.VolumeName)
		if err := s.Client.Delete(context.Background(), claim); err != nil {
			t.Fatal(err)
		}
		if err := s.Client.Delete(context.Background(), pv); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		s.Settle("shop")
		s.Clock = s.Clock.Add(2 * secondLook)
	}
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
	// The group object, too: it is made anew, with the groups that it had.
	g := s.Group("shop", "shop")
	g.Finalizers = nil
	s.Update(g)
	if err := s.Client.Delete(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	s.Nodes["a"].Took()
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one, two}})
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestNotAdmitted: a person in a namespace cannot replicate to where an administrator has not admitted it.
func TestNotAdmitted(t *testing.T) {
	s := newSite(t, "a")
	site := operatortest.Remote("site-b")
	s.Create(site, operatortest.Namespace("shop", map[string]string{"team": "red"}),
		&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "mine"},
			Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b"}})
	id := s.Claim("shop", "one", "a")
	s.Settle("shop")
	s.WantEngine(map[string][]string{})
	operatortest.WantCondition(t, s.Group("shop", "mine"), v1alpha1.ConditionAllowed, metav1.ConditionFalse,
		"NamespaceNotAdmitted")
	s.Get(site, "", "site-b")
	site.Spec.Namespaces = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}}
	s.Update(site)
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop.mine": {id}})
	// It does not take over what belongs to others either.
	s.Nodes["a"].Groups["theirs"] = &sidecarpb.GroupStatus{Name: "theirs", Role: sidecarpb.Role_ROLE_PRIMARY,
		Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "v", ClaimNamespace: "bank", ClaimName: "gold"}}}
	g := s.Group("shop", "mine")
	g.Spec.EngineGroups = []string{"theirs"}
	s.Update(g)
	s.Nodes["a"].Took()
	s.Settle("shop")
	operatortest.WantCondition(t, s.Group("shop", "mine"), v1alpha1.ConditionAllowed, metav1.ConditionFalse,
		"ForeignEngineGroup")
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestReturnIsAllowed: a group that waited here for a failover may replicate to the site that it came from, as long as
// the administrator accepts claims of that site in the namespace.
func TestReturnIsAllowed(t *testing.T) {
	for _, tc := range []struct {
		name     string
		accepted []string
		label    string
		want     metav1.ConditionStatus
	}{
		{"accepted", []string{"shop"}, "site-b", metav1.ConditionTrue},
		{"accepted by *", []string{"*"}, "site-b", metav1.ConditionTrue},
		{"another namespace", []string{"bank"}, "site-b", metav1.ConditionFalse},
		{"of another site", []string{"shop"}, "site-c", metav1.ConditionFalse},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSite(t, "a")
			site := operatortest.Remote("site-b")
			site.Spec.Accept = &v1alpha1.Accept{Namespaces: tc.accepted}
			s.Create(site, operatortest.Namespace("shop", nil), &v1alpha1.ConsistencyGroup{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop",
					Labels: map[string]string{v1alpha1.LabelRemoteSite: tc.label}},
				Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", EngineGroups: []string{"shop-1"}}})
			s.Nodes["a"].Groups["shop-1"] = &sidecarpb.GroupStatus{Name: "shop-1", Role: sidecarpb.Role_ROLE_PRIMARY,
				Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "v", ClaimNamespace: "shop"}}}
			s.Settle("shop")
			i := slices.IndexFunc(s.Group("shop", "shop").Status.Conditions,
				func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionAllowed })
			if i < 0 || s.Group("shop", "shop").Status.Conditions[i].Status != tc.want {
				t.Errorf("conditions %+v", s.Group("shop", "shop").Status.Conditions)
			}
		})
	}
}

// TestSettings follow the spec and the defaults of the site, and are not asked for twice.
func TestSettings(t *testing.T) {
	s := newSite(t, "a")
	site := operatortest.Remote("site-b")
	site.Spec.Defaults.RPOTarget = &metav1.Duration{Duration: 30 * time.Second}
	site.Spec.Defaults.JournalFull = v1alpha1.JournalFullStall
	s.Create(site, operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	check := func(rpo float64) {
		t.Helper()
		for _, g := range s.Nodes["a"].Groups {
			if g.GetRpoTargetSeconds() != rpo || g.GetJournalFull() != sidecarpb.JournalFull_JOURNAL_FULL_STALL {
				t.Errorf("group: %v", g)
			}
		}
	}
	check(30)
	g := s.Group("shop", "shop")
	g.Spec.Settings.RPOTarget = &metav1.Duration{Duration: 5 * time.Second}
	s.Update(g)
	s.Settle("shop")
	check(5)
	s.Nodes["a"].Took()
	s.Settle("shop")
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls without a change: %v", calls)
	}
	if got := s.Group("shop", "shop").Status.RPOTarget; got == nil || got.Duration != 5*time.Second {
		t.Errorf("target in the status: %v", got)
	}
}

// TestServerAway: while the API server refuses everything, nothing is taken back at the engine.
func TestServerAway(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	id := s.Claim("shop", "one", "a")
	s.Settle("shop")
	s.Down = true
	s.Nodes["a"].Silent = true // its status has to change
	for range 3 {
		s.Watcher.Look(context.Background())
		_, _ = s.r.Reconcile(context.Background(), ctrl.Request{NamespacedName: types.NamespacedName{Name: "shop"}})
	}
	s.Down, s.Nodes["a"].Silent = false, false
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {id}})
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionReady, metav1.ConditionTrue, "Protected")
}

// TestQuiet: namespaces are replicated, and then nothing is written and nothing asked for, also by a new process.
// TestManager does it with an API server and more of them.
func TestQuiet(t *testing.T) {
	const namespaces = 30
	s := newSite(t, "a", "b", "c")
	s.Create(operatortest.Remote("site-b"))
	for n := range namespaces {
		name := fmt.Sprintf("ns-%d", n)
		s.Create(operatortest.Labelled(name))
		for c := range 3 {
			s.Claim(name, fmt.Sprintf("claim-%d", c), string(rune('a'+n%3)))
		}
	}
	pass := func() {
		t.Helper()
		s.Watcher.Look(context.Background())
		for n := range namespaces {
			request := ctrl.Request{NamespacedName: types.NamespacedName{Name: fmt.Sprintf("ns-%d", n)}}
			if _, err := s.r.Reconcile(context.Background(), request); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 3 {
		pass()
	}
	if groups := s.Engine(); len(groups) != namespaces {
		t.Fatalf("%d groups", len(groups))
	}
	for _, n := range s.Nodes {
		n.Took()
	}
	s.Writes = nil
	events := len(s.Events.Events)
	s.Reset()
	pass()
	s.Clock = s.Clock.Add(2 * figuresInterval)
	pass()
	if len(s.Writes) > 0 || len(s.Events.Events) != events {
		t.Errorf("%d writes, %d events in a steady state: %.3v", len(s.Writes), len(s.Events.Events)-events, s.Writes)
	}
	for name, n := range s.Nodes {
		if calls := n.Took(); len(calls) > 0 {
			t.Errorf("node %s: %d calls in a steady state", name, len(calls))
		}
	}
}
