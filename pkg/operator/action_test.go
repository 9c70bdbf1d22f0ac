package operator

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// secondary is a site with copies of two groups at the engine, on two nodes.
func secondary(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a", "b")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "one", "a")
	s.claim("shop", "two", "b")
	s.follow()
	return s
}

// oneCopy is a site with the copy of one group.
func oneCopy(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "one", "a")
	s.follow()
	return s
}

// follow makes all groups copies.
func (s *site) follow() {
	s.t.Helper()
	s.settle("shop")
	s.change(func(g *sidecarpb.GroupStatus) {
		g.Role, g.State, g.Connected = sidecarpb.Role_ROLE_SECONDARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING, false
	})
	s.settle("shop")
	if g := s.group("shop", "shop"); g.Status.Role != v1alpha1.RoleSecondary {
		s.t.Fatalf("role %s", g.Status.Role)
	}
}

// act makes an action and carries it out as far as it goes.
func (s *site) act(name string, spec v1alpha1.GroupActionSpec) *v1alpha1.GroupAction {
	s.t.Helper()
	s.create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
		CreationTimestamp: metav1.NewTime(s.clock)}, Spec: spec})
	return s.goOn(name)
}

func (s *site) goOn(name string) *v1alpha1.GroupAction {
	s.t.Helper()
	for range 4 {
		s.watcher.Look(context.Background())
		request := ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "shop", Name: name}}
		if _, err := s.actions.Reconcile(context.Background(), request); err != nil && !s.down {
			s.t.Fatal(err)
		}
	}
	action := &v1alpha1.GroupAction{}
	s.get(action, "shop", name)
	return action
}

func (s *site) promotions() (calls []string) {
	for _, n := range s.nodes {
		for _, call := range n.took() {
			if strings.HasPrefix(call, "Promote") {
				calls = append(calls, call)
			}
		}
	}
	return calls
}

func force(s *site) v1alpha1.GroupActionSpec {
	return v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover, Force: true,
		Confirm: s.group("shop", "shop").Status.Confirm}
}

func TestFailover(t *testing.T) {
	s := secondary(t)
	done := s.act("f", force(s))
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
	s.goOn("f")
	if calls := s.promotions(); len(calls) != 0 {
		t.Errorf("calls of an action that has ended: %v", calls)
	}
	s.settle("shop")
	if g := s.group("shop", "shop"); g.Status.Role != v1alpha1.RolePrimary {
		t.Errorf("role %s", g.Status.Role)
	}
}

// TestFailoverWithoutForce fails while the peer may have more, and loses nothing once the peer has demoted itself.
func TestFailoverWithoutForce(t *testing.T) {
	s := secondary(t)
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover}
	if a := s.act("early", spec); a.Status.Phase != v1alpha1.ActionFailed ||
		!strings.Contains(a.Status.Message, "has not demoted itself") {
		t.Errorf("status: %+v", a.Status)
	}
	for _, n := range s.nodes {
		for _, g := range n.groups {
			g.State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
		}
	}
	if a := s.act("planned", spec); a.Status.Phase != v1alpha1.ActionSucceeded || a.Status.Result.Loss != nil {
		t.Errorf("status: %+v", a.Status)
	}
	if a := s.act("again", spec); a.Status.Phase != v1alpha1.ActionSucceeded ||
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
	if a := s.act("stale", stale); a.Status.Phase != v1alpha1.ActionFailed || !strings.Contains(a.Status.Message,
		"confirm") {
		t.Errorf("status: %+v", a.Status)
	}
	s.act("first", spec)
	s.promotions()
	for _, n := range s.nodes {
		for _, g := range n.groups {
			g.Role = sidecarpb.Role_ROLE_SECONDARY // and back, on the new history
		}
	}
	if a := s.act("same-again", spec); a.Status.Phase != v1alpha1.ActionFailed {
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
	s.nodes["b"].fail["Promote"] = status.Error(codes.Unavailable, "no answer")
	a := s.act("f", spec)
	if a.Status.Phase != v1alpha1.ActionRunning || !strings.Contains(a.Status.Message, "no answer") {
		t.Fatalf("status: %+v", a.Status)
	}
	// The call was made, its answer was lost, and the process is another one.
	delete(s.nodes["b"].fail, "Promote")
	for _, g := range s.nodes["b"].groups {
		g.Role = sidecarpb.Role_ROLE_PRIMARY
	}
	s.reset()
	a = s.goOn("f")
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
	s.create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "f"}, Spec: spec})
	s.down = true
	s.goOn("f")
	if calls := s.promotions(); len(calls) != 0 {
		t.Errorf("calls without a record: %v", calls)
	}
	s.down = false
	if a := s.goOn("f"); a.Status.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("status: %+v", a.Status)
	}
}

func TestActionOnNothing(t *testing.T) {
	s := secondary(t)
	for name, spec := range map[string]v1alpha1.GroupActionSpec{
		"unknown": {Group: "none", Type: v1alpha1.ActionFailover},
	} {
		if a := s.act(name, spec); a.Status.Phase != v1alpha1.ActionFailed || !strings.Contains(a.Status.Message, "none") {
			t.Errorf("%s: %+v", name, a.Status)
		}
	}
	// A node that had a group and is silent from the start of the process is waited for.
	s.nodes["b"].silent = true
	s.watcher = NewWatcher(s, func(_, _ *View) {})
	s.reset()
	if a := s.act("silent", force(s)); a.Status.Phase != "" || !strings.Contains(a.Status.Message, "does not tell of it") {
		t.Errorf("%+v", a.Status)
	}
}

