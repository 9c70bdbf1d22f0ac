package schedule

import (
	"context"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

func TestMain(m *testing.M) { operatortest.Main(m) }

type site struct{ *operatortest.Site }

// scheduled is a site with a schedule of drills, every day at three o'clock in Berlin. The clock is at 03:04:05 UTC of
// the 2nd of January.
func scheduled(t *testing.T, change ...func(*v1alpha1.GroupActionSchedule)) *site {
	t.Helper()
	s := &site{operatortest.New(t, func(*operatortest.Site) {}, "a")}
	schedule := &v1alpha1.GroupActionSchedule{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "daily",
		CreationTimestamp: metav1.NewTime(s.Clock)}, Spec: v1alpha1.GroupActionScheduleSpec{Schedule: "0 3 * * *",
		TimeZone: "Europe/Berlin", Keep: 3, Action: operatortest.TestFailover()}}
	for _, c := range change {
		c(schedule)
	}
	s.Create(schedule)
	return s
}

func (s *site) reconcileSchedule() (*v1alpha1.GroupActionSchedule, []v1alpha1.GroupAction, time.Duration) {
	s.T.Helper()
	r := &Reconciler{Client: s.Client, Events: s.Events, Now: s.Now}
	key := client.ObjectKey{Namespace: "shop", Name: "daily"}
	result, err := r.Reconcile(context.Background(), ctrl.Request{NamespacedName: key})
	if err != nil {
		s.T.Fatal(err)
	}
	schedule, actions := &v1alpha1.GroupActionSchedule{}, &v1alpha1.GroupActionList{}
	s.Get(schedule, key.Namespace, key.Name)
	if err := s.Client.List(context.Background(), actions); err != nil {
		s.T.Fatal(err)
	}
	return schedule, actions.Items, result.RequeueAfter
}

// end ends an action at the time of the clock.
func (s *site) end(a v1alpha1.GroupAction, phase v1alpha1.ActionPhase) {
	s.T.Helper()
	now := metav1.NewMicroTime(s.Clock)
	a.Status.Phase, a.Status.CompletionTime = phase, &now
	if err := s.Client.Status().Update(context.Background(), &a); err != nil {
		s.T.Fatal(err)
	}
}

