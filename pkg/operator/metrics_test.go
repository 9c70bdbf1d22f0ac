package operator

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// TestOperatorMetrics: the conditions of groups and sites and the newest action of each group are metrics, of the
// leader alone.
func TestOperatorMetrics(t *testing.T) {
	scheme, err := kube.Scheme()
	if err != nil {
		t.Fatal(err)
	}
	group := &v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"}}
	group.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse},
		{Type: v1alpha1.ConditionPromotable, Status: metav1.ConditionUnknown},
		{Type: v1alpha1.ConditionConverged, Status: metav1.ConditionTrue}}
	site := &v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: "site-b"}}
	site.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReachable, Status: metav1.ConditionFalse}}
	begin := time.Unix(1_800_000_000, 0)
	action := func(name string, after time.Duration, kind v1alpha1.ActionType,
		phase v1alpha1.ActionPhase) *v1alpha1.GroupAction {
		return &v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
			CreationTimestamp: metav1.NewTime(begin.Add(after))},
			Spec:   v1alpha1.GroupActionSpec{Group: "shop", Type: kind},
			Status: v1alpha1.GroupActionStatus{Phase: phase}}
	}
	objects := []client.Object{group, site,
		action("z-first", 0, v1alpha1.ActionFailover, v1alpha1.ActionFailed),
		action("b", time.Hour, v1alpha1.ActionRelocate, v1alpha1.ActionSucceeded),
		action("c", time.Hour, v1alpha1.ActionYield, "")}
	kept := action("kept", time.Hour, v1alpha1.ActionTestFailover, v1alpha1.ActionRunning)
	kept.Spec.Group, kept.Status.Steps = "tried", []v1alpha1.ActionStep{{Name: v1alpha1.StepKeep}}
	schedule := &v1alpha1.GroupActionSchedule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "daily"},
		Spec: v1alpha1.GroupActionScheduleSpec{Action: v1alpha1.GroupActionSpec{Type: v1alpha1.ActionVerify}}}
	schedule.Status.LastSuccessTime = &metav1.Time{Time: begin}
	schedule.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionOnTime, Status: metav1.ConditionFalse}}
	objects = append(objects, kept, schedule)
	leader := make(chan struct{})
	m := &Metrics{Reader: fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).Build(), Leader: leader}
	if n := testutil.CollectAndCount(m); n != 0 {
		t.Fatalf("%d metrics of a process that does not lead", n)
	}
	close(leader)
	const want = `
# HELP slipstream_action_schedule_condition 1 if the condition of the GroupActionSchedule is True, 0 if it is False.
# TYPE slipstream_action_schedule_condition gauge
slipstream_action_schedule_condition{condition="OnTime",namespace="shop",schedule="daily"} 0
# HELP slipstream_action_schedule_last_success_timestamp_seconds When the last action of a GroupActionSchedule ended ` +
		`that succeeded; absent if none has.
# TYPE slipstream_action_schedule_last_success_timestamp_seconds gauge
slipstream_action_schedule_last_success_timestamp_seconds{namespace="shop",schedule="daily",type="Verify"} 1.8e+09
# HELP slipstream_claims_protected Claims that are members of a group whose condition Ready is True.
# TYPE slipstream_claims_protected gauge
slipstream_claims_protected 0
# HELP slipstream_consistency_group_condition 1 if the condition of the ConsistencyGroup is True, 0 if it is False, ` +
		`-1 if it is Unknown.
# TYPE slipstream_consistency_group_condition gauge
slipstream_consistency_group_condition{condition="Converged",group="shop",namespace="shop"} 1
slipstream_consistency_group_condition{condition="Promotable",group="shop",namespace="shop"} -1
slipstream_consistency_group_condition{condition="Ready",group="shop",namespace="shop"} 0
# HELP slipstream_group_last_action 1 for the newest GroupAction of each group, with its phase: Pending, Running, ` +
		`Kept (a test failover that waits for a person), Succeeded or Failed.
# TYPE slipstream_group_last_action gauge
slipstream_group_last_action{action="c",group="shop",namespace="shop",phase="Pending",type="Yield"} 1
slipstream_group_last_action{action="kept",group="tried",namespace="shop",phase="Kept",type="TestFailover"} 1
# HELP slipstream_remote_site_condition 1 if the condition of the RemoteSite is True, 0 if it is False, -1 if it is ` +
		`Unknown.
# TYPE slipstream_remote_site_condition gauge
slipstream_remote_site_condition{condition="Reachable",remote_site="site-b"} 0
`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// TestCoverage: every claim of the cluster is protected, or has the reason why not.
func TestCoverage(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"), operatortest.Namespace("bare", nil))
	s.Claim("shop", "in", "a")
	s.Claim("shop", "out", "a", label(v1alpha1.LabelReplicate, "false"))
	s.Claim("bare", "lonely", "a")
	plain := s.Claim("shop", "plain", "a")
	s.Nodes["a"].Replicable = func(id string) bool { return id != plain }
	coverage := func() map[string]string {
		t.Helper()
		all, err := membership.CoverageOf(context.Background(), s.Client, "")
		if err != nil {
			t.Fatal(err)
		}
		reasons := map[string]string{}
		for _, c := range all {
			reasons[c.Namespace+"/"+c.Name] = c.Reason
		}
		return reasons
	}
	want := func(name, reason string) {
		t.Helper()
		if got := coverage()[name]; got != reason {
			t.Errorf("claim %s: reason %q, want %q", name, got, reason)
		}
	}
	want("shop/in", membership.ReasonNoGroup) // the operator has not come yet
	s.Settle("shop")
	s.Settle("bare")
	want("shop/out", membership.ReasonOptedOut)
	want("bare/lonely", membership.ReasonNoGroup)
	want("shop/plain", "NeedsRestage")
	want("shop/in", membership.ReasonGroupNotReady) // as its group is not ready
	leader := make(chan struct{})
	close(leader)
	const metrics = `
# HELP slipstream_claims_unprotected Claims that are not protected, by reason. ` +
		"`kubectl slipstream coverage`" + ` names them.
# TYPE slipstream_claims_unprotected gauge
slipstream_claims_unprotected{reason="GroupNotReady"} 1
slipstream_claims_unprotected{reason="NeedsRestage"} 1
slipstream_claims_unprotected{reason="NoGroup"} 1
slipstream_claims_unprotected{reason="OptedOut"} 1
`
	if err := testutil.CollectAndCompare(&Metrics{Reader: s.Client, Leader: leader}, strings.NewReader(metrics),
		"slipstream_claims_unprotected"); err != nil {
		t.Error(err)
	}
	claim := s.Group("shop", "shop").Status.Members
	if len(claim) != 2 {
		t.Fatalf("members: %+v", claim)
	}
	s.Nodes["a"].Replicable = nil
	s.Reset()
	s.Settle("shop")
	want("shop/in", "")
	want("shop/plain", "")
}
