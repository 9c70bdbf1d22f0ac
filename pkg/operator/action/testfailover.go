package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/drill"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/operator/plan"
)

// Steps of a test failover. Those of views and checks have a name behind them.
const (
	stepView      = "View "
	stepNamespace = "Namespace "
	stepClaims    = "Claims"
	stepCheck     = "Check "
	stepRemove    = "Remove"
)

// testView is the name of the views of a test: that of the action, so that no other call makes one of that name.
func testView(uid types.UID) string {
	return "test-" + strings.ToLower(strings.ReplaceAll(fmt.Sprintf("%.13s", uid), "_", "-"))
}

// testFailover opens a view of each group, shows its volumes as claims of a namespace of its own, runs the checks, and
// removes everything. Whatever goes wrong, everything is removed before the action ends; only nodes of this site are
// waited for.
func (a *run) testFailover(ctx context.Context) error {
	namespace, err := drill.Namespace(a.action)
	if err != nil {
		return err
	}
	if a.step(stepRemove) == nil && !slices.ContainsFunc(a.status.Steps, failed) {
		err := a.unlessLate(a.try(ctx, namespace))
		var wait errWait
		switch {
		case errors.As(err, &wait), err != nil && a.unwritten:
			return err
		case err != nil && len(a.status.Steps) == 0:
			return err // nothing was made
		case err != nil:
			a.fail(err)
		}
	}
	if err := a.do(ctx, stepRemove, func(*v1alpha1.ActionStep) (string, error) {
		return "namespace and views are gone; the copy is as it was", a.remove(ctx, namespace)
	}); err != nil {
		return err
	}
	if err := a.finalizer(ctx, false); err != nil {
		return errWait{err}
	}
	if i := slices.IndexFunc(a.status.Steps, failed); i >= 0 {
		return fmt.Errorf("%s: %s", a.status.Steps[i].Name, a.status.Steps[i].Message)
	}
	a.end(v1alpha1.ActionSucceeded, fmt.Sprintf("the copy could be used after %v",
		a.status.Result.RTO.Duration.Round(time.Millisecond)))
	return nil
}

func failed(s v1alpha1.ActionStep) bool { return s.Failed }

// try does everything but the removal.
func (a *run) try(ctx context.Context, namespace string) error {
	g, places, in, err := a.group(ctx)
	if err != nil {
		return err
	}
	if err := a.begin(ctx, g, in, places); err != nil {
		return err
	}
	if !controllerutil.ContainsFinalizer(a.action, v1alpha1.FinalizerTest) {
		if err := a.finalizer(ctx, true); err != nil {
			return errWait{err}
		}
	}
	var volumes []drill.Volume
	for _, at := range places {
		view := (*sidecarpb.View)(nil)
		err := a.do(ctx, stepView+at.Group.GetName(), func(step *v1alpha1.ActionStep) (message string, err error) {
			view, message, err = a.openView(ctx, in, at)
			return message, err
		})
		if err == nil && view == nil { // by an earlier pass
			view, err = a.findView(ctx, in, at)
		}
		if err != nil {
			return err
		}
		for _, v := range view.GetVolumes() {
			volumes = append(volumes, drill.VolumeOf(at.Node, v, memberOf(at.Group, v.GetVolumeId())))
		}
	}
	if err := a.do(ctx, stepNamespace+namespace, func(*v1alpha1.ActionStep) (string, error) {
		return "made", a.makeNamespace(ctx, namespace, in.Namespace)
	}); err != nil {
		return err
	}
	if err := a.do(ctx, stepClaims, func(*v1alpha1.ActionStep) (string, error) {
		message, err := a.makeClaims(ctx, namespace, volumes)
		if err == nil {
			a.usable()
		}
		return message, err
	}); err != nil {
		return err
	}
	test := a.test()
	for i := range test.Checks {
		if err := a.do(ctx, stepCheck+test.Checks[i].Name, func(*v1alpha1.ActionStep) (string, error) {
			message, err := a.check(ctx, namespace, &test.Checks[i], volumes)
			if err == nil {
				a.usable()
			}
			return message, err
		}); err != nil {
			return err
		}
	}
	if test.KeepFor == nil || test.KeepFor.Duration <= 0 {
		return nil
	}
	return a.do(ctx, v1alpha1.StepKeep, func(step *v1alpha1.ActionStep) (string, error) {
		until := step.StartTime.Add(test.KeepFor.Duration)
		if _, end := a.action.Annotations[v1alpha1.AnnotationEndTest]; !end && a.now().Time.Before(until) {
			return "", waitFor("namespace %s can be looked at until %s; to end it: kubectl -n %s annotate ga %s %s=true",
				namespace, until.UTC().Format(time.RFC3339), a.action.Namespace, a.action.Name, v1alpha1.AnnotationEndTest)
		}
		return "ended", nil
	})
}

