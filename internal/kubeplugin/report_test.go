package kubeplugin

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

func ended(name string, kind v1alpha1.ActionType, at time.Time) *v1alpha1.GroupAction {
	start, end := metav1.NewMicroTime(at.Add(-time.Minute)), metav1.NewMicroTime(at)
	return &v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "u-1",
		CreationTimestamp: metav1.NewTime(start.Time)},
		Spec: v1alpha1.GroupActionSpec{Group: "shop", Type: kind},
		Status: v1alpha1.GroupActionStatus{Phase: v1alpha1.ActionSucceeded, Message: "the copy could be used",
			StartTime: &start, CompletionTime: &end,
			Steps: []v1alpha1.ActionStep{{Name: "Check orders", StartTime: start, EndTime: &end,
				Message: "1273 orders | all\nwith stock"}},
			Result: &v1alpha1.ActionResult{RTO: &metav1.Duration{Duration: 42 * time.Second},
				RTOTarget: &metav1.Duration{Duration: 30 * time.Second}, RPO: &metav1.Duration{Duration: 1250 * time.Millisecond},
				RPOTarget: &metav1.Duration{Duration: 30 * time.Second},
				Points:    []v1alpha1.ActionPoint{{Group: "shop-a", Ordinal: 42}}}}}
}

// TestReport: declared and measured objectives, in both formats; what is not known is said to be so.
func TestReport(t *testing.T) {
	api := cluster(t)
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	drill := ended("drill", v1alpha1.ActionTestFailover, now)
	later := ended("later", v1alpha1.ActionSuspend, now.Add(time.Hour))
	later.Status.Result = nil
	running := ended("running", v1alpha1.ActionTestFailover, now)
	running.Status.CompletionTime = nil
	for _, a := range []*v1alpha1.GroupAction{drill, later, running} {
		if err := api.Create(context.Background(), a); err != nil {
			t.Fatal(err)
		}
	}
	status, out := plug(t, api, "report", "drill")
	want(t, status, out, exitOK, "# TestFailover of group shop/shop", "| RTO | 30s | 42s | **no** |",
		"| RPO | 30s | 1.25s | yes |", "| shop-a | 42 | unknown |", `1273 orders \| all with stock |`)
	status, out = plug(t, api, "report", "--group", "shop", "-o", "json")
	r := Report{}
	if err := json.Unmarshal([]byte(out), &r); err != nil || status != exitOK || r.Action != "drill" || *r.RTO.Met ||
		!*r.RPO.Met || *r.RPO.MeasuredSeconds != 1.25 {
		t.Errorf("%d, %v: %+v", status, err, r)
	}
	status, out = plug(t, api, "report", "later")
	want(t, status, out, exitOK, "| RTO | not declared | not measured | unknown |")
	// A failover after the last test is what a person wants to see.
	if err := api.Create(context.Background(), ended("real", v1alpha1.ActionFailover, now.Add(time.Minute))); err != nil {
		t.Fatal(err)
	}
	status, out = plug(t, api, "report", "--group", "shop")
	want(t, status, out, exitOK, "# Failover of group shop/shop", "`real`")
	status, out = plug(t, api, "report", "none")
	want(t, status, out, exitFailure, "no action none")
	status, out = plug(t, api, "report")
	want(t, status, out, exitFailure, "--group")
	status, out = plug(t, api, "report", "--group", "other")
	want(t, status, out, exitFailure, "no action of group other")
}

// TestTest: the action has what the flags and the file say, and a kept test ends by its annotation.
func TestTest(t *testing.T) {
	api := cluster(t)
	file := filepath.Join(t.TempDir(), "checks.yaml")
	text := "checks:\n- {name: orders, image: checker, args: [/claims/orders]}\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out := plug(t, api, "test", "start", "shop", "-f", file, "--in", "shop-drill", "--keep", "2h", "--at", "-10m",
		"--open-network", "--wait=false")
	want(t, status, out, exitOK, "groupaction shop/shop-test-")
	made := &v1alpha1.GroupActionList{}
	if err := api.List(context.Background(), made); err != nil || len(made.Items) != 1 {
		t.Fatalf("%v, %v", made.Items, err)
	}
	spec := made.Items[0].Spec
	if test := spec.Test; spec.Type != v1alpha1.ActionTestFailover || test.Namespace != "shop-drill" ||
		test.KeepFor.Duration != 2*time.Hour || test.Network != v1alpha1.TestNetworkOpen || len(test.Checks) != 1 ||
		test.Checks[0].Image != "checker" || spec.RecoveryPoint.Time == nil {
		t.Errorf("spec: %+v, %+v", spec, spec.Test)
	}
	if err := os.WriteFile(file, []byte("chekcs: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out = plug(t, api, "test", "start", "shop", "-f", file)
	want(t, status, out, exitFailure, "chekcs")
	status, out = plug(t, api, "test", "start", "none")
	want(t, status, out, exitFailure, "not found")

	done := ended("kept", v1alpha1.ActionTestFailover, time.Now())
	done.Status.CompletionTime = nil
	if err := api.Create(context.Background(), done); err != nil {
		t.Fatal(err)
	}
	status, out = plug(t, api, "test", "stop", "kept")
	want(t, status, out, exitOK, "succeeded")
	if err := api.Get(context.Background(), client.ObjectKeyFromObject(done), done); err != nil ||
		done.Annotations[v1alpha1.AnnotationEndTest] == "" {
		t.Errorf("%v: %v", err, done.Annotations)
	}
	for text, want := range map[string]string{"17": "ordinal", "2026-01-02T03:04:05Z": "time", "monday": "bookmark"} {
		got, err := json.Marshal(recoveryPoint(text, time.Now()))
		if err != nil || !strings.Contains(string(got), want) || strings.Count(string(got), ":\"")+
			strings.Count(string(got), ":1") != 1 {
			t.Errorf("%s is %s", text, got)
		}
	}
}
