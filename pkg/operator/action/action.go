package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/plan"
)

const (
	// retryInterval is when an action that waits is looked at again.
	retryInterval = 2 * time.Second
	// testRetry is the same for a test failover, whose waiting counts as recovery time.
	testRetry = 500 * time.Millisecond
)

// Reconciler carries out GroupActions. What is done is in the status before the next thing begins, so that an
// operator that was killed goes on where it was. Fields are set before the first use.
type Reconciler struct {
	client.Client
	// Live reads from the API server: records, and what a test failover makes, of which there are no caches.
	Live    client.Reader
	Watcher *engine.Watcher
	Events  events.EventRecorder
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// errWait is why an action waits.
type errWait struct{ error }

func waitFor(format string, args ...any) error { return errWait{fmt.Errorf(format, args...)} }

// Reconcile implements reconcile.Reconciler.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	action := &v1alpha1.GroupAction{}
	if err := r.Get(ctx, request.NamespacedName, action); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	ended := action.Status.Phase == v1alpha1.ActionSucceeded || action.Status.Phase == v1alpha1.ActionFailed
	left := controllerutil.ContainsFinalizer(action, v1alpha1.FinalizerTest)
	if !left && (ended || !action.DeletionTimestamp.IsZero()) {
		return ctrl.Result{}, nil
	}
	if !r.Watcher.View().Known {
		return ctrl.Result{RequeueAfter: retryInterval}, nil
	}
	// The cache can be behind what the last pass wrote, and a step that is not seen would be done again.
	if err := r.Live.Get(ctx, request.NamespacedName, action); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	run := &run{r: r, action: action, status: *action.Status.DeepCopy()}
	if left && (ended || !action.DeletionTimestamp.IsZero()) {
		return run.removeTest(ctx)
	}
	carryOut, retry := run.carryOut, retryInterval
	if action.Spec.Type == v1alpha1.ActionTestFailover {
		carryOut, retry = run.testFailover, testRetry
	}
	err := carryOut(ctx)
	var wait errWait
	switch {
	case errors.As(err, &wait):
		run.status.Message = kube.Cut(kube.Words(err.Error(), action.Namespace, action.Spec.Group))
		return ctrl.Result{RequeueAfter: retry}, run.write(ctx)
	case err != nil && run.unwritten:
		return ctrl.Result{}, err // the API server did not take the record: nothing further is done
	case err != nil:
		run.end(v1alpha1.ActionFailed, kube.Words(err.Error(), action.Namespace, action.Spec.Group))
	}
	return ctrl.Result{}, run.write(ctx)
}

// run is one pass over an action.
type run struct {
	r         *Reconciler
	action    *v1alpha1.GroupAction
	status    v1alpha1.GroupActionStatus
	unwritten bool
}

func (a *run) now() metav1.MicroTime {
	if a.r.Now != nil {
		return metav1.NewMicroTime(a.r.Now())
	}
	return metav1.NowMicro()
}

func (a *run) write(ctx context.Context) error {
	if equality.Semantic.DeepEqual(a.status, a.action.Status) {
		return nil
	}
	if err := kube.ApplyStatus(ctx, a.r.Client, "GroupAction", a.action, &a.status); err != nil {
		a.unwritten = true
		return err
	}
	before := a.action.Status.Phase
	a.action.Status = *a.status.DeepCopy()
	if a.status.Phase != before {
		kind := corev1.EventTypeNormal
		if a.status.Phase == v1alpha1.ActionFailed {
			kind = corev1.EventTypeWarning
		}
		a.r.Events.Eventf(a.action, nil, kind, string(a.action.Spec.Type)+string(a.status.Phase), string(a.action.Spec.Type),
			"%s", kube.Cut(fmt.Sprintf("%s of group %s: %s", a.action.Spec.Type, a.action.Spec.Group,
				a.status.Message)))
	}
	return nil
}

func (a *run) end(phase v1alpha1.ActionPhase, message string) {
	now := a.now()
	a.status.Phase, a.status.Message, a.status.CompletionTime = phase, kube.Cut(message), &now
}

