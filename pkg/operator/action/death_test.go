package action_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// deadly is an action that is to survive the death of the operator.
type deadly struct {
	kind  v1alpha1.ActionType
	spec  func(*site, *v1alpha1.GroupActionSpec)
	setup func(*testing.T) *site
	// between is what the world does between two passes.
	between func(*site)
}

func suspendedSite(t *testing.T) *site {
	t.Helper()
	s := primary(t)
	for _, n := range s.Nodes {
		since := int64(1)
		for _, g := range n.Groups {
			g.SuspendedUnixNanos, g.State = &since, sidecarpb.GroupState_GROUP_STATE_SUSPENDED
		}
	}
	return s
}

func trial(t *testing.T) *site {
	t.Helper()
	s := oneCopy(t)
	s.Change(func(g *sidecarpb.GroupStatus) {
		g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_TRIAL
		g.Trial = &sidecarpb.TrialStatus{Ordinal: 42}
	})
	return s
}

func endVerify(s *site) {
	for _, n := range s.Nodes {
		n.EndVerify(0, "")
	}
}

var deadlyActions = []deadly{
	{kind: v1alpha1.ActionFailover, setup: secondary, spec: func(s *site, spec *v1alpha1.GroupActionSpec) {
		spec.Force, spec.Confirm = true, s.Group("shop", "shop").Status.Confirm
	}},
	{kind: v1alpha1.ActionDemote, setup: primary},
	{kind: v1alpha1.ActionSuspend, setup: primary},
	{kind: v1alpha1.ActionResume, setup: suspendedSite},
	{kind: v1alpha1.ActionRelocate, setup: primary},
	{kind: v1alpha1.ActionReprotect, setup: suspendedSite},
	{kind: v1alpha1.ActionVerify, setup: primary, between: endVerify},
	{kind: v1alpha1.ActionBookmark, setup: primary,
		spec: func(_ *site, spec *v1alpha1.GroupActionSpec) { spec.Bookmark = "before-upgrade" }},
	{kind: v1alpha1.ActionCommit, setup: trial},
	{kind: v1alpha1.ActionRollback, setup: trial},
	{kind: v1alpha1.ActionTestFailover, setup: oneCopy, between: (*site).cluster,
		spec: func(_ *site, spec *v1alpha1.GroupActionSpec) {
			*spec = operatortest.TestFailover(v1alpha1.Check{Name: "orders", Image: "checker"})
		}},
}

// runDeadly carries an action out, with a death of the operator at one call, and a new operator after it. It returns
// the record, and how often each call of the engine was made with an effect.
func runDeadly(t *testing.T, d deadly, killer *operatortest.Death) (v1alpha1.GroupActionStatus, map[string]int) {
	t.Helper()
	s := d.setup(t)
	for _, n := range s.Nodes {
		n.Took()
	}
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: d.kind}
	if d.spec != nil {
		d.spec(s, &spec)
	}
	s.Create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", UID: "uid-x",
		CreationTimestamp: metav1.NewTime(s.Clock)}, Spec: spec})
	s.Death = killer
	action := &v1alpha1.GroupAction{}
	for pass := 0; ; pass++ {
		if pass > 60 {
			t.Fatalf("the action does not end: %+v", action.Status)
		}
		if killer != nil && killer.IsDead() {
			s.Death = nil
			killer = nil
			s.Watcher = engine.NewWatcher(s, func(_, _ *engine.View) {})
			s.Reset()
		}
		s.Watcher.Look(context.Background())
		// An error of a pass is repeated by the work queue.
		_, _ = s.Actions.Reconcile(context.Background(),
			ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "shop", Name: "x"}})
		if d.between != nil {
			d.between(s)
		}
		s.Get(action, "shop", "x")
		if action.Status.Phase == v1alpha1.ActionSucceeded || action.Status.Phase == v1alpha1.ActionFailed {
			break
		}
	}
	if d.kind == v1alpha1.ActionTestFailover {
		s.nothingLeft()
	}
	calls := map[string]int{}
	for _, n := range s.Nodes {
		for _, call := range n.Took() {
			calls[call]++
		}
	}
	return action.Status, calls
}

// TestActionsSurviveDeath kills the operator at each call that an action makes, before it has an effect and after it.
// A new operator ends the action as the first one would have: the same steps, each ended, and nothing done twice.
func TestActionsSurviveDeath(t *testing.T) {
	for _, d := range deadlyActions {
		t.Run(string(d.kind), func(t *testing.T) {
			counter := &operatortest.Death{}
			want, _ := runDeadly(t, d, counter)
			most, _ := counter.Calls()
			if want.Phase != v1alpha1.ActionSucceeded || len(want.Steps) == 0 || most < 3 {
				t.Fatalf("undisturbed: %d calls, %+v", most, want)
			}
			for at := 1; at <= most; at++ {
				for _, after := range []bool{false, true} {
					killer := &operatortest.Death{At: at, After: after}
					got, calls := runDeadly(t, d, killer)
					_, what := killer.Calls()
					where := fmt.Sprintf("killed at call %d (%s), effect %v", at, what, after)
					if !killer.IsDead() {
						t.Errorf("%s: not killed", where)
					}
					if got.Phase != v1alpha1.ActionSucceeded || !slices.Equal(stepNames(got), stepNames(want)) {
						t.Errorf("%s: %s %q, steps %q, want %q", where, got.Phase, got.Message, stepNames(got), stepNames(want))
					}
					for _, step := range got.Steps {
						if step.EndTime == nil || step.Message == "" {
							t.Errorf("%s: step %+v", where, step)
						}
					}
					if !reflect.DeepEqual(got.Result.Points, want.Result.Points) {
						t.Errorf("%s: points %+v, want %+v", where, got.Result.Points, want.Result.Points)
					}
					for call, n := range calls {
						// A call whose answer was lost is made again, unless the engine shows its effect.
						if n > 2 || n == 2 && !mayRepeat(d.kind) {
							t.Errorf("%s: %d times %s", where, n, call)
						}
					}
				}
			}
		})
	}
}

// mayRepeat: a repetition of the call has no effect.
func mayRepeat(kind v1alpha1.ActionType) bool {
	return kind == v1alpha1.ActionBookmark || kind == v1alpha1.ActionTestFailover
}

func stepNames(s v1alpha1.GroupActionStatus) (names []string) {
	for _, step := range s.Steps {
		names = append(names, step.Name)
	}
	return names
}