func (a *run) test() *v1alpha1.TestFailover {
	if a.action.Spec.Test == nil {
		return &v1alpha1.TestFailover{}
	}
	return a.action.Spec.Test
}

// do does one step, unless it is done. The step is in the record before f is called.
func (a *run) do(ctx context.Context, name string, f func(*v1alpha1.ActionStep) (string, error)) error {
	step := a.step(name)
	if step != nil && step.EndTime != nil {
		return nil
	}
	if step == nil {
		a.status.Steps = append(a.status.Steps, v1alpha1.ActionStep{Name: name, StartTime: a.now()})
		step = &a.status.Steps[len(a.status.Steps)-1]
		if err := a.write(ctx); err != nil {
			return err
		}
	}
	message, err := f(step)
	if err != nil {
		return waitOrFail(err)
	}
	a.finish(step, message)
	return a.write(ctx)
}

// fail marks the step that runs as failed. There is no recovery time then.
func (a *run) fail(err error) {
	a.status.Result.RTO = nil
	for i := range a.status.Steps {
		if step := &a.status.Steps[i]; step.EndTime == nil {
			a.finish(step, err.Error())
			step.Failed = true
			return
		}
	}
	now := a.now()
	a.status.Steps = append(a.status.Steps, v1alpha1.ActionStep{Name: "Test", StartTime: now, EndTime: &now,
		Message: kube.Cut(err.Error()), Failed: true})
}

// usable measures the recovery time: until the last step that shows that the copy can be used.
func (a *run) usable() {
	a.status.Result.RTO = &metav1.Duration{
		Duration: a.now().Sub(a.action.CreationTimestamp.Time).Round(time.Millisecond)}
}

// openView opens the view of one group, and measures how old what it lacks is.
func (a *run) openView(ctx context.Context, in *plan.Input, at engine.Place) (*sidecarpb.View, string, error) {
	ctx, cancel := context.WithTimeout(ctx, engine.CallTimeout)
	defer cancel()
	request := &sidecarpb.CreateViewRequest{Group: at.Group.GetName(), Name: testView(a.action.UID), Writable: true,
		Test: true}
	point := a.action.Spec.RecoveryPoint
	switch {
	case point == nil:
	case point.Ordinal != nil:
		request.Point = &sidecarpb.CreateViewRequest_Ordinal{Ordinal: uint64(max(*point.Ordinal, 0))}
	case point.Time != nil:
		request.Point = &sidecarpb.CreateViewRequest_AtUnixNanos{AtUnixNanos: point.Time.UnixNano()}
	case point.Bookmark != nil:
		request.Point = &sidecarpb.CreateViewRequest_Bookmark{Bookmark: *point.Bookmark}
	}
	client := in.View.Nodes[at.Node].Client
	if client == nil {
		return nil, "", waitFor("node %s cannot be reached", at.Node)
	}
	view, err := client.CreateView(ctx, request)
	if status.Code(err) == codes.AlreadyExists { // by an earlier pass, whose answer was not seen
		view, err = a.findView(ctx, in, at)
	}
	if err != nil {
		return nil, "", err
	}
	lag := at.Group.LagSeconds
	if fresh, err := (&engineCall{action: a, client: client, at: at}).refresh(ctx); err == nil {
		lag = fresh.LagSeconds
	}
	a.measureRPO(view, lag)
	a.point(at.Group.GetName(), view.GetOrdinal(), view.PointUnixNanos)
	return view, fmt.Sprintf("%s at ordinal %d, %s copied", words.Count(len(view.GetVolumes()), "volume"),
		view.GetOrdinal(), words.Count(view.GetUsedBytes(), "byte")), nil
}

