package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
)

// collectTimeout bounds a reading of the metrics. They come from the cache.
const collectTimeout = 10 * time.Second

var (
	descProtected = prometheus.NewDesc("slipstream_claims_protected",
		"Claims that are members of a group whose condition Ready is True.", nil, nil)
	descUnprotected = prometheus.NewDesc("slipstream_claims_unprotected",
		"Claims that are not protected, by reason. `kubectl slipstream coverage` names them.", []string{"reason"}, nil)
	descCondition = prometheus.NewDesc("slipstream_consistency_group_condition",
		"1 if the condition of the ConsistencyGroup is True, 0 if it is False, -1 if it is Unknown.",
		[]string{"namespace", "group", "condition"}, nil)
	descSiteCondition = prometheus.NewDesc("slipstream_remote_site_condition",
		"1 if the condition of the RemoteSite is True, 0 if it is False, -1 if it is Unknown.",
		[]string{"remote_site", "condition"}, nil)
	descLastAction = prometheus.NewDesc("slipstream_group_last_action",
		"1 for the newest GroupAction of each group, with its phase: Pending, Running, Kept (a test failover that waits "+
			"for a person), Succeeded or Failed.", []string{"namespace", "group", "action", "type", "phase"}, nil)
	descScheduleCondition = prometheus.NewDesc("slipstream_action_schedule_condition",
		"1 if the condition of the GroupActionSchedule is True, 0 if it is False.",
		[]string{"namespace", "schedule", "condition"}, nil)
	descScheduleSuccess = prometheus.NewDesc("slipstream_action_schedule_last_success_timestamp_seconds",
		"When the last action of a GroupActionSchedule ended that succeeded; absent if none has.",
		[]string{"namespace", "schedule", "type"}, nil)
)

const (
	// phasePending is the phase of an action that the operator has not begun.
	phasePending = "Pending"
	// phaseKept is that of a test failover whose namespace is kept for a person.
	phaseKept = "Kept"
)

// phaseOf is the phase of an action in metrics.
func phaseOf(a *v1alpha1.GroupAction) string {
	steps := a.Status.Steps
	if n := len(steps); n > 0 && steps[n-1].Name == v1alpha1.StepKeep && steps[n-1].EndTime == nil {
		return phaseKept
	}
	return cmp.Or(string(a.Status.Phase), phasePending)
}

// Metrics are the operator's own: what its objects say, read when they are asked for. Only the leader has them.
type Metrics struct {
	// Reader is the cache; nil for a description only.
	Reader client.Reader
	// Leader is closed when this process leads.
	Leader <-chan struct{}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descProtected
	ch <- descUnprotected
	ch <- descCondition
	ch <- descSiteCondition
	ch <- descLastAction
	ch <- descScheduleCondition
	ch <- descScheduleSuccess
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	select {
	case <-m.Leader:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), collectTimeout)
	defer cancel()
	claims, err := membership.CoverageOf(ctx, m.Reader, "")
	if err != nil {
		klog.ErrorS(err, "The claims of the cluster cannot be read")
		return
	}
	protected, reasons := 0, map[string]int{}
	for _, c := range claims {
		if c.Reason == "" {
			protected++
		} else {
			reasons[c.Reason]++
		}
	}
	ch <- prometheus.MustNewConstMetric(descProtected, prometheus.GaugeValue, float64(protected))
	for reason, n := range reasons {
		ch <- prometheus.MustNewConstMetric(descUnprotected, prometheus.GaugeValue, float64(n), reason)
	}
	groups, sites, actions := &v1alpha1.ConsistencyGroupList{}, &v1alpha1.RemoteSiteList{}, &v1alpha1.GroupActionList{}
	schedules := &v1alpha1.GroupActionScheduleList{}
	for _, list := range []client.ObjectList{groups, sites, actions, schedules} {
		if err := m.Reader.List(ctx, list); err != nil {
			klog.ErrorS(err, "Objects of the operator cannot be read", "type", fmt.Sprintf("%T", list))
			return
		}
	}
	for _, g := range groups.Items {
		sendConditions(ch, descCondition, g.Status.Conditions, g.Namespace, g.Name)
	}
	for _, s := range sites.Items {
		sendConditions(ch, descSiteCondition, s.Status.Conditions, s.Name)
	}
	for _, a := range lastActions(actions.Items) {
		ch <- prometheus.MustNewConstMetric(descLastAction, prometheus.GaugeValue, 1, a.Namespace, a.Spec.Group, a.Name,
			string(a.Spec.Type), phaseOf(a))
	}
	for _, s := range schedules.Items {
		sendConditions(ch, descScheduleCondition, s.Status.Conditions, s.Namespace, s.Name)
		if at := s.Status.LastSuccessTime; at != nil {
			ch <- prometheus.MustNewConstMetric(descScheduleSuccess, prometheus.GaugeValue, float64(at.Unix()), s.Namespace,
				s.Name, string(s.Spec.Action.Type))
		}
	}
}

// sendConditions sends the conditions of one object, with its labels.
func sendConditions(ch chan<- prometheus.Metric, desc *prometheus.Desc, conditions []metav1.Condition,
	labels ...string) {
	for _, c := range conditions {
		value := map[metav1.ConditionStatus]float64{metav1.ConditionTrue: 1, metav1.ConditionFalse: 0,
			metav1.ConditionUnknown: -1}[c.Status]
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append(slices.Clone(labels), c.Type)...)
	}
}

// lastActions returns the newest action of each group. Of actions of one second the one with the greater name counts.
func lastActions(all []v1alpha1.GroupAction) map[client.ObjectKey]*v1alpha1.GroupAction {
	last := map[client.ObjectKey]*v1alpha1.GroupAction{}
	for i := range all {
		a := &all[i]
		group := client.ObjectKey{Namespace: a.Namespace, Name: a.Spec.Group}
		if b := last[group]; b == nil || cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
			cmp.Compare(a.Name, b.Name)) > 0 {
			last[group] = a
		}
	}
	return last
}