// group reads the group of the action and its groups at the engine.
func (a *run) group(ctx context.Context) (*v1alpha1.ConsistencyGroup, []engine.Place, *plan.Input, error) {
	in, err := plan.Read(ctx, a.r.Client, a.action.Namespace)
	if err != nil {
		return nil, nil, nil, errWait{err}
	}
	in.View = a.r.Watcher.View()
	i := slices.IndexFunc(in.Groups, func(g *v1alpha1.ConsistencyGroup) bool { return g.Name == a.action.Spec.Group })
	if i < 0 {
		return nil, nil, nil, fmt.Errorf("there is no ConsistencyGroup %s in namespace %s: see kubectl -n %s get cg",
			a.action.Spec.Group, a.action.Namespace, a.action.Namespace)
	}
	g := in.Groups[i]
	places, not := in.Places(g)
	if len(not) > 0 {
		return nil, nil, nil, notAllowed(not[0].Reason, not[0].Text)
	}
	// A group that is known and that no node tells of is on a node that is silent.
	for _, known := range g.Status.EngineGroups {
		if !slices.ContainsFunc(places, func(at engine.Place) bool { return at.Group.GetName() == known.Name }) {
			return nil, nil, nil, waitFor("group %s was on node %s, which does not tell of it; waiting for the node", known.Name,
				known.Node)
		}
	}
	// A process that has just started has never heard what is on a node that is silent.
	if silent := in.View.Silent(); len(places) == 0 && len(silent) > 0 {
		return nil, nil, nil, waitFor("group %s is on no node that answers; waiting for %s", g.Name, kube.Some(silent))
	}
	if len(places) == 0 {
		return nil, nil, nil, fmt.Errorf("group %s has nothing at the engine of this site; was the action meant for the "+
			"other site?",
			g.Name)
	}
	return g, places, in, nil
}

// carryOut brings all groups at the engine to where the action wants them.
func (a *run) carryOut(ctx context.Context) error {
	d, ok := deeds[a.action.Spec.Type]
	if !ok {
		return fmt.Errorf("this version of the operator has no action %s: upgrade the chart", a.action.Spec.Type)
	}
	g, places, in, err := a.group(ctx)
	if err != nil {
		return err
	}
	if err := a.begin(ctx, g, in, places); err != nil {
		return err
	}
	for _, at := range places {
		if err := a.one(ctx, d, in, at); err != nil {
			return a.unlessLate(err)
		}
	}
	return a.unlessLate(a.succeed(ctx, d))
}

// begin records that the action has begun, unless that is recorded already. What is confirmed is what the nodes have
// now; places gets that.
func (a *run) begin(ctx context.Context, g *v1alpha1.ConsistencyGroup, in *plan.Input, places []engine.Place) error {
	if a.status.Phase == "" {
		if err := a.allowed(g, in, places); err != nil {
			return err
		}
		for i := range places {
			var err error
			if places[i], err = a.fresh(ctx, in, places[i]); err != nil {
				return err
			}
		}
		if confirm := plan.Confirmation(places); a.action.Spec.Force && a.action.Spec.Confirm != confirm {
			return fmt.Errorf("confirm is %q, and status.confirm of the group is %q: the group is not in the state that the "+
				"action was written for; look at it again (kubectl -n %s get cg %s -o yaml) and make another action",
				a.action.Spec.Confirm, confirm, g.Namespace, g.Name)
		}
		now := a.now()
		a.status.Phase, a.status.StartTime = v1alpha1.ActionRunning, &now
		targets := plan.Effective(g, in.Sites[g.Spec.RemoteSite])
		a.status.Result = &v1alpha1.ActionResult{RPOTarget: targets.RPOTarget, RTOTarget: targets.RTOTarget}
		return a.write(ctx)
	}
	return nil
}

// allowed refuses an action on a group that may not replicate from here. That does not concern a copy, nor what ends a
// failover of one: the rest of it after an interruption, and the decision about its point.
func (a *run) allowed(g *v1alpha1.ConsistencyGroup, in *plan.Input, places []engine.Place) error {
	kind := a.action.Spec.Type
	if kind == v1alpha1.ActionCommit || kind == v1alpha1.ActionRollback ||
		slices.ContainsFunc(places, func(at engine.Place) bool { return follows(at.Group) }) {
		return nil
	}
	if reason, text := in.Allowed(g); reason != "" {
		return notAllowed(reason, text)
	}
	return nil
}

func notAllowed(reason, text string) error {
	return fmt.Errorf("the condition Allowed of the group is False (%s): %s", reason, text)
}

// unlessLate makes a wait that has taken too long a failure.
func (a *run) unlessLate(err error) error {
	timeout, start := a.action.Spec.Timeout, a.status.StartTime
	var wait errWait
	if timeout == nil || start == nil || !errors.As(err, &wait) || a.now().Sub(start.Time) <= timeout.Duration {
		return err
	}
	return fmt.Errorf("not done within spec.timeout of %v; it waited for: %w", timeout.Duration, wait.error)
}

// fresh returns a group as its node has it now. What the view has can be from before another action, or from before a
// call for another shard, which may have been one for all of the group. A node that is known to be silent is not asked.
func (a *run) fresh(ctx context.Context, in *plan.Input, at engine.Place) (engine.Place, error) {
	if in.View.Nodes[at.Node].Silent() {
		return at, nil
	}
	g, err := (&engineCall{action: a, at: at}).refresh(ctx)
	if err != nil {
		return at, errWait{err}
	}
	return engine.Place{Node: at.Node, Group: g}, nil
}

