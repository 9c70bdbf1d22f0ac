package action_test

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// actBlind carries an action out without a look at the engine: the view is as it was before.
func (s *site) actBlind(name string, spec v1alpha1.GroupActionSpec) *v1alpha1.GroupAction {
	s.T.Helper()
	s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name,
		CreationTimestamp: metav1.NewTime(s.Clock)}, Spec: spec})
	key := types.NamespacedName{Namespace: "shop", Name: name}
	for range 4 {
		if _, err := s.Actions.Reconcile(context.Background(), ctrl.Request{NamespacedName: key}); err != nil {
			s.T.Fatal(err)
		}
	}
	done := &v1alpha1.GroupAction{}
	s.Get(done, "shop", name)
	return done
}

// TestViewIsBehind: whether there is something left to do is not judged on a view that is behind the engine. Otherwise
// an action would have succeeded without a call.
func TestViewIsBehind(t *testing.T) {
	since := int64(1)
	const primaryRole, copyRole = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.Role_ROLE_SECONDARY
	inTrial := func(g *sidecarpb.GroupStatus) {
		g.Role, g.State, g.Trial = primaryRole, sidecarpb.GroupState_GROUP_STATE_TRIAL, &sidecarpb.TrialStatus{Ordinal: 42}
	}
	for _, tc := range []struct {
		kind  v1alpha1.ActionType
		seen  func(*testing.T) *site            // what the view shows
		is    func(*sidecarpb.GroupStatus)      // what the engine has
		verb  string                            // the call
		wants func(*sidecarpb.GroupStatus) bool // what the call leaves
	}{
		{v1alpha1.ActionResume, primary, func(g *sidecarpb.GroupStatus) { g.SuspendedUnixNanos = &since }, "Resume",
			func(g *sidecarpb.GroupStatus) bool { return g.SuspendedUnixNanos == nil }},
		{v1alpha1.ActionSuspend, suspendedSite, func(g *sidecarpb.GroupStatus) { g.SuspendedUnixNanos = nil }, "Suspend",
			func(g *sidecarpb.GroupStatus) bool { return g.SuspendedUnixNanos != nil }},
		{v1alpha1.ActionDemote, secondary, func(g *sidecarpb.GroupStatus) { g.Role = primaryRole }, "Demote",
			func(g *sidecarpb.GroupStatus) bool { return g.State == sidecarpb.GroupState_GROUP_STATE_DEMOTED }},
		{v1alpha1.ActionFailover, primary, func(g *sidecarpb.GroupStatus) {
			g.Role, g.State = copyRole, sidecarpb.GroupState_GROUP_STATE_DEMOTED
		}, "Promote", func(g *sidecarpb.GroupStatus) bool { return g.Role == primaryRole }},
		{v1alpha1.ActionCommit, secondary, inTrial, "CommitTrial",
			func(g *sidecarpb.GroupStatus) bool { return g.Trial == nil && g.Role == primaryRole }},
		{v1alpha1.ActionRollback, secondary, inTrial, "RollBackTrial",
			func(g *sidecarpb.GroupStatus) bool { return g.Trial == nil && g.Role == copyRole }},
		{v1alpha1.ActionRelocate, secondary, func(g *sidecarpb.GroupStatus) { g.Role = primaryRole }, "Relocate",
			func(g *sidecarpb.GroupStatus) bool { return g.Role == copyRole }},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			s := tc.seen(t)
			s.Watcher.Look(context.Background())
			s.Change(tc.is)
			for _, n := range s.Nodes {
				n.Took()
			}
			a := s.actBlind("x", v1alpha1.GroupActionSpec{Group: "shop", Type: tc.kind})
			wantAction(t, a, v1alpha1.ActionSucceeded)
			if len(a.Status.Steps) != len(s.Nodes) {
				t.Errorf("message %q, steps %+v", a.Status.Message, a.Status.Steps)
			}
			for name, n := range s.Nodes {
				if calls := n.Took(); len(calls) != 1 || !strings.HasPrefix(calls[0], tc.verb+" ") {
					t.Errorf("calls of node %s: %q, want one of %s", name, calls, tc.verb)
				}
			}
			s.Change(func(g *sidecarpb.GroupStatus) {
				if !tc.wants(g) {
					t.Errorf("afterwards the engine has %v", g)
				}
			})
		})
	}
}

// TestConfirmIsJudgedOnTheEngine: a forced action that was written for the state that the view still shows is refused.
func TestConfirmIsJudgedOnTheEngine(t *testing.T) {
	s := secondary(t)
	spec := force(s)
	s.Change(func(g *sidecarpb.GroupStatus) { g.Timeline += "'" })
	s.promotions()
	wantAction(t, s.actBlind("stale", spec), v1alpha1.ActionFailed, "confirm")
	if calls := s.promotions(); len(calls) > 0 {
		t.Errorf("calls: %v", calls)
	}
}
