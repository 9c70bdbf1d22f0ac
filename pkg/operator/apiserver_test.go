package operator

import (
	"context"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/internal/testkube"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// kubelet ends the pods of checks, which run on no node here: each says what a check would.
func kubelet(ctx context.Context, t *testing.T, api client.Client) {
	for ctx.Err() == nil {
		pods := &corev1.PodList{}
		if err := api.List(ctx, pods); err == nil {
			for i := range pods.Items {
				pod := &pods.Items[i]
				if pod.Status.Phase == corev1.PodSucceeded || pod.DeletionTimestamp != nil {
					continue
				}
				now := metav1.Now()
				pod.Status = corev1.PodStatus{Phase: corev1.PodSucceeded, StartTime: &now,
					ContainerStatuses: []corev1.ContainerStatus{{Name: "check", State: corev1.ContainerState{
						Terminated: &corev1.ContainerStateTerminated{Message: "1273 orders", StartedAt: now, FinishedAt: now}}}}}
				if err := api.Status().Update(ctx, pod); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) &&
					!apierrors.IsNotFound(err) {
					t.Error(err)
				}
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// onServer is a site on an API server, with a labelled namespace of one claim.
func onServer(t *testing.T, config *rest.Config) (*site, client.Client) {
	t.Helper()
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "a")
	s.Client = api
	shop := operatortest.Labelled("shop")
	shop.UID = ""
	s.Create(operatortest.Remote("site-b"), shop)
	s.bind("one")
	return s, api
}

// bind makes a claim and its volume, which the controller binds.
func (s *site) bind(name string) {
	s.T.Helper()
	id := "vol-shop-" + name
	pv := operatortest.Volume(id, "shop", name, "a")
	pv.UID, pv.Spec.ClaimRef.UID, pv.Spec.CSI.FSType = "", "", "ext4"
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: pv.Name, StorageClassName: new(string),
			AccessModes: pv.Spec.AccessModes, Resources: corev1.VolumeResourceRequirements{Requests: pv.Spec.Capacity}}}
	s.Nodes["a"].Mu.Lock()
	s.Nodes["a"].Claims[id] = [2]string{"shop", name}
	s.Nodes["a"].Mu.Unlock()
	s.Create(pv, claim)
}

// TestWithControllers runs the operator on an API server with Kubernetes' controllers: a test failover during which the
// operator is stopped and started at each step; an end by the namespace, with the other site away; and what is refused.
func TestWithControllers(t *testing.T) {
	config := testkube.Start(t, "../..", "persistentvolume-binder-controller",
		"persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller", "namespace-controller",
		"job-controller", "serviceaccount-controller", "root-ca-certificate-publisher-controller")
	s, api := onServer(t, config)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		kubelet(ctx, t, api)
	}()
	defer func() {
		cancel()
		<-ended
	}()
	group := func() *v1alpha1.ConsistencyGroup {
		g := &v1alpha1.ConsistencyGroup{}
		if api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: "shop"}, g) != nil {
			return &v1alpha1.ConsistencyGroup{}
		}
		return g
	}
	_, stop := s.run(t, config)
	eventually(t, "the claim is a member", func() bool { return group().Status.MembersReady == "1/1" })

	t.Run("refused", func(t *testing.T) {
		for name, spec := range map[string]v1alpha1.GroupActionSpec{
			"bookmark without a label": {Group: "shop", Type: v1alpha1.ActionBookmark},
			"a label of a verify":      {Group: "shop", Type: v1alpha1.ActionVerify, Bookmark: "monday"},
			"a test that is none":      {Group: "shop", Type: v1alpha1.ActionVerify, Test: &v1alpha1.TestFailover{}},
			"two points": {Group: "shop", Type: v1alpha1.ActionTestFailover,
				RecoveryPoint: &v1alpha1.RecoveryPoint{Ordinal: new(int64(7)), Bookmark: new("monday")}},
			"no time": {Group: "shop", Type: v1alpha1.ActionVerify, Timeout: &metav1.Duration{}},
		} {
			a := &v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x"}, Spec: spec}
			if err := api.Create(ctx, a); !apierrors.IsInvalid(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, change := range map[string]func(*v1alpha1.GroupActionScheduleSpec){
			"a failover":  func(s *v1alpha1.GroupActionScheduleSpec) { s.Action.Type = v1alpha1.ActionFailover },
			"a zone":      func(s *v1alpha1.GroupActionScheduleSpec) { s.Schedule = "TZ=Europe/Berlin 0 3 * * *" },
			"no schedule": func(s *v1alpha1.GroupActionScheduleSpec) { s.Schedule = "@every 1m" },
		} {
			schedule := &v1alpha1.GroupActionSchedule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x"},
				Spec: v1alpha1.GroupActionScheduleSpec{Schedule: "@daily", Action: operatortest.TestFailover()}}
			change(&schedule.Spec)
			if err := api.Create(ctx, schedule); !apierrors.IsInvalid(err) {
				t.Errorf("schedule of %s: %v", name, err)
			}
		}
	})

	t.Run("test failover", func(t *testing.T) {
		s.Change(func(g *sidecarpb.GroupStatus) { g.Role = sidecarpb.Role_ROLE_SECONDARY })
		eventually(t, "the group is a copy", func() bool { return group().Status.Role == v1alpha1.RoleSecondary })
		schedule := &v1alpha1.GroupActionSchedule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "often"},
			Spec: v1alpha1.GroupActionScheduleSpec{Schedule: "* * * * *",
				Action: operatortest.TestFailover(v1alpha1.Check{Name: "orders", Image: "checker"})}}
		s.Create(schedule)
		actions := &v1alpha1.GroupActionList{}
		eventually(t, "the schedule makes an action", func() bool {
			return api.List(ctx, actions, client.InNamespace("shop")) == nil && len(actions.Items) == 1
		})
		if err := api.Get(ctx, client.ObjectKeyFromObject(schedule), schedule); err != nil {
			t.Fatal(err)
		}
		before := schedule.DeepCopy()
		schedule.Spec.Suspend = true
		if err := api.Patch(ctx, schedule, client.MergeFrom(before)); err != nil { // its status may have changed
			t.Fatal(err)
		}
		a := &actions.Items[0]
		restarts, seen := 0, 0
		eventually(t, "the test ends", func() bool {
			if api.Get(ctx, client.ObjectKeyFromObject(a), a) != nil {
				return false
			}
			if n := len(a.Status.Steps); n > seen {
				seen = n
				stop()
				_, stop = s.run(t, config)
				restarts++
			}
			return a.Status.CompletionTime != nil
		})
		if a.Status.Phase != v1alpha1.ActionSucceeded || len(a.Status.Steps) != 5 || len(a.Finalizers) > 0 ||
			a.Status.Steps[3].Message != "1273 orders" || a.Status.Result.RTO == nil {
			t.Errorf("%d restarts: %+v", restarts, a.Status)
		}
		t.Logf("%d restarts, measured recovery time %v", restarts, a.Status.Result.RTO)
		for _, list := range []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeList{},
			&corev1.PersistentVolumeClaimList{}, &batchv1.JobList{}} {
			if err := api.List(ctx, list, client.HasLabels{v1alpha1.LabelTestAction}); err != nil || meta.LenList(list) > 0 {
				t.Errorf("%d of %T are left: %v", meta.LenList(list), list, err)
			}
		}
		if len(s.Nodes["a"].Views) > 0 {
			t.Errorf("views are left: %v", s.Nodes["a"].Views)
		}
		eventually(t, "the schedule knows the success", func() bool {
			return api.Get(ctx, client.ObjectKeyFromObject(schedule), schedule) == nil && schedule.Status.LastSuccess == a.Name
		})
		s.Change(func(g *sidecarpb.GroupStatus) { g.Role = sidecarpb.Role_ROLE_PRIMARY })
	})

	t.Run("namespace deleted with the peer away", func(t *testing.T) {
		s.Change(func(g *sidecarpb.GroupStatus) {
			g.Connected, g.State = false, sidecarpb.GroupState_GROUP_STATE_CONNECTING
		})
		namespace := &corev1.Namespace{}
		s.Get(namespace, "", "shop")
		uid := namespace.UID
		if err := api.Delete(ctx, namespace); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the namespace is gone", func() bool {
			return apierrors.IsNotFound(api.Get(ctx, client.ObjectKey{Name: "shop"}, namespace))
		})
		s.WantEngine(map[string][]string{})
		again := operatortest.Labelled("shop")
		again.UID = ""
		s.Create(again)
		s.bind("two")
		eventually(t, "the new namespace is replicated", func() bool { return group().Status.MembersReady == "1/1" })
		if again.UID == uid || len(s.Nodes["a"].Names()) != 1 {
			t.Errorf("groups: %v", s.Nodes["a"].Names())
		}
	})
	stop()
}