func TestSiteStatus(t *testing.T) {
	s := secondary(t)
	site := remote("site-b")
	status := SiteStatus(site, []v1alpha1.ConsistencyGroup{*s.group("shop", "shop")}, s.clock)
	if status.Groups != 1 || status.Conditions[0].Status != metav1.ConditionFalse ||
		!strings.Contains(status.Conditions[0].Message, "shop/shop") || status.MaxLag == nil {
		t.Errorf("status: %+v", status)
	}
	// Conditions of others are left to them.
	site.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionClaimsPresent}}
	if status = SiteStatus(site, nil, s.clock); len(status.Conditions) != 1 {
		t.Errorf("conditions: %+v", status.Conditions)
	}
	if status = SiteStatus(site, nil, s.clock); status.Groups != 0 ||
		status.Conditions[0].Status != metav1.ConditionUnknown {
		t.Errorf("status: %+v", status)
	}
}

func TestCoverage(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"), namespace("bare", nil))
	s.claim("shop", "in", "a")
	s.claim("shop", "out", "a", label(v1alpha1.LabelReplicate, "false"))
	s.claim("bare", "lonely", "a")
	plain := s.claim("shop", "plain", "a")
	s.nodes["a"].replicable = func(id string) bool { return id != plain }
	coverage := func() map[string]string {
		t.Helper()
		all, err := CoverageOf(context.Background(), s.client, "")
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
	want("shop/in", ReasonNoGroup) // the operator has not come yet
	s.settle("shop")
	s.settle("bare")
	want("shop/out", ReasonOptedOut)
	want("bare/lonely", ReasonNoGroup)
	want("shop/plain", "NeedsRestage")
	want("shop/in", ReasonGroupNotReady) // as its group is not ready
	claim := s.group("shop", "shop").Status.Members
	if len(claim) != 2 {
		t.Fatalf("members: %+v", claim)
	}
	s.nodes["a"].replicable = nil
	s.reset()
	s.settle("shop")
	want("shop/in", "")
	want("shop/plain", "")
}

// TestSuspendResumeDemote: what is asked for at the primary, and that a group that takes no writes gets no members.
func TestSuspendResumeDemote(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	one := s.claim("shop", "one", "a")
	s.settle("shop")
	state := func() string {
		s.settle("shop")
		return s.group("shop", "shop").Status.State
	}
	for _, step := range []struct {
		kind  v1alpha1.ActionType
		state string
	}{{v1alpha1.ActionSuspend, "Suspended"}, {v1alpha1.ActionResume, "Streaming"}, {v1alpha1.ActionDemote, "Demoted"}} {
		a := s.act(strings.ToLower(string(step.kind)), v1alpha1.GroupActionSpec{Group: "shop", Type: step.kind})
		if a.Status.Phase != v1alpha1.ActionSucceeded || len(a.Status.Steps) != 1 || a.Status.Result.RTO != nil {
			t.Errorf("%s: %+v", step.kind, a.Status)
		}
		if got := state(); got != step.state {
			t.Errorf("after %s the state is %s", step.kind, got)
		}
	}
	s.claim("shop", "two", "a")
	s.nodes["a"].took()
	s.settle("shop")
	wantEngine(t, s, map[string][]string{"a/shop": {one}})
	if calls := s.nodes["a"].took(); len(calls) > 0 {
		t.Errorf("calls for a demoted group: %v", calls)
	}
	wantCondition(t, s.group("shop", "shop"), v1alpha1.ConditionMembersReady, metav1.ConditionFalse, "Pending")
}

// TestRelocateAndYield: both end when this site follows the other one.
func TestRelocateAndYield(t *testing.T) {
	s := newSite(t, "a")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "one", "a")
	s.settle("shop")
	a := s.act("move", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionRelocate})
	if a.Status.Phase != v1alpha1.ActionSucceeded || !strings.Contains(a.Status.Steps[0].Message, "1.5s") {
		t.Errorf("relocate: %+v", a.Status)
	}
	role := func(r sidecarpb.Role) {
		for _, g := range s.nodes["a"].groups {
			g.Role = r
		}
	}
	role(sidecarpb.Role_ROLE_PRIMARY)
	s.nodes["a"].took()
	a = s.act("yield", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionYield})
	if a.Status.Phase != v1alpha1.ActionRunning || !strings.Contains(a.Status.Steps[0].Message, "3 writes") {
		t.Errorf("yield: %+v", a.Status)
	}
	role(sidecarpb.Role_ROLE_SECONDARY)
	if a = s.goOn("yield"); a.Status.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("yield: %+v", a.Status)
	}
	yields := 0
	for _, call := range s.nodes["a"].took() {
		if strings.HasPrefix(call, "Yield") {
			yields++
		}
	}
	if yields != 1 {
		t.Errorf("%d calls of Yield", yields)
	}
}
