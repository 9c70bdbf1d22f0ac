package operator

import (
	"context"
	"fmt"
	"path"
	"reflect"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// death ends an operator at one call that changes something, at the API server or the engine: before the call has an
// effect, or after it, so that its answer is lost. A nil death lets everything pass.
type death struct {
	at    int  // the number of the call, from 1
	after bool // the call has its effect

	mu   sync.Mutex
	n    int
	dead bool
	what string // the call that it died at
}

var errDead = status.Error(codes.Unavailable, "the operator was killed")

func (d *death) around(what string, do func() error) error {
	if d == nil {
		return do()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDead
	}
	d.n++
	if d.n != d.at {
		return do()
	}
	d.dead, d.what = true, what
	if d.after {
		_ = do() // the answer is lost
	}
	return errDead
}

func (d *death) isDead() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// dyingConn calls the methods of a node as a connection would.
type dyingConn struct {
	node  *fakeNode
	death *death
}

// reads change nothing: a death at one of them is the death before the next change.
var reads = []string{"ListGroups", "GroupPoints", "ListViews"}

func (c *dyingConn) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	name := path.Base(method)
	do := func() error {
		out := reflect.ValueOf(c.node).MethodByName(name).Call([]reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(args)})
		if err, _ := out[1].Interface().(error); err != nil {
			return err
		}
		proto.Merge(reply.(proto.Message), out[0].Interface().(proto.Message))
		return nil
	}
	if slices.Contains(reads, name) {
		if c.death.isDead() {
			return errDead
		}
		return do()
	}
	return c.death.around(name, do)
}

func (c *dyingConn) NewStream(context.Context, *grpc.StreamDesc, string,
	...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams")
}

// deadly is an action that is to survive the death of the operator.
type deadly struct {
	kind  v1alpha1.ActionType
	spec  func(*site, *v1alpha1.GroupActionSpec)
	setup func(*testing.T) *site
	// between is what the world does between two passes.
	between func(*site)
}

func primary(t *testing.T) *site {
	t.Helper()
	s := newSite(t, "a", "b")
	s.create(remote("site-b"), labelled("shop"))
	s.claim("shop", "one", "a")
	s.claim("shop", "two", "b")
	s.settle("shop")
	return s
}

func suspendedSite(t *testing.T) *site {
	t.Helper()
	s := primary(t)
	for _, n := range s.nodes {
		since := int64(1)
		for _, g := range n.groups {
			g.SuspendedUnixNanos, g.State = &since, sidecarpb.GroupState_GROUP_STATE_SUSPENDED
		}
	}
	return s
}

func trial(t *testing.T) *site {
	t.Helper()
	s := oneCopy(t)
	s.change(func(g *sidecarpb.GroupStatus) {
		g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_TRIAL
		g.Trial = &sidecarpb.TrialStatus{Ordinal: 42}
	})
	return s
}

func endVerify(s *site) {
	for _, n := range s.nodes {
		n.endVerify(0, "")
	}
}

var deadlyActions = []deadly{
	{kind: v1alpha1.ActionFailover, setup: secondary, spec: func(s *site, spec *v1alpha1.GroupActionSpec) {
		spec.Force, spec.Confirm = true, s.group("shop", "shop").Status.Confirm
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
			*spec = testSpec(v1alpha1.Check{Name: "orders", Image: "checker"})
		}},
}

// runDeadly carries an action out, with a death of the operator at one call, and a new operator after it. It returns
// the record, and how often each call of the engine was made with an effect.
func runDeadly(t *testing.T, d deadly, killer *death) (v1alpha1.GroupActionStatus, map[string]int) {
	t.Helper()
	s := d.setup(t)
	for _, n := range s.nodes {
		n.took()
	}
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: d.kind}
	if d.spec != nil {
		d.spec(s, &spec)
	}
	s.create(&v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "x", UID: "uid-x",
		CreationTimestamp: metav1.NewTime(s.clock)}, Spec: spec})
	s.death = killer
	action := &v1alpha1.GroupAction{}
	for pass := 0; ; pass++ {
		if pass > 60 {
			t.Fatalf("the action does not end: %+v", action.Status)
		}
		if killer != nil && killer.isDead() {
			s.death = nil
			killer = nil
			s.watcher = NewWatcher(s, func(_, _ *View) {})
			s.reset()
		}
		s.watcher.Look(context.Background())
		// An error of a pass is repeated by the work queue.
		_, _ = s.actions.Reconcile(context.Background(),
			ctrl.Request{NamespacedName: types.NamespacedName{Namespace: "shop", Name: "x"}})
		if d.between != nil {
			d.between(s)
		}
		s.get(action, "shop", "x")
		if action.Status.Phase == v1alpha1.ActionSucceeded || action.Status.Phase == v1alpha1.ActionFailed {
			break
		}
	}
	if d.kind == v1alpha1.ActionTestFailover {
		s.nothingLeft()
	}
	calls := map[string]int{}
	for _, n := range s.nodes {
		for _, call := range n.took() {
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
			counter := &death{}
			want, _ := runDeadly(t, d, counter)
			if want.Phase != v1alpha1.ActionSucceeded || len(want.Steps) == 0 || counter.n < 3 {
				t.Fatalf("undisturbed: %d calls, %+v", counter.n, want)
			}
			for at := 1; at <= counter.n; at++ {
				for _, after := range []bool{false, true} {
					killer := &death{at: at, after: after}
					got, calls := runDeadly(t, d, killer)
					where := fmt.Sprintf("killed at call %d (%s), effect %v", at, killer.what, after)
					if !killer.dead {
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
