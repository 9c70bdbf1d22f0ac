package sidecar

import (
	"maps"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// Metrics are the replicator's Prometheus metrics. Those of groups are read when they are scraped; units are in the
// names; a ratio runs from 0 to 1.
type Metrics struct {
	site  *replication.Site
	shim  *prometheus.HistogramVec
	descs map[string]*prometheus.Desc

	// mu is not the service's, which may be held for as long as a journal takes to open.
	mu      sync.Mutex
	servers map[string]servedVolume // by volume id
}

// servedVolume is an attached volume.
type servedVolume struct {
	shim  *shim.Server
	claim blockdev.ClaimRecord
}

// What is said of each attached volume.
var (
	volumeLabels     = []string{"volume", "pvc", "pvc_namespace"}
	limitBytesDesc   = prometheus.NewDesc("slipstream_volume_limit_bytes_per_second", "Bound of the attached volume's reads and writes; 0 without one.", volumeLabels, nil)
	limitIOPSDesc    = prometheus.NewDesc("slipstream_volume_limit_operations_per_second", "Bound of the attached volume's reads and writes; 0 without one.", volumeLabels, nil)
	delayedTotalDesc = prometheus.NewDesc("slipstream_volume_delayed_operations_total",
		"Reads and writes of the attached volume that had to wait for its limits; from 0 again when it is attached again or the replicator is restarted.", volumeLabels, nil)
)

// NewMetrics returns the metrics of a site.
func NewMetrics(site *replication.Site) *Metrics {
	m := &Metrics{site: site, descs: map[string]*prometheus.Desc{}, servers: map[string]servedVolume{}}
	m.shim = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "slipstream_shim_operation_seconds",
		Help:    "Time from a request of the kernel to its reply, by operation; flush is the journal's group commit.",
		Buckets: prometheus.ExponentialBuckets(4e-6, 2, 20),
	}, []string{"operation", "result"})
	for name, help := range map[string]string{
		"lag_ordinals":                      "Writes that the copy lacks, at a secondary as its primary last said; absent where that is unknown.",
		"lag_bytes":                         "Bytes that the copy lacks, journal and change map, at a secondary as its primary last said; absent where that is unknown.",
		"lag_seconds":                       "The copy lacks nothing that was written longer ago, by this site's clocks; absent where that is unknown.",
		"rpo_target_seconds":                "How far the copy may lag; 0 without a target.",
		"lagging":                           "1 if there is a target and the copy lags beyond it, nobody knows how far, or there is no whole copy.",
		"ship_limit_bytes_per_second":       "Bound of what is sent to the peer; 0 without one.",
		"last_replicated_timestamp_seconds": "The copy has everything written before this time of this site's clock; absent where that is unknown. A timestamp, so that a stopped exporter ages too.",
		"clock_difference_seconds":          "The peer's wall clock minus this site's, as measured over the link; absent before.",
		"clock_difference_error_seconds":    "How far off the measured clock difference can be, in either direction.",
		"journal_size_bytes":                "Configured size of the journal.",
		"journal_used_bytes":                "Bytes of live journal segments.",
		"journal_used_ratio":                "Used share of the journal's size; above 1 while writers wait for the image.",
		"change_map_bytes":                  "Bytes of extents that differ from the peer and are no longer in the journal.",
		"unapplied_bytes":                   "Bytes that are in the journal and not yet in the image, by volume.",
		"volume_info":                       "1 for each volume of the group, with its claim: what to join the group's metrics with.",
		"sync_done_bytes":                   "Bytes of the running sync that the peer has; absent at a peer that is in one.",
		"sync_total_bytes":                  "Bytes of the running sync; 0 without one, absent at a peer that is in one.",
		"shipped_bytes_total":               "Bytes of records sent to the peer, before compression.",
		"wire_bytes_total":                  "Bytes of records sent to the peer, after compression.",
		"head_ordinal":                      "Ordinal of the last write.",
		"durable_ordinal":                   "Ordinal up to which the journal is on stable storage.",
		"applied_ordinal":                   "Ordinal up to which the images hold every write.",
		"acknowledged_ordinal":              "The peer's durable ordinal; absent at a secondary, and before the peer was heard.",
		"promotable":                        "1 if a forced promotion would give one consistent instant.",
		"primary":                           "1 if the group is primary at this site.",
		"connected":                         "1 if the link to the peer carries this group.",
		"cuts_running":                      "Snapshots of the group's volumes that are being copied.",
		"cuts_done_bytes":                   "Bytes that the running copies have dealt with.",
		"cuts_total_bytes":                  "Bytes of the volumes that are being copied; 0 without one.",
		"state":                             "1 for the group's state, 0 for the others.",
	} {
		labels := []string{"group", "peer"}
		switch name {
		case "state":
			labels = append(labels, "state")
		case "unapplied_bytes", "volume_info":
			labels = append(labels, "volume", "pvc", "pvc_namespace")
		}
		m.descs[name] = prometheus.NewDesc("slipstream_group_"+name, help, labels, nil)
	}
	return m
}

func (m *Metrics) observe(op shim.Op, d time.Duration, err error) {
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.shim.WithLabelValues(op.String(), result).Observe(d.Seconds())
}

