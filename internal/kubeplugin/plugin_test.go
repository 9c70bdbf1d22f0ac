package kubeplugin

import (
	"bytes"
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// cluster has a protected claim, one that cannot be replicated, one that is left out, and one without a group.
func cluster(t *testing.T) client.Client {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	var objects []client.Object
	for _, name := range []string{"bare", "shop"} {
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	claim := func(namespace, name string, labels map[string]string) {
		objects = append(objects, &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
			Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}},
			&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
				ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: name},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: plugin.Name, VolumeHandle: "vol-" + name}}}})
	}
	claim("shop", "orders", nil)
	claim("shop", "plain", nil)
	claim("shop", "cache", map[string]string{v1alpha1.LabelReplicate: "false"})
	claim("bare", "lonely", nil)
	objects = append(objects, &v1alpha1.ConsistencyGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"},
		Spec:       v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b"},
		Status: v1alpha1.ConsistencyGroupStatus{Role: v1alpha1.RolePrimary, State: "Streaming", Confirm: "abc",
			MembersReady: "1/2", NextStep: "MembersReady: do something",
			Lag: &v1alpha1.Lag{Time: &metav1.Duration{Duration: time.Second}},
			Members: []v1alpha1.Member{{Claim: "orders", State: v1alpha1.MemberIn, Node: "a", Volume: "vol-orders"},
				{Claim: "plain", State: v1alpha1.MemberNeedsRestage, Reason: "not replicable"}},
			Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}},
	})
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.GroupAction{}).Build()
}

