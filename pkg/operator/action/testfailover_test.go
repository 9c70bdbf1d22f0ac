package action_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// cluster does what the controllers of Kubernetes do: it binds claims, ends Jobs, and empties namespaces that are gone.
// A Job whose image is "bad" fails, and one whose image is "slow" runs on.
func (s *site) cluster() {
	s.T.Helper()
	ctx := context.Background()
	claims, jobs, all := &corev1.PersistentVolumeClaimList{}, &batchv1.JobList{}, &corev1.NamespaceList{}
	for _, list := range []client.ObjectList{claims, jobs, all} {
		if err := s.Client.List(ctx, list); err != nil {
			s.T.Fatal(err)
		}
	}
	there := map[string]bool{}
	for _, n := range all.Items {
		there[n.Name] = true
	}
	must := func(err error) {
		s.T.Helper()
		if client.IgnoreNotFound(err) != nil {
			s.T.Fatal(err)
		}
	}
	killer := s.Death
	s.Death = nil // the cluster's own calls
	defer func() { s.Death = killer }()
	for i := range claims.Items {
		c := &claims.Items[i]
		if !there[c.Namespace] && c.Labels[v1alpha1.LabelTestOf] != "" {
			must(s.Client.Delete(ctx, c))
		} else if c.Status.Phase == "" {
			c.Status.Phase = corev1.ClaimBound
			must(s.Client.Status().Update(ctx, c))
		}
	}
	for i := range jobs.Items {
		job := &jobs.Items[i]
		image := job.Spec.Template.Spec.Containers[0].Image
		switch {
		case !there[job.Namespace]:
			must(s.Client.Delete(ctx, job))
			continue
		case len(job.Status.Conditions) > 0 || image == "slow":
			continue
		}
		condition, exit, said := batchv1.JobComplete, int32(0), "1273 orders, all with their stock movement"
		if image == "bad" {
			condition, exit, said = batchv1.JobFailed, 3, "order 17 has no stock movement"
		}
		job.Status.Conditions = []batchv1.JobCondition{{Type: condition, Status: corev1.ConditionTrue, Reason: "Ended"}}
		must(s.Client.Status().Update(ctx, job))
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: job.Namespace, Name: job.Name + "-x",
			Labels: map[string]string{batchv1.JobNameLabel: job.Name}}}
		must(s.Client.Create(ctx, pod))
		pod.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{ExitCode: exit, Message: said}}}}
		must(s.Client.Status().Update(ctx, pod))
	}
}

// drills makes an action, and goes on until it ends or a number of passes is over.
func (s *site) drills(name string, spec v1alpha1.GroupActionSpec) *v1alpha1.GroupAction {
	s.T.Helper()
	s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
		UID: "0123456789-uid", CreationTimestamp: metav1.NewTime(s.Clock)}, Spec: spec})
	return s.drillOn(name)
}

func (s *site) drillOn(name string) (a *v1alpha1.GroupAction) {
	s.T.Helper()
	for range 6 {
		s.Clock = s.Clock.Add(time.Second)
		a = s.GoOn(name)
		s.cluster()
	}
	return a
}

// nothingLeft: the test has left nothing at the API server nor at the engine.
func (s *site) nothingLeft() {
	s.T.Helper()
	for _, list := range []client.ObjectList{&corev1.NamespaceList{}, &corev1.PersistentVolumeList{},
		&corev1.PersistentVolumeClaimList{}, &batchv1.JobList{}} {
		if err := s.Client.List(context.Background(), list, client.HasLabels{v1alpha1.LabelTestAction}); err != nil {
			s.T.Fatal(err)
		}
		if n := meta.LenList(list); n > 0 {
			s.T.Errorf("%d objects of %T are left", n, list)
		}
	}
	for name, n := range s.Nodes {
		if len(n.Views) > 0 {
			s.T.Errorf("views of node %s are left: %v", name, n.Views)
		}
	}
}