// one does the deed to one group, unless it is done.
func (a *run) one(ctx context.Context, d deed, in *plan.Input, at engine.Place) error {
	at, err := a.fresh(ctx, in, at)
	if err != nil {
		return err
	}
	if plan.RoleOf(in.View, at) == v1alpha1.RoleUnknown {
		return waitFor("node %s does not answer, or cannot open group %s", at.Node, at.Group.GetName())
	}
	name := d.verb + " " + at.Group.GetName()
	step := a.step(name)
	e := &engineCall{action: a, client: in.View.Nodes[at.Node].Client, at: at, again: step != nil}
	switch {
	case step != nil && step.EndTime != nil:
		return nil
	case d.done != nil && d.done(at.Group):
		if step != nil { // killed after the call
			a.finish(step, d.is+"; the answer was not seen")
		}
		return nil
	case step == nil:
		begun := v1alpha1.ActionStep{Name: name, StartTime: a.now()}
		if d.before != nil {
			var err error
			if begun.Before, err = d.before(ctx, e); err != nil {
				return waitOrFail(err)
			}
		}
		a.status.Steps = append(a.status.Steps, begun)
		step = &a.status.Steps[len(a.status.Steps)-1]
		if err := a.write(ctx); err != nil {
			return err
		}
	}
	e.before = step.Before
	message, err := a.call(ctx, d, e)
	if err != nil {
		return err
	}
	a.finish(step, message)
	return a.write(ctx)
}

func (a *run) step(name string) *v1alpha1.ActionStep {
	for i := range a.status.Steps {
		if a.status.Steps[i].Name == name {
			return &a.status.Steps[i]
		}
	}
	return nil
}

func (a *run) finish(step *v1alpha1.ActionStep, message string) {
	now := a.now()
	step.EndTime, step.Message = &now, kube.Cut(message)
}

func (a *run) call(ctx context.Context, d deed, e *engineCall) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, engine.CallTimeout)
	defer cancel()
	message, err := d.call(ctx, e)
	if err != nil {
		return "", waitOrFail(err)
	}
	if _, err := a.r.Watcher.Refresh(ctx, e.at.Node); err != nil {
		return "", errWait{err}
	}
	return message, nil
}

// waitOrFail makes an error of the engine one that is waited for, if a repetition of the call can succeed.
func waitOrFail(err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted:
		return errWait{err}
	}
	return err
}

// succeed looks whether everything is as the action wants it, and measures what came of it.
func (a *run) succeed(ctx context.Context, d deed) error {
	_, places, _, err := a.group(ctx) // from a view that one has made new in this pass
	if err != nil {
		return err
	}
	var loss *v1alpha1.Loss
	for _, at := range places {
		if d.done != nil && !d.done(at.Group) {
			return waitFor("group %s is not %s yet", at.Group.GetName(), d.is)
		}
		if d.loss && (a.action.Spec.Force || a.action.Spec.Type != v1alpha1.ActionFailover) {
			loss = worse(loss, plan.LossOf(at.Group.GetLoss()))
		}
	}
	a.status.Result.Loss = loss
	if d.verdict != nil {
		if err := d.verdict(a); err != nil {
			return err
		}
	}
	if len(a.status.Steps) == 0 {
		a.end(v1alpha1.ActionSucceeded, "the group was "+d.is+" already")
		return nil
	}
	took := metav1.Duration{Duration: a.now().Sub(a.action.CreationTimestamp.Time).Round(time.Millisecond)}
	if a.action.Spec.Type == v1alpha1.ActionFailover {
		a.status.Result.RTO, a.status.Result.RPO = &took, &metav1.Duration{}
		if a.action.Spec.Force || a.action.Spec.RecoveryPoint != nil {
			a.status.Result.RPO = nil
			if loss != nil {
				a.status.Result.RPO = loss.Time
			}
		}
	}
	a.end(v1alpha1.ActionSucceeded, fmt.Sprintf("%s after %v", d.is, took.Duration))
	return nil
}

// worse adds up what two groups lost. What is unknown of one is unknown of both.
func worse(a, b *v1alpha1.Loss) *v1alpha1.Loss {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	sum := func(x, y *int64) *int64 {
		if x == nil || y == nil {
			return nil
		}
		n := *x + *y
		return &n
	}
	total := &v1alpha1.Loss{Exact: a.Exact && b.Exact, Writes: sum(a.Writes, b.Writes), Bytes: sum(a.Bytes, b.Bytes),
		Text: kube.Cut(a.Text + "; " + b.Text)}
	if a.Time != nil && b.Time != nil {
		total.Time = &metav1.Duration{Duration: max(a.Time.Duration, b.Time.Duration)}
	}
	return total
}