func plug(t *testing.T, api client.Client, args ...string) (status int, out string) {
	t.Helper()
	var buffer bytes.Buffer
	c := &cli{out: &buffer, err: &buffer, connect: func(string, string) (client.Client, string, error) {
		return api, "shop", nil
	}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	status = run(ctx, c, "v1", args)
	return status, buffer.String()
}

func want(t *testing.T, status int, out string, wantStatus int, texts ...string) {
	t.Helper()
	if status != wantStatus {
		t.Errorf("exit status %d, want %d:\n%s", status, wantStatus, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
}

func TestStatus(t *testing.T) {
	api := cluster(t)
	status, out := plug(t, api, "status", "-A")
	want(t, status, out, exitOK, "shop        shop    Primary   Streaming   True    1s    1/2       site-b", "next step: "+
		"MembersReady")
	status, out = plug(t, api, "status", "shop")
	want(t, status, out, exitOK, "plain    NeedsRestage", "not replicable")
	status, out = plug(t, api, "status", "none")
	want(t, status, out, exitFailure, "no ConsistencyGroup none in namespace shop (-n names another one, -A is all)")
	status, out = plug(t, api, "status", "-n", "empty")
	want(t, status, out, exitOK, "no ConsistencyGroup in namespace empty (-n names another one, -A is all)")
	status, out = plug(t, api, "status", "-o", "json")
	want(t, status, out, exitOK, `"membersReady": "1/2"`)
	status, out = plug(t, api, "status", "-o", "xml")
	want(t, status, out, exitFailure, "table or json")
}

func TestCoverage(t *testing.T) {
	api := cluster(t)
	status, out := plug(t, api, "coverage", "-A")
	want(t, status, out, exitUnprotected, "NeedsRestage", "OptedOut", "NoGroup",
		"4 claims: 1 protected, 1 left out on purpose, 2 not protected")
	if strings.Contains(out, "orders") {
		t.Errorf("a protected claim is listed:\n%s", out)
	}
	for _, name := range []string{"plain", "lonely"} {
		for _, namespace := range []string{"shop", "bare"} {
			o := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
			if err := client.IgnoreNotFound(api.Delete(context.Background(), o)); err != nil {
				t.Fatal(err)
			}
		}
	}
	status, out = plug(t, api, "coverage", "-n", "bare")
	want(t, status, out, exitOK, "no claim in namespace bare (-n names another one, -A is all)")
	status, out = plug(t, api, "coverage", "-A")
	want(t, status, out, exitOK, "0 not protected")
	status, out = plug(t, api, "coverage", "-A", "--strict")
	want(t, status, out, exitUnprotected, "1 not protected")
}

// TestActions: an action is made with what the status shows, and only after its risk was agreed to.
func TestActions(t *testing.T) {
	api := cluster(t)
	status, out := plug(t, api, "failover", "shop", "--force")
	want(t, status, out, exitFailure, "--yes", "are lost")
	status, out = plug(t, api, "demote", "shop")
	want(t, status, out, exitFailure, "--yes")
	status, out = plug(t, api, "failover", "none")
	want(t, status, out, exitFailure, "not found")
	status, out = plug(t, api, "failover", "shop", "--force", "--yes", "--wait=false")
	want(t, status, out, exitOK, "groupaction shop/shop-failover-")
	made := &v1alpha1.GroupActionList{}
	if err := api.List(context.Background(), made); err != nil || len(made.Items) != 1 {
		t.Fatalf("actions: %v, %v", made.Items, err)
	}
	if spec := made.Items[0].Spec; !spec.Force || spec.Confirm != "abc" || spec.Type != v1alpha1.ActionFailover {
		t.Errorf("spec: %+v", spec)
	}
	// Waiting ends with the action.
	for phase, code := range map[v1alpha1.ActionPhase]int{v1alpha1.ActionSucceeded: exitOK,
		v1alpha1.ActionFailed: exitFailure} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			finish(t, api, phase)
		}()
		status, out = plug(t, api, "suspend", "shop", "--yes")
		<-done
		want(t, status, out, code, "Suspend g: done (1s)", strings.ToLower(string(phase))+": ")
	}
	status, out = plug(t, api, "resume", "shop", "--timeout", "10ms")
	want(t, status, out, exitFailure, "it goes on: kubectl -n shop get ga shop-resume-")
}

// TestBookmark: the label is the second argument.
func TestBookmark(t *testing.T) {
	api := cluster(t)
	status, out := plug(t, api, "bookmark", "shop")
	want(t, status, out, exitFailure, "accepts 2 arg")
	status, out = plug(t, api, "bookmark", "shop", "monday", "--wait=false")
	want(t, status, out, exitOK, "groupaction shop/shop-bookmark-")
	made := &v1alpha1.GroupActionList{}
	if err := api.List(context.Background(), made); err != nil || len(made.Items) != 1 ||
		made.Items[0].Spec.Bookmark != "monday" {
		t.Errorf("actions: %v, %v", made.Items, err)
	}
}

// finish ends the actions that have not ended.
func finish(t *testing.T, api client.Client, phase v1alpha1.ActionPhase) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		list := &v1alpha1.GroupActionList{}
		if err := api.List(context.Background(), list); err != nil {
			t.Error(err)
			return
		}
		for _, a := range list.Items {
			if a.Status.Phase != "" || a.Spec.Type != v1alpha1.ActionSuspend {
				continue
			}
			start := metav1.NowMicro()
			end := metav1.NewMicroTime(start.Add(time.Second))
			a.Status = v1alpha1.GroupActionStatus{Phase: phase, Message: "as it is",
				Steps: []v1alpha1.ActionStep{{Name: "Suspend g", StartTime: start, EndTime: &end, Message: "done"}}}
			if err := api.Status().Update(context.Background(), &a); err != nil {
				t.Error(err)
			}
			return
		}
	}
}

// TestExplain: each condition type of the API is explained, here and in the guide.
func TestExplain(t *testing.T) {
	api := cluster(t)
	source, err := os.ReadFile("../../pkg/api/v1alpha1/labels.go")
	if err != nil {
		t.Fatal(err)
	}
	guide, err := os.ReadFile("../../docs/guides/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	types := regexp.MustCompile(`Condition[A-Za-z]+ += "([A-Za-z]+)"`).FindAllSubmatch(source, -1)
	if len(types) < 5 {
		t.Fatalf("%d types", len(types))
	}
	for _, m := range types {
		name := string(m[1])
		status, out := plug(t, api, "explain", strings.ToLower(name))
		want(t, status, out, exitOK, name)
		if !bytes.Contains(guide, []byte("| "+name+" |")) {
			t.Errorf("the guide lacks %s", name)
		}
	}
	status, out := plug(t, api, "explain")
	want(t, status, out, exitOK, "Converged\n", "WriteOrder\n")
	status, out = plug(t, api, "explain", "Happy")
	want(t, status, out, exitFailure, "WriteOrder")
}