// TestTestFailover opens the copies of both nodes in a namespace of its own, checks them, measures, and removes
// everything.
func TestTestFailover(t *testing.T) {
	s := secondary(t)
	lag := 1.25
	s.Change(func(g *sidecarpb.GroupStatus) { g.LagSeconds = &lag })
	tried := &corev1.Namespace{}
	s.Get(tried, "", "shop")
	tried.Labels["pod-security.kubernetes.io/enforce"] = "restricted"
	s.Update(tried)
	spec := operatortest.TestFailover(v1alpha1.Check{Name: "orders", Image: "checker", Args: []string{"/claims/one",
		"/claims/two"},
		RunAsUser: new(int64(999))})
	spec.Test.KeepFor = &metav1.Duration{Duration: time.Hour}
	a := s.drills("t", spec)
	wantAction(t, a, v1alpha1.ActionRunning, "namespace shop-test can be looked at until")
	r := a.Status.Result
	if r.RTO == nil || r.RPO == nil || r.RPO.Duration != 1250*time.Millisecond || len(r.Points) != 2 ||
		r.Points[0].Ordinal != 42 {
		t.Errorf("result: %+v", r)
	}
	ns, policy, job := &corev1.Namespace{}, &networkingv1.NetworkPolicy{}, &batchv1.Job{}
	s.Get(ns, "", "shop-test")
	if ns.Labels["pod-security.kubernetes.io/enforce"] != "restricted" || ns.Labels[v1alpha1.LabelTestOf] != "shop" {
		t.Errorf("labels: %v", ns.Labels)
	}
	s.Get(policy, "shop-test", "deny-all")
	if len(policy.Spec.PolicyTypes) != 2 || len(policy.Spec.Ingress)+len(policy.Spec.Egress) > 0 {
		t.Errorf("policy: %+v", policy.Spec)
	}
	s.Get(job, "shop-test", "check-orders")
	pod := job.Spec.Template.Spec
	if c := pod.Containers[0]; len(c.VolumeMounts) != 2 || c.VolumeMounts[0].MountPath != "/claims/one" ||
		*pod.AutomountServiceAccountToken || *c.SecurityContext.AllowPrivilegeEscalation ||
		*c.SecurityContext.RunAsUser != 999 {
		t.Errorf("pod: %+v", pod)
	}
	volume := &corev1.PersistentVolume{}
	s.Get(volume, "", "test-view-vol-shop-two")
	if volume.Spec.CSI.VolumeHandle != "view-vol-shop-two" || membership.NodeOf(volume) != "b" ||
		volume.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain {
		t.Errorf("volume: %+v", volume.Spec)
	}
	// What shows a copy needs no protection.
	covered, err := membership.CoverageOf(context.Background(), s.Client, "shop-test")
	if err != nil || len(covered) != 2 || !covered[0].Deliberate() {
		t.Errorf("coverage: %+v, %v", covered, err)
	}

	s.Clock = s.Clock.Add(time.Hour)
	a = s.drillOn("t")
	wantAction(t, a, v1alpha1.ActionSucceeded, "could be used after")
	s.nothingLeft()
	if len(a.Finalizers) > 0 {
		t.Errorf("finalizers: %v", a.Finalizers)
	}
	engine := s.Group("shop", "shop").Status.EngineGroups
	want := []string{"View " + engine[0].Name, "View " + engine[1].Name, "Namespace shop-test", "Claims", "Check orders",
		"Keep", "Remove"}
	if got := stepNames(a.Status); strings.Join(got, ",") != strings.Join(want, ",") {
		t.Errorf("steps %q, want %q", got, want)
	}
	if got := a.Status.Steps[4].Message; got != "1273 orders, all with their stock movement" {
		t.Errorf("the check said %q", got)
	}
	if calls := s.promotions(); len(calls) > 0 {
		t.Errorf("promoted: %v", calls)
	}
}

