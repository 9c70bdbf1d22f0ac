package operator

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
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
)

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
	claims, err := CoverageOf(ctx, m.Reader, "")
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
	groups := &v1alpha1.ConsistencyGroupList{}
	if err := m.Reader.List(ctx, groups); err != nil {
		klog.ErrorS(err, "The ConsistencyGroups cannot be read")
		return
	}
	for _, g := range groups.Items {
		for _, c := range g.Status.Conditions {
			value := map[metav1.ConditionStatus]float64{metav1.ConditionTrue: 1, metav1.ConditionFalse: 0,
				metav1.ConditionUnknown: -1}[c.Status]
			ch <- prometheus.MustNewConstMetric(descCondition, prometheus.GaugeValue, value, g.Namespace, g.Name, c.Type)
		}
	}
}
