package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Metrics are a prometheus.Collector.
type Metrics struct {
	streams    *prometheus.GaugeVec
	refusals   *prometheus.CounterVec
	unanswered *prometheus.CounterVec
	turnedAway prometheus.Counter
}

// NewMetrics returns them at zero.
func NewMetrics() *Metrics {
	return &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "slipstream_gateway_streams", Help: "Open streams, by peer and by the node that has the group.",
		}, []string{"peer", "node"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_gateway_refusals_total", Help: "Refused streams, by peer and reason; the log has details.",
		}, []string{"peer", "reason"}),
		unanswered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "slipstream_gateway_unanswered_total", Help: "Locate calls that a node did not answer.",
		}, []string{"node"}),
		turnedAway: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "slipstream_gateway_refused_connections_total",
			Help: "Connections of callers that are not peers of the site, or have a wrong certificate.",
		}),
	}
}

// Observe is for link.ServerOptions.
func (m *Metrics) Observe(event link.Event) {
	if event.Kind == link.Refused {
		m.turnedAway.Inc()
	}
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(ch)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.streams, m.refusals, m.unanswered, m.turnedAway}
}