// TestSchedule: an action at each time of the schedule, one at a time, once; the records that are kept; and whether the
// last success is recent enough.
func TestSchedule(t *testing.T) {
	s := scheduled(t)
	at := time.Date(2026, 1, 3, 2, 0, 0, 0, time.UTC)
	schedule, actions, wait := s.reconcileSchedule()
	if len(actions) > 0 || !schedule.Status.NextScheduleTime.Time.Equal(at) || wait != time.Hour {
		t.Fatalf("before its time: %d actions, %+v, %v", len(actions), schedule.Status, wait)
	}
	s.Clock = at.Add(time.Second)
	s.reconcileSchedule()
	schedule, actions, _ = s.reconcileSchedule()
	if len(actions) != 1 || actions[0].Spec.Type != v1alpha1.ActionTestFailover ||
		schedule.Status.LastAction != actions[0].Name || !schedule.Status.LastScheduleTime.Time.Equal(at) {
		t.Fatalf("at its time: %+v, %+v", actions, schedule.Status)
	}
	// The record in the status is lost: the action is not made again.
	lost := schedule.DeepCopy()
	lost.Status = v1alpha1.GroupActionScheduleStatus{}
	if err := s.Client.Status().Update(context.Background(), lost); err != nil {
		t.Fatal(err)
	}
	if _, actions, _ = s.reconcileSchedule(); len(actions) != 1 {
		t.Fatalf("made twice: %d", len(actions))
	}
	// The next time comes while it runs; two days later it fails: one action for the last time that was missed.
	s.Clock = s.Clock.Add(48 * time.Hour)
	if _, actions, _ = s.reconcileSchedule(); len(actions) != 1 {
		t.Fatalf("two at a time: %d", len(actions))
	}
	s.end(actions[0], v1alpha1.ActionFailed)
	schedule, actions, _ = s.reconcileSchedule()
	if len(actions) != 2 || !schedule.Status.LastScheduleTime.Time.Equal(at.Add(48*time.Hour)) {
		t.Fatalf("after what was missed: %d actions, %+v", len(actions), schedule.Status)
	}
	want := func(status metav1.ConditionStatus, reason string) {
		t.Helper()
		c := meta.FindStatusCondition(schedule.Status.Conditions, v1alpha1.ConditionOnTime)
		if c == nil || c.Status != status || c.Reason != reason {
			t.Errorf("condition %+v, want %s %s", c, status, reason)
		}
	}
	want(metav1.ConditionFalse, "Overdue")
	for _, a := range actions {
		if a.Name == schedule.Status.LastAction {
			s.end(a, v1alpha1.ActionSucceeded)
		}
	}
	schedule, _, _ = s.reconcileSchedule()
	want(metav1.ConditionTrue, "Succeeded")
	success := schedule.Status.LastSuccess
	for range 6 {
		s.Clock = s.Clock.Add(24 * time.Hour)
		s.reconcileSchedule()
		schedule, actions, _ = s.reconcileSchedule()
		for _, a := range actions {
			if !endedAction(&a) {
				s.end(a, v1alpha1.ActionFailed)
			}
		}
	}
	schedule, actions, _ = s.reconcileSchedule()
	var names []string
	for _, a := range actions {
		names = append(names, a.Name)
	}
	if len(names) != 3 || !strings.Contains(strings.Join(names, " "), success) {
		t.Errorf("kept %v, with the last success %s", names, success)
	}
	want(metav1.ConditionFalse, "Overdue")
	writes := len(s.Writes)
	if s.reconcileSchedule(); len(s.Writes) != writes {
		t.Errorf("written with nothing to do: %v", s.Writes[writes:])
	}
}

// TestScheduleWrong: a schedule that cannot be read, an unknown zone, and a suspended one make nothing.
func TestScheduleWrong(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*v1alpha1.GroupActionSchedule)
		reason string
	}{
		"schedule":  {func(s *v1alpha1.GroupActionSchedule) { s.Spec.Schedule = "61 3 * * *" }, "InvalidSchedule"},
		"zone":      {func(s *v1alpha1.GroupActionSchedule) { s.Spec.TimeZone = "Mars/Olympus" }, "InvalidSchedule"},
		"suspended": {func(s *v1alpha1.GroupActionSchedule) { s.Spec.Suspend = true }, "Overdue"},
		"own limit": {func(s *v1alpha1.GroupActionSchedule) {
			s.Spec.Suspend, s.Spec.OverdueAfter = true, &metav1.Duration{Duration: 240 * time.Hour}
		}, "NotDueYet"},
	} {
		s := scheduled(t, c.change)
		s.Clock = s.Clock.Add(72 * time.Hour)
		schedule, actions, _ := s.reconcileSchedule()
		got := meta.FindStatusCondition(schedule.Status.Conditions, v1alpha1.ConditionOnTime)
		if len(actions) > 0 || got == nil || got.Reason != c.reason {
			t.Errorf("%s: %d actions, %+v", name, len(actions), got)
		}
	}
	// A schedule that was missed for years is found in time.
	yearly, err := parse("* * * * *", "")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if got := lastDue(yearly, now.AddDate(-20, 0, 0), now); !got.Equal(now.Truncate(time.Minute)) {
		t.Errorf("last due at %v", got)
	}
	leap, err := parse("0 0 29 2 *", "")
	if err != nil {
		t.Fatal(err)
	}
	if got := lastDue(leap, now.AddDate(-10, 0, 0), now); got.Year() != 2024 {
		t.Errorf("last due at %v", got)
	}
}