// TestTestFailoverFails: whatever goes wrong, the record says what, and nothing is left.
func TestTestFailoverFails(t *testing.T) {
	for name, c := range map[string]struct {
		spec    func() v1alpha1.GroupActionSpec
		prepare func(*site)
		text    string
		steps   int
	}{
		"check": {func() v1alpha1.GroupActionSpec {
			return operatortest.TestFailover(v1alpha1.Check{Name: "first", Image: "bad"},
				v1alpha1.Check{Name: "second", Image: "checker"})
		}, nil, "exit status 3; order 17 has no stock movement", 6},
		"slow": {func() v1alpha1.GroupActionSpec {
			spec := operatortest.TestFailover(v1alpha1.Check{Name: "first", Image: "slow"})
			spec.Timeout = &metav1.Duration{Duration: 3 * time.Second}
			return spec
		}, nil, "not done within spec.timeout of 3s; it waited for: check first: ", 6},
		"no view": {func() v1alpha1.GroupActionSpec { return operatortest.TestFailover() }, func(s *site) {
			s.Nodes["b"].Fail["CreateView"] = status.Error(codes.FailedPrecondition, "a sync runs")
		}, "a sync runs", 3},
		"primary": {func() v1alpha1.GroupActionSpec { return operatortest.TestFailover() }, func(s *site) {
			s.Change(func(g *sidecarpb.GroupStatus) { g.Role = sidecarpb.Role_ROLE_PRIMARY })
		}, "start it at the peer", 2},
		"namespace taken": {func() v1alpha1.GroupActionSpec { return operatortest.TestFailover() }, func(s *site) {
			s.Create(operatortest.Namespace("shop-test", nil))
		}, "Namespace shop-test is there already", 4},
		"foreign namespace": {func() v1alpha1.GroupActionSpec {
			spec := operatortest.TestFailover()
			spec.Test.Namespace = "bank-test"
			return spec
		}, nil, "has to begin with shop-", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := secondary(t)
			if c.prepare != nil {
				c.prepare(s)
			}
			a := s.drills("t", c.spec())
			wantAction(t, a, v1alpha1.ActionFailed, c.text)
			s.nothingLeft()
			if len(a.Finalizers) > 0 || len(a.Status.Steps) != c.steps ||
				a.Status.Result != nil && a.Status.Result.RTO != nil {
				t.Errorf("finalizers %v, steps %q, result %+v", a.Finalizers, stepNames(a.Status), a.Status.Result)
			}
			if name == "namespace taken" {
				s.Get(&corev1.Namespace{}, "", "shop-test")
			}
		})
	}
}

// TestTestFailoverDeleted: an action that is deleted in the middle goes when its objects and views are gone, and a
// silent node is waited for.
func TestTestFailoverDeleted(t *testing.T) {
	s := secondary(t)
	a := s.drills("t", operatortest.TestFailover(v1alpha1.Check{Name: "first", Image: "slow"}))
	wantAction(t, a, v1alpha1.ActionRunning, "check first: ")
	s.Nodes["b"].Silent = true
	if err := s.Client.Delete(context.Background(), a); err != nil {
		t.Fatal(err)
	}
	s.drillOn("t") // it is still there
	s.Nodes["b"].Silent = false
	for range 3 {
		s.Watcher.Look(context.Background())
		_, _ = s.Actions.Reconcile(context.Background(), ctrl.Request{NamespacedName: client.ObjectKeyFromObject(a)})
	}
	s.cluster()
	s.nothingLeft()
	if err := s.Client.Get(context.Background(), client.ObjectKeyFromObject(a), a); !apierrors.IsNotFound(err) {
		t.Errorf("the action is left: %v, %v", err, a.Finalizers)
	}
}

// TestEndTest: a test that is kept ends by its annotation.
func TestEndTest(t *testing.T) {
	s := secondary(t)
	spec := operatortest.TestFailover()
	spec.Test.KeepFor = &metav1.Duration{Duration: 24 * time.Hour}
	spec.RecoveryPoint = &v1alpha1.RecoveryPoint{Bookmark: new("monday")}
	a := s.drills("t", spec)
	wantAction(t, a, v1alpha1.ActionRunning, "can be looked at")
	if rpo := a.Status.Result.RPO; rpo == nil || rpo.Duration != 10*time.Second {
		t.Errorf("the age of the point is %v", rpo)
	}
	a.Annotations = map[string]string{v1alpha1.AnnotationEndTest: "true"}
	s.Update(a)
	wantAction(t, s.drillOn("t"), v1alpha1.ActionSucceeded)
	s.nothingLeft()
}