// TestInvalidSelectors: the API server refuses selectors that the operator could not read, except for values that no
// label can have: a rule about all texts of a selector would cost more than the API server allows.
func TestInvalidSelectors(t *testing.T) {
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(testkube.Start(t, "../.."), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	expression := func(operator metav1.LabelSelectorOperator, values ...string) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "tier", Operator: operator, Values: values}}}
	}
	for _, c := range []struct {
		name     string
		selector *metav1.LabelSelector
		refused  bool
	}{
		{"all", &metav1.LabelSelector{}, false},
		{"in", expression(metav1.LabelSelectorOpIn, "db", ""), false},
		{"exists", expression(metav1.LabelSelectorOpExists), false},
		{"labels", &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "db"}}, false},
		{"an operator in small letters", expression("in", "db"), true},
		{"in without values", expression(metav1.LabelSelectorOpIn), true},
		{"exists with values", expression(metav1.LabelSelectorOpExists, "db"), true},
		{"a value that no label has", &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "a b"}}, false},
	} {
		if _, err := metav1.LabelSelectorAsSelector(c.selector); err == nil && c.refused {
			t.Errorf("%s is a selector", c.name)
		}
		for _, o := range []client.Object{
			&v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x"},
				Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", Claims: c.selector}},
			&v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: "x"},
				Spec: v1alpha1.RemoteSiteSpec{Namespaces: c.selector}},
		} {
			if err := api.Create(context.Background(), o, client.DryRunAll); apierrors.IsInvalid(err) != c.refused ||
				!c.refused && err != nil {
				t.Errorf("%s of %T: %v", c.name, o, err)
			}
		}
	}
}
