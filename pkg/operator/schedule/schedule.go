package schedule

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/robfig/cron/v3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

// defaultKeep is how many ended actions of a schedule are kept, if the API server has not set the default.
const defaultKeep = 10

// Reconciler makes the actions of GroupActionSchedules. Fields are set before the first use.
type Reconciler struct {
	client.Client
	Events events.EventRecorder
	// Now is the clock; nil for time.Now.
	Now func() time.Time
}

// Reconcile implements reconcile.Reconciler. The name of an action follows from the time that it is due at, so that one
// that was made without a record in the status is not made twice.
func (r *Reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	s := &v1alpha1.GroupActionSchedule{}
	if err := r.Get(ctx, request.NamespacedName, s); err != nil || !s.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	now := time.Now()
	if r.Now != nil {
		now = r.Now()
	}
	actions, err := r.actionsOf(ctx, s)
	if err != nil {
		return ctrl.Result{}, err
	}
	next := v1alpha1.GroupActionScheduleStatus{ObservedGeneration: s.Generation,
		LastScheduleTime: s.Status.LastScheduleTime, LastAction: s.Status.LastAction,
		LastSuccessTime: s.Status.LastSuccessTime, LastSuccess: s.Status.LastSuccess,
		Conditions: slices.Clone(s.Status.Conditions)}
	schedule, wrong := parse(s.Spec.Schedule, s.Spec.TimeZone)
	wait := time.Duration(0)
	if wrong == nil && !s.Spec.Suspend {
		due := lastDue(schedule, dueSince(s), now)
		running := slices.ContainsFunc(actions, func(a *v1alpha1.GroupAction) bool { return !endedAction(a) })
		if !due.IsZero() && !running {
			name, err := r.make(ctx, s, due)
			if err != nil {
				return ctrl.Result{}, err
			}
			next.LastScheduleTime, next.LastAction = &metav1.Time{Time: due}, name
		}
		if at := schedule.Next(now); !at.IsZero() {
			next.NextScheduleTime = &metav1.Time{Time: at}
			wait = at.Sub(now)
		}
	}
	for _, a := range actions {
		if a.Status.Phase == v1alpha1.ActionSucceeded && a.Status.CompletionTime != nil &&
			(next.LastSuccessTime == nil || next.LastSuccessTime.Before(&metav1.Time{Time: a.Status.CompletionTime.Time})) {
			next.LastSuccessTime = &metav1.Time{Time: a.Status.CompletionTime.Truncate(time.Second)}
			next.LastSuccess = a.Name
		}
	}
	onTime := onTime(s, &next, schedule, wrong, now)
	onTime.ObservedGeneration, onTime.LastTransitionTime = s.Generation, metav1.NewTime(now.Truncate(time.Second))
	changed := meta.SetStatusCondition(&next.Conditions, onTime) && !meta.IsStatusConditionPresentAndEqual(
		s.Status.Conditions, onTime.Type, onTime.Status)
	if !equality.Semantic.DeepEqual(s.Status, next) {
		if err := kube.ApplyStatus(ctx, r.Client, "GroupActionSchedule", s, &next); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
		if changed && onTime.Status == metav1.ConditionFalse {
			r.Events.Eventf(s, nil, corev1.EventTypeWarning, onTime.Reason, "Schedule", "%s", kube.Cut(onTime.Message))
		}
	}
	if err := r.prune(ctx, s, actions, next.LastSuccess); err != nil {
		return ctrl.Result{}, err
	}
	// An hour is for what becomes overdue meanwhile.
	if wait <= 0 || wait > time.Hour {
		wait = time.Hour
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}

func endedAction(a *v1alpha1.GroupAction) bool { return a.Status.CompletionTime != nil }

// parse reads the form that CronJobs have.
func parse(schedule, zone string) (cron.Schedule, error) {
	location, err := time.LoadLocation(cmp.Or(zone, "UTC"))
	if err != nil || zone == "Local" {
		return nil, fmt.Errorf("spec.timeZone %q is not known: use a name as Europe/Berlin", zone)
	}
	parsed, err := cron.ParseStandard(schedule)
	if err != nil {
		return nil, fmt.Errorf("spec.schedule %q is wrong: %w", schedule, err)
	}
	if spec, ok := parsed.(*cron.SpecSchedule); ok {
		spec.Location = location
	}
	return parsed, nil
}

// dueSince is the time after which an action is due that was not made yet.
func dueSince(s *v1alpha1.GroupActionSchedule) time.Time {
	if s.Status.LastScheduleTime != nil {
		return s.Status.LastScheduleTime.Time
	}
	return s.CreationTimestamp.Time
}

// lastDue returns the last time of the schedule that is after since and not after now; zero for none. Earlier ones that
// were missed are passed over.
func lastDue(schedule cron.Schedule, since, now time.Time) time.Time {
	for _, back := range []time.Duration{time.Hour, 24 * time.Hour, 32 * 24 * time.Hour, 0} {
		from := now.Add(-back)
		if back == 0 || from.Before(since) {
			from = since
		}
		last := time.Time{}
		for at := schedule.Next(from); !at.IsZero() && !at.After(now); at = schedule.Next(at) {
			last = at
		}
		if !last.IsZero() || from.Equal(since) {
			return last
		}
	}
	return time.Time{}
}

func (r *Reconciler) actionsOf(ctx context.Context,
	s *v1alpha1.GroupActionSchedule) ([]*v1alpha1.GroupAction, error) {
	list := &v1alpha1.GroupActionList{}
	if err := r.List(ctx, list, client.InNamespace(s.Namespace),
		client.MatchingLabels{v1alpha1.LabelSchedule: s.Name}); err != nil {
		return nil, err
	}
	var actions []*v1alpha1.GroupAction
	for i := range list.Items {
		actions = append(actions, &list.Items[i])
	}
	slices.SortFunc(actions, func(a, b *v1alpha1.GroupAction) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return actions, nil
}

func (r *Reconciler) make(ctx context.Context, s *v1alpha1.GroupActionSchedule, due time.Time) (string, error) {
	made := &v1alpha1.GroupAction{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace,
		Name:   fmt.Sprintf("%s-%d", s.Name, due.Unix()/60),
		Labels: map[string]string{v1alpha1.LabelSchedule: s.Name}}, Spec: *s.Spec.Action.DeepCopy()}
	err := r.Create(ctx, made)
	if apierrors.IsAlreadyExists(err) {
		return made.Name, nil
	}
	if err == nil {
		klog.InfoS("Made the action of a schedule", "schedule", klog.KObj(s), "action", made.Name)
	}
	return made.Name, err
}

// prune deletes the oldest ended actions beyond those that are kept.
func (r *Reconciler) prune(ctx context.Context, s *v1alpha1.GroupActionSchedule,
	actions []*v1alpha1.GroupAction, success string) error {
	ended := slices.DeleteFunc(slices.Clone(actions), func(a *v1alpha1.GroupAction) bool {
		return !endedAction(a) || a.Name == success
	})
	keep := int(cmp.Or(s.Spec.Keep, defaultKeep))
	if success != "" {
		keep--
	}
	for _, a := range ended[:max(0, len(ended)-keep)] {
		if err := r.Delete(ctx, a, client.Preconditions{UID: &a.UID}); client.IgnoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}

// onTime says whether the last success is recent enough.
func onTime(s *v1alpha1.GroupActionSchedule, next *v1alpha1.GroupActionScheduleStatus, schedule cron.Schedule,
	wrong error, now time.Time) metav1.Condition {
	const kind = v1alpha1.ConditionOnTime
	if wrong != nil {
		return kube.Condition(kind, metav1.ConditionFalse, "InvalidSchedule", "%v", wrong)
	}
	since, what := s.CreationTimestamp.Time, "no action has succeeded"
	if next.LastSuccessTime != nil {
		since, what = next.LastSuccessTime.Time, "the last success, "+next.LastSuccess+", is of "+
			next.LastSuccessTime.UTC().Format(time.RFC3339)
	}
	// The second time of the schedule after the last success.
	until := schedule.Next(schedule.Next(since))
	if s.Spec.OverdueAfter != nil {
		until = since.Add(s.Spec.OverdueAfter.Duration)
	}
	switch {
	case !until.IsZero() && now.After(until):
		return kube.Condition(kind, metav1.ConditionFalse, "Overdue",
			"%s; see kubectl -n %s get ga -l %s=%s", what, s.Namespace,
			v1alpha1.LabelSchedule, s.Name)
	case next.LastSuccessTime == nil:
		return kube.Condition(kind, metav1.ConditionTrue, "NotDueYet", "%s yet", what)
	}
	return kube.Condition(kind, metav1.ConditionTrue, "Succeeded", "%s", what)
}