// measureRPO keeps the worst of the groups'. What is unknown of one is unknown of all.
func (a *run) measureRPO(view *sidecarpb.View, lagSeconds *float64) {
	first := len(a.status.Result.Points) == 0
	var rpo *metav1.Duration
	switch {
	case a.action.Spec.RecoveryPoint != nil && view.PointUnixNanos != nil:
		created := time.Unix(0, view.GetCreatedUnixNanos())
		rpo = &metav1.Duration{Duration: created.Sub(time.Unix(0, view.GetPointUnixNanos())).Round(time.Millisecond)}
	case a.action.Spec.RecoveryPoint == nil && lagSeconds != nil:
		seconds := math.Ceil(min(*lagSeconds, 1e9)*1000) / 1000
		rpo = &metav1.Duration{Duration: time.Duration(seconds * float64(time.Second))}
	}
	worst := a.status.Result.RPO
	if first || rpo == nil || worst != nil && worst.Duration < rpo.Duration {
		a.status.Result.RPO = rpo
	}
}

// findView returns the view that an earlier pass has opened.
func (a *run) findView(ctx context.Context, in *plan.Input, at engine.Place) (*sidecarpb.View, error) {
	client := in.View.Nodes[at.Node].Client
	if client == nil {
		return nil, waitFor("node %s cannot be reached", at.Node)
	}
	views, err := client.ListViews(ctx, &sidecarpb.ListViewsRequest{Group: at.Group.GetName()})
	if err != nil {
		return nil, waitOrFail(err)
	}
	for _, v := range views.GetViews() {
		switch {
		case v.GetName() != testView(a.action.UID):
		case v.GetFailed() != "":
			return nil, fmt.Errorf("view %s of group %s shows nothing any more: %s", v.GetName(), v.GetGroup(), v.GetFailed())
		default:
			return v, nil
		}
	}
	return nil, fmt.Errorf("view %s of group %s was deleted by another one", testView(a.action.UID), at.Group.GetName())
}

func memberOf(g *sidecarpb.GroupStatus, volume string) *sidecarpb.VolumeStatus {
	for _, v := range g.GetVolumes() {
		if v.GetVolumeId() == volume {
			return v
		}
	}
	return nil
}

// apiError makes an error of the API server one that is waited for, unless a repetition cannot succeed.
func apiError(err error) error {
	if err == nil || apierrors.IsInvalid(err) || apierrors.IsForbidden(err) {
		return err
	}
	return errWait{err}
}

// mine reports whether an object is of this action.
func (a *run) mine(o client.Object) bool {
	return o.GetLabels()[v1alpha1.LabelTestAction] == string(a.action.UID)
}

// make makes an object of the test, unless it is there. An object of that name that another one made is an error. there
// gets what is there.
func (a *run) make(ctx context.Context, o, there client.Object) error {
	key := client.ObjectKeyFromObject(o)
	kind := o.GetObjectKind().GroupVersionKind().Kind
	err := a.r.Live.Get(ctx, key, there)
	if apierrors.IsNotFound(err) {
		if err = a.r.Create(ctx, o); err == nil || !apierrors.IsAlreadyExists(err) {
			return apiError(err)
		}
		err = a.r.Live.Get(ctx, key, there)
	}
	if err != nil {
		return apiError(err)
	}
	if !a.mine(there) {
		return fmt.Errorf("%s %s is there already and is not of this test; name another namespace in spec.test.namespace, "+
			"or delete it", kind, strings.TrimPrefix(key.String(), "/"))
	}
	return nil
}

