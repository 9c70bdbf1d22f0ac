package action_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

func TestFailover(t *testing.T) {
	s := secondary(t)
	done := s.Act("f", force(s))
	if done.Status.Phase != v1alpha1.ActionSucceeded || len(done.Status.Steps) != 2 || done.Status.CompletionTime == nil {
		t.Fatalf("status: %+v", done.Status)
	}
	loss := done.Status.Result.Loss
	if loss == nil || loss.Time == nil || loss.Time.Seconds() != 1.5 || loss.Writes != nil ||
		done.Status.Result.RTO == nil {
		t.Errorf("result: %+v, %+v", done.Status.Result, loss)
	}
	if calls := s.promotions(); len(calls) != 2 {
		t.Errorf("calls: %v", calls)
	}
	// It is run once.
	s.GoOn("f")
	if calls := s.promotions(); len(calls) != 0 {
		t.Errorf("calls of an action that has ended: %v", calls)
	}
	s.Settle("shop")
	if g := s.Group("shop", "shop"); g.Status.Role != v1alpha1.RolePrimary {
		t.Errorf("role %s", g.Status.Role)
	}
}

// TestFailoverWithoutForce fails while the peer may have more, and loses nothing once the peer has demoted itself.
func TestFailoverWithoutForce(t *testing.T) {
	s := secondary(t)
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover}
	if a := s.Act("early", spec); a.Status.Phase != v1alpha1.ActionFailed ||
		!strings.Contains(a.Status.Message, "has not demoted itself") {
		t.Errorf("status: %+v", a.Status)
	}
	for _, n := range s.Nodes {
		for _, g := range n.Groups {
			g.State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
		}
	}
	if a := s.Act("planned", spec); a.Status.Phase != v1alpha1.ActionSucceeded || a.Status.Result.Loss != nil {
		t.Errorf("status: %+v", a.Status)
	}
	if a := s.Act("again", spec); a.Status.Phase != v1alpha1.ActionSucceeded ||
		!strings.Contains(a.Status.Message, "already") || a.Status.Result.RTO != nil {
		t.Errorf("status: %+v", a.Status)
	}
}

// TestConfirm: an action that was written for another state of the group does nothing.
func TestConfirm(t *testing.T) {
	s := secondary(t)
	spec := force(s)
	s.promotions()
	stale := spec
	stale.Confirm = "0123456789ab"
	if a := s.Act("stale", stale); a.Status.Phase != v1alpha1.ActionFailed || !strings.Contains(a.Status.Message,
		"confirm") {
		t.Errorf("status: %+v", a.Status)
	}
	s.Act("first", spec)
	s.promotions()
	for _, n := range s.Nodes {
		for _, g := range n.Groups {
			g.Role = sidecarpb.Role_ROLE_SECONDARY // and back, on the new history
		}
	}
	if a := s.Act("same-again", spec); a.Status.Phase != v1alpha1.ActionFailed {
		t.Errorf("a confirmation was used twice: %+v", a.Status)
	}
	if calls := s.promotions(); len(calls) != 0 {
		t.Errorf("calls: %v", calls)
	}
}

// TestFailoverGoesOn: an operator that was killed after a promotion, and one that cannot reach a node, go on.
func TestFailoverGoesOn(t *testing.T) {
	s := secondary(t)
	spec := force(s)
	s.Nodes["b"].Fail["Promote"] = status.Error(codes.Unavailable, "no answer")
	a := s.Act("f", spec)
	if a.Status.Phase != v1alpha1.ActionRunning || !strings.Contains(a.Status.Message, "no answer") {
		t.Fatalf("status: %+v", a.Status)
	}
	// The call was made, its answer was lost, and the process is another one.
	delete(s.Nodes["b"].Fail, "Promote")
	for _, g := range s.Nodes["b"].Groups {
		g.Role = sidecarpb.Role_ROLE_PRIMARY
	}
	s.Reset()
	a = s.GoOn("f")
	if a.Status.Phase != v1alpha1.ActionSucceeded || len(a.Status.Steps) != 2 ||
		a.Status.Steps[1].EndTime == nil || a.Status.Steps[0].EndTime == nil {
		t.Errorf("status: %+v", a.Status)
	}
}

// TestRecordFirst: what the API server does not record is not done.
func TestRecordFirst(t *testing.T) {
	s := secondary(t)
	spec := force(s)
	s.promotions()
	s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "f"}, Spec: spec})
	s.Down = true
	s.GoOn("f")
	if calls := s.promotions(); len(calls) != 0 {
		t.Errorf("calls without a record: %v", calls)
	}
	s.Down = false
	if a := s.GoOn("f"); a.Status.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("status: %+v", a.Status)
	}
}

