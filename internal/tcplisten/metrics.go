package tcplisten

import "github.com/prometheus/client_golang/prometheus"

// Why a connection was closed on the listening side.
const (
	dropCrowd  = "crowd"
	dropSilent = "silent"
	dropFull   = "full"
)

var (
	connections = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "slipstream_port_connections",
		Help: "Open connections of a TCP port, including callers that are not known yet.",
	}, []string{"port"})
	drops = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_port_dropped_connections_total",
		Help: "Connections that a TCP port closed, by reason: crowd (too many unknown callers), silent (caller not known " +
			"in time), full (too many known callers).",
	}, []string{"port", "reason"})
)

// countDrops returns the counter of a port, which is there at zero from then on.
func countDrops(port string) func(reason string) {
	connections.WithLabelValues(port)
	for _, reason := range []string{dropCrowd, dropSilent, dropFull} {
		drops.WithLabelValues(port, reason)
	}
	return func(reason string) { drops.WithLabelValues(port, reason).Inc() }
}

// Metrics are those of all ports of the process. They may be registered more than once.
func Metrics() []prometheus.Collector { return []prometheus.Collector{connections, drops} }