func (a *run) makeNamespace(ctx context.Context, name string, tried *corev1.Namespace) error {
	if err := a.make(ctx, drill.NamespaceObject(name, a.action, tried), &corev1.Namespace{}); err != nil {
		return err
	}
	if a.test().Network == v1alpha1.TestNetworkOpen {
		return nil
	}
	policy := drill.DenyAll(name, a.action)
	return a.make(ctx, policy, policy.DeepCopy())
}

// makeClaims makes volumes and claims, and waits until these are bound.
func (a *run) makeClaims(ctx context.Context, namespace string, volumes []drill.Volume) (string, error) {
	var waiting []string
	seen := map[string]bool{}
	for i := range volumes {
		v := &volumes[i]
		if seen[v.Claim] {
			return "", fmt.Errorf("two volumes of the group have a claim %s", v.Claim)
		}
		seen[v.Claim] = true
		if err := a.make(ctx, v.PersistentVolume(namespace, a.action), &corev1.PersistentVolume{}); err != nil {
			return "", err
		}
		claim := &corev1.PersistentVolumeClaim{}
		if err := a.make(ctx, v.PersistentVolumeClaim(namespace, a.action), claim); err != nil {
			return "", err
		}
		switch claim.Status.Phase {
		case corev1.ClaimBound:
		case corev1.ClaimLost:
			return "", fmt.Errorf("claim %s/%s has lost its volume", namespace, v.Claim)
		default:
			waiting = append(waiting, v.Claim)
		}
	}
	if len(waiting) > 0 {
		return "", waitFor("claims are not bound yet: %s", kube.Some(waiting))
	}
	return fmt.Sprintf("%s %s bound", words.Count(len(volumes), "claim"),
		words.Choose(len(volumes), "is", "are")), nil
}

// check runs a check, and waits for its end.
func (a *run) check(ctx context.Context, namespace string, check *v1alpha1.Check,
	volumes []drill.Volume) (string, error) {
	job := &batchv1.Job{}
	if err := a.make(ctx, drill.Job(namespace, a.action, check, volumes), job); err != nil {
		return "", err
	}
	pods := &corev1.PodList{}
	if err := a.r.Live.List(ctx, pods, client.InNamespace(namespace),
		client.MatchingLabels{batchv1.JobNameLabel: drill.JobName(check)}); err != nil {
		return "", apiError(err)
	}
	said, waiting := podText(pods)
	for _, c := range job.Status.Conditions {
		switch {
		case c.Status != corev1.ConditionTrue:
		case c.Type == batchv1.JobComplete:
			return cmp.Or(said, "succeeded"), nil
		case c.Type == batchv1.JobFailed:
			return "", fmt.Errorf("check %s failed (%s): %s", check.Name, c.Reason, cmp.Or(said, c.Message))
		}
	}
	return "", waitFor("check %s: %s", check.Name, waiting)
}

// podText returns what the container of a check said at its end or why it does not start, and what is waited for.
func podText(pods *corev1.PodList) (said, waiting string) {
	for i := range pods.Items {
		for _, c := range pods.Items[i].Status.ContainerStatuses {
			switch {
			case c.State.Terminated != nil:
				t := c.State.Terminated
				text := strings.TrimSpace(t.Message)
				if t.ExitCode != 0 {
					text = strings.TrimSpace(fmt.Sprintf("exit status %d; %s", t.ExitCode, text))
				}
				return kube.Cut(text), "its pod has ended"
			case c.State.Running != nil:
				return "", "it runs"
			case c.State.Waiting != nil && c.State.Waiting.Reason != "":
				text := kube.Cut(strings.TrimSuffix(c.State.Waiting.Reason+": "+c.State.Waiting.Message, ": "))
				return text, "its pod does not run yet: " + text
			}
		}
		for _, c := range pods.Items[i].Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				text := kube.Cut(c.Reason + ": " + c.Message)
				return text, "its pod does not run yet: " + text
			}
		}
	}
	return "", "its pod has not started"
}