func TestActionOnNothing(t *testing.T) {
	s := secondary(t)
	for name, spec := range map[string]v1alpha1.GroupActionSpec{
		"unknown": {Group: "none", Type: v1alpha1.ActionFailover},
	} {
		if a := s.Act(name, spec); a.Status.Phase != v1alpha1.ActionFailed || !strings.Contains(a.Status.Message,
			"none") {
			t.Errorf("%s: %+v", name, a.Status)
		}
	}
	// A node that had a group and is silent from the start of the process is waited for.
	s.Nodes["b"].Silent = true
	s.Watcher = engine.NewWatcher(s, func(_, _ *engine.View) {})
	s.Reset()
	if a := s.Act("silent", force(s)); a.Status.Phase != "" || !strings.Contains(a.Status.Message,
		"does not tell of it") {
		t.Errorf("%+v", a.Status)
	}
}

// TestSuspendResumeDemote: what is asked for at the primary, and that a group that takes no writes gets no members.
func TestSuspendResumeDemote(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	one := s.Claim("shop", "one", "a")
	s.Settle("shop")
	state := func() string {
		s.Settle("shop")
		return s.Group("shop", "shop").Status.State
	}
	for _, step := range []struct {
		kind  v1alpha1.ActionType
		state string
	}{{v1alpha1.ActionSuspend, "Suspended"}, {v1alpha1.ActionResume, "Streaming"}, {v1alpha1.ActionDemote, "Demoted"}} {
		a := s.Act(strings.ToLower(string(step.kind)), v1alpha1.GroupActionSpec{Group: "shop", Type: step.kind})
		if a.Status.Phase != v1alpha1.ActionSucceeded || len(a.Status.Steps) != 1 || a.Status.Result.RTO != nil {
			t.Errorf("%s: %+v", step.kind, a.Status)
		}
		if got := state(); got != step.state {
			t.Errorf("after %s the state is %s", step.kind, got)
		}
	}
	s.Claim("shop", "two", "a")
	s.Nodes["a"].Took()
	s.Settle("shop")
	s.WantEngine(map[string][]string{"a/shop": {one}})
	if calls := s.Nodes["a"].Took(); len(calls) > 0 {
		t.Errorf("calls for a demoted group: %v", calls)
	}
	operatortest.WantCondition(t, s.Group("shop", "shop"), v1alpha1.ConditionMembersReady, metav1.ConditionFalse,
		"Pending")
}

// TestRelocateAndYield: both end when this site follows the other one.
func TestRelocateAndYield(t *testing.T) {
	s := newSite(t, "a")
	s.Create(operatortest.Remote("site-b"), operatortest.Labelled("shop"))
	s.Claim("shop", "one", "a")
	s.Settle("shop")
	a := s.Act("move", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionRelocate})
	if a.Status.Phase != v1alpha1.ActionSucceeded || !strings.Contains(a.Status.Steps[0].Message, "1.5s") {
		t.Errorf("relocate: %+v", a.Status)
	}
	role := func(r sidecarpb.Role) {
		for _, g := range s.Nodes["a"].Groups {
			g.Role = r
		}
	}
	role(sidecarpb.Role_ROLE_PRIMARY)
	s.Nodes["a"].Took()
	a = s.Act("yield", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionYield})
	if a.Status.Phase != v1alpha1.ActionRunning || !strings.Contains(a.Status.Steps[0].Message, "3 writes") {
		t.Errorf("yield: %+v", a.Status)
	}
	role(sidecarpb.Role_ROLE_SECONDARY)
	if a = s.GoOn("yield"); a.Status.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("yield: %+v", a.Status)
	}
	yields := 0
	for _, call := range s.Nodes["a"].Took() {
		if strings.HasPrefix(call, "Yield") {
			yields++
		}
	}
	if yields != 1 {
		t.Errorf("%d calls of Yield", yields)
	}
}

// TestActionOfSilentNodes: an action waits for nodes that the operator has never heard of, because it was started while
// they were silent, also if the status names none of their groups.
func TestActionOfSilentNodes(t *testing.T) {
	for _, c := range []struct {
		status string
		forget bool
		says   string
	}{
		{"names the groups", false, "was on node a, which does not tell of it; waiting for"},
		{"is lost", true, "is on no node that answers; waiting for"},
	} {
		t.Run("the status "+c.status, func(t *testing.T) {
			s := secondary(t)
			spec := force(s)
			for _, n := range s.Nodes {
				n.Silent = true
			}
			s.Watcher = engine.NewWatcher(s, func(_, _ *engine.View) {})
			s.Reset()
			if c.forget {
				g := s.Group("shop", "shop")
				g.Status.EngineGroups = nil
				if err := s.Client.Status().Update(context.Background(), g); err != nil {
					t.Fatal(err)
				}
			}
			s.Settle("shop")
			s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "f"}, Spec: spec})
			if a := s.GoOn("f"); a.Status.Phase == v1alpha1.ActionFailed || !strings.Contains(a.Status.Message, c.says) {
				t.Errorf("status: %+v", a.Status)
			}
			for _, n := range s.Nodes {
				n.Silent = false
			}
			if a := s.GoOn("f"); a.Status.Phase != v1alpha1.ActionSucceeded {
				t.Errorf("status: %+v", a.Status)
			}
		})
	}
}