// serves says that a volume is attached. A nil m does nothing, as for ends.
func (m *Metrics) serves(rec *blockdev.VolumeRecord, srv *shim.Server) {
	if m == nil {
		return
	}
	v := servedVolume{shim: srv}
	if rec.Claim != nil {
		v.claim = *rec.Claim
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.servers[rec.ID] = v
}

// ends says that a volume is no longer attached.
func (m *Metrics) ends(id string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.servers, id)
}

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.shim.Describe(ch)
	ch <- limitBytesDesc
	ch <- limitIOPSDesc
	ch <- delayedTotalDesc
	for _, d := range m.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	m.shim.Collect(ch)
	m.mu.Lock()
	servers := maps.Clone(m.servers)
	m.mu.Unlock()
	for id, v := range servers {
		limits, delayed := v.shim.Limits()
		labels := []string{id, v.claim.Name, v.claim.Namespace}
		ch <- prometheus.MustNewConstMetric(limitBytesDesc, prometheus.GaugeValue, float64(limits.BytesPerSecond), labels...)
		ch <- prometheus.MustNewConstMetric(limitIOPSDesc, prometheus.GaugeValue, float64(limits.OperationsPerSecond), labels...)
		ch <- prometheus.MustNewConstMetric(delayedTotalDesc, prometheus.CounterValue, float64(delayed), labels...)
	}
	for _, g := range m.site.Groups() {
		s := g.Status()
		m.collectGroup(ch, s)
		m.collectCuts(ch, s, g.Cuts())
		raw, wire := g.ShippedBytes()
		m.send(ch, "shipped_bytes_total", prometheus.CounterValue, float64(raw), s.Name, s.Peer)
		m.send(ch, "wire_bytes_total", prometheus.CounterValue, float64(wire), s.Name, s.Peer)
	}
}

func (m *Metrics) send(ch chan<- prometheus.Metric, name string, kind prometheus.ValueType, value float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(m.descs[name], kind, value, labels...)
}

func (m *Metrics) collectGroup(ch chan<- prometheus.Metric, s *replication.Status) {
	gauges := map[string]float64{
		"journal_size_bytes": float64(s.JournalSizeBytes), "journal_used_bytes": float64(s.JournalUsedBytes),
		"journal_used_ratio": float64(s.JournalUsedBytes) / float64(s.JournalSizeBytes),
		"change_map_bytes":   float64(s.ChangeMapBytes),
		"head_ordinal":       float64(s.HeadOrdinal), "durable_ordinal": float64(s.DurableOrdinal), "applied_ordinal": float64(s.AppliedOrdinal),
		"promotable": oneIf(s.Promotable), "primary": oneIf(s.Role == core.RolePrimary),
		"connected": oneIf(s.Connected), "rpo_target_seconds": float64(s.RPOTargetMillis) / 1e3, "lagging": oneIf(s.Lagging),
		"ship_limit_bytes_per_second": float64(s.ShipBytesPerSecond),
	}
	ifKnown(gauges, "lag_ordinals", s.LagOrdinals, 1)
	ifKnown(gauges, "lag_bytes", s.LagBytes, 1)
	ifKnown(gauges, "lag_seconds", s.LagSeconds, 1)
	ifKnown(gauges, "sync_done_bytes", s.SyncDoneBytes, 1)
	ifKnown(gauges, "sync_total_bytes", s.SyncTotalBytes, 1)
	ifKnown(gauges, "acknowledged_ordinal", s.AcknowledgedOrdinal, 1)
	ifKnown(gauges, "last_replicated_timestamp_seconds", s.LastReplicatedUnixNanos, 1e-9)
	ifKnown(gauges, "clock_difference_seconds", s.ClockDifferenceSeconds, 1)
	ifKnown(gauges, "clock_difference_error_seconds", s.ClockDifferenceErrorSeconds, 1)
	for name, value := range gauges {
		m.send(ch, name, prometheus.GaugeValue, value, s.Name, s.Peer)
	}
	for _, state := range core.States {
		m.send(ch, "state", prometheus.GaugeValue, oneIf(state == s.State), s.Name, s.Peer, string(state))
	}
	for _, v := range s.Volumes {
		labels := []string{s.Name, s.Peer, v.VolumeID, v.Claim.Name, v.Claim.Namespace}
		m.send(ch, "volume_info", prometheus.GaugeValue, 1, labels...)
		m.send(ch, "unapplied_bytes", prometheus.GaugeValue, float64(v.UnappliedBytes), labels...)
	}
}

// ifKnown adds a gauge that has no series while its value is unknown: a zero would be a lie.
func ifKnown[T uint64 | int64 | float64](gauges map[string]float64, name string, value *T, factor float64) {
	if value != nil {
		gauges[name] = float64(*value) * factor
	}
}

func (m *Metrics) collectCuts(ch chan<- prometheus.Metric, s *replication.Status, cuts []replication.CutStatus) {
	var done, total int64
	for _, c := range cuts {
		done, total = done+c.DoneBytes, total+c.TotalBytes
	}
	for name, value := range map[string]float64{
		"cuts_running": float64(len(cuts)), "cuts_done_bytes": float64(done), "cuts_total_bytes": float64(total),
	} {
		m.send(ch, name, prometheus.GaugeValue, value, s.Name, s.Peer)
	}
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
