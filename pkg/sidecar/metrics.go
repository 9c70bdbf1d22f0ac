package sidecar

import (
	"maps"
	"strconv"
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
	volumeLabels   = []string{"volume", "pvc", "pvc_namespace"}
	limitBytesDesc = prometheus.NewDesc("slipstream_volume_limit_bytes_per_second",
		"Limit of reads and writes of an attached volume; 0: no limit.", volumeLabels, nil)
	limitIOPSDesc = prometheus.NewDesc("slipstream_volume_limit_operations_per_second",
		"Limit of reads and writes of an attached volume; 0: no limit.", volumeLabels, nil)
	delayedTotalDesc = prometheus.NewDesc("slipstream_volume_delayed_operations_total",
		"Reads and writes of an attached volume that waited for its limits. Starts at 0 when the volume is attached or "+
			"the replicator is restarted.", volumeLabels, nil)
)

// What is said of the newest records, which are kept in memory.
var (
	memoryBytesDesc = prometheus.NewDesc("slipstream_journal_memory_bytes",
		"Memory that has the newest records of all groups, to ship and apply them.", nil, nil)
	memoryLimitDesc = prometheus.NewDesc("slipstream_journal_memory_limit_bytes",
		"Limit of slipstream_journal_memory_bytes.", nil, nil)
	recordsReadDesc = prometheus.NewDesc("slipstream_journal_read_records_total",
		"Records that were read to be shipped, applied or folded, by where they came from: memory or file.",
		[]string{"source"}, nil)
)

// What is said of a group that is a shard of a group over several nodes.
var epochHoldDesc = prometheus.NewDesc("slipstream_epoch_hold_seconds",
	"Time for which answers to writes were held for an epoch, for a group that is a shard of a group over several nodes.",
	[]string{"group", "whole_group", "shard"}, nil)

// NewMetrics returns the metrics of a site.
func NewMetrics(site *replication.Site) *Metrics {
	m := &Metrics{site: site, descs: map[string]*prometheus.Desc{}, servers: map[string]servedVolume{}}
	m.shim = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "slipstream_shim_operation_seconds",
		Help:    "Time from a request of the kernel to its reply, by operation. flush is the group commit of the journal.",
		Buckets: prometheus.ExponentialBuckets(4e-6, 2, 20),
	}, []string{"operation", "result"})
	for name, help := range map[string]string{
		"lag_ordinals": "Writes that the copy lacks; absent if unknown. A secondary repeats the last value of its primary.",
		"lag_bytes": "Bytes that the copy lacks, in journal and change map; absent if unknown. " +
			"A secondary repeats the last value of its primary.",
		"lag_seconds": "The copy has every write that is older than this, by this site's clocks; absent if " +
			"unknown.",
		"rpo_target_seconds": "RPO target: largest allowed lag of the copy; 0: no target.",
		"lagging": "1 if the group has a target, and the lag exceeds it or is unknown, or the copy is " +
			"not whole.",
		"ship_limit_bytes_per_second": "Limit of the rate to the peer at present; 0: no limit.",
		"history_target_seconds":      "How long earlier points are to be kept at the secondary; 0: not at all.",
		"history_seconds": "How far the oldest recovery point lies before now; absent if unknown, and where no history " +
			"is kept.",
		"history_short": "1 if more history was asked for, and is not there any more.",
		"views":         "Open views of the group, failed ones included.",
		"views_failed":  "Views that have failed, and show nothing any more.",
		"views_bytes":   "Bytes that views hold in the pool.",
		"last_replicated_timestamp_seconds": "The copy has every write from before this time of this site's clock; " +
			"absent if unknown. As a timestamp it ages even if the exporter stops.",
		"clock_difference_seconds": "Wall clock of the peer minus that of this site; absent until the link has " +
			"measured it.",
		"clock_difference_error_seconds": "Largest error of the measured clock difference, in both directions.",
		"journal_size_bytes":             "Configured size of the journal.",
		"journal_used_bytes":             "Bytes of live journal segments.",
		"journal_used_ratio":             "Used part of the journal's size; above 1 while writers wait for the image.",
		"change_map_bytes":               "Bytes of extents that differ from the peer and have left the journal.",
		"unapplied_bytes":                "Bytes that are in the journal and not yet in the image, by volume.",
		"volume_info":                    "1 for each volume of the group, with its claim. Join the group's metrics with it.",
		"sync_done_bytes":                "Bytes of the running sync that the peer has; absent at the peer.",
		"sync_total_bytes":               "Bytes of the running sync; 0: no sync; absent at the peer.",
		"shipped_bytes_total":            "Bytes of records sent to the peer, before compression.",
		"wire_bytes_total":               "Bytes of records sent to the peer, after compression.",
		"head_ordinal":                   "Ordinal of the last write.",
		"durable_ordinal":                "Ordinal up to which the journal is on stable storage.",
		"applied_ordinal":                "Ordinal up to which the images hold every write.",
		"acknowledged_ordinal":           "Durable ordinal of the peer; absent at a secondary, and before the first contact.",
		"apply_failing":                  "1 while records do not reach the images; the status of the group has the cause.",
		"promotable":                     "1 if a forced promotion would give one consistent instant.",
		"primary":                        "1 if the group is primary at this site.",
		"connected":                      "1 if the link to the peer carries this group.",
		"cuts_running":                   "Snapshots of the group's volumes that are being copied.",
		"cuts_done_bytes":                "Bytes that the running snapshot copies have completed.",
		"cuts_total_bytes":               "Bytes of the volumes that are being copied for snapshots; 0: none.",
		"verify_running":                 "1 while both sites of the group are compared.",
		"verify_done_bytes":              "Bytes that the running comparison has compared; 0 at a secondary.",
		"verify_total_bytes":             "Bytes of the volumes that the running comparison compares; 0 at a secondary.",
		"verify_differing_extents": "Extents of 64 KiB that differ between the sites, as comparisons found; absent if " +
			"there was none.",
		"verify_last_timestamp_seconds": "When the last complete comparison of both sites ended, by this site's clock; " +
			"absent if there was none.",
		"state": "1 for the current state of the group, 0 for the others.",
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
	ch <- memoryBytesDesc
	ch <- memoryLimitDesc
	ch <- recordsReadDesc
	ch <- epochHoldDesc
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
		ch <- prometheus.MustNewConstMetric(limitIOPSDesc, prometheus.GaugeValue, float64(limits.OperationsPerSecond),
			labels...)
		ch <- prometheus.MustNewConstMetric(delayedTotalDesc, prometheus.CounterValue, float64(delayed), labels...)
	}
	memory := m.site.Memory()
	ch <- prometheus.MustNewConstMetric(memoryBytesDesc, prometheus.GaugeValue, float64(memory.HeldBytes))
	ch <- prometheus.MustNewConstMetric(memoryLimitDesc, prometheus.GaugeValue, float64(memory.LimitBytes))
	ch <- prometheus.MustNewConstMetric(recordsReadDesc, prometheus.CounterValue, float64(memory.FromMemory), "memory")
	ch <- prometheus.MustNewConstMetric(recordsReadDesc, prometheus.CounterValue, float64(memory.FromFiles), "file")
	for _, g := range m.site.Groups() {
		s := g.Status()
		m.collectGroup(ch, s)
		m.collectCuts(ch, s, g.Cuts())
		m.collectViews(ch, s, g.Views())
		if id, ok := g.Shard().Identity(); ok {
			times := g.Shard().HoldTimes()
			ch <- prometheus.MustNewConstHistogram(epochHoldDesc, times.Count, times.Seconds, times.Buckets, s.Name, id.Group,
				strconv.Itoa(int(id.ID)))
		}
		raw, wire := g.ShippedBytes()
		m.send(ch, "shipped_bytes_total", prometheus.CounterValue, float64(raw), s.Name, s.Peer)
		m.send(ch, "wire_bytes_total", prometheus.CounterValue, float64(wire), s.Name, s.Peer)
	}
}

func (m *Metrics) send(ch chan<- prometheus.Metric, name string, kind prometheus.ValueType, value float64,
	labels ...string) {
	ch <- prometheus.MustNewConstMetric(m.descs[name], kind, value, labels...)
}

func (m *Metrics) collectGroup(ch chan<- prometheus.Metric, s *replication.Status) {
	gauges := map[string]float64{
		"journal_size_bytes": float64(s.JournalSizeBytes), "journal_used_bytes": float64(s.JournalUsedBytes),
		"journal_used_ratio": float64(s.JournalUsedBytes) / float64(s.JournalSizeBytes),
		"change_map_bytes":   float64(s.ChangeMapBytes),
		"head_ordinal":       float64(s.HeadOrdinal), "durable_ordinal": float64(s.DurableOrdinal),
		"applied_ordinal": float64(s.AppliedOrdinal), "apply_failing": oneIf(s.ApplyError != ""),
		"promotable": oneIf(s.Promotable), "primary": oneIf(s.Role == core.RolePrimary),
		"connected": oneIf(s.Connected), "rpo_target_seconds": float64(s.RPOTargetMillis) / 1e3, "lagging": oneIf(s.Lagging),
		"ship_limit_bytes_per_second": float64(s.ShipLimitBytesPerSecond),
		"history_target_seconds":      float64(s.HistoryMillis) / 1e3, "history_short": oneIf(s.HistoryShort),
	}
	ifKnown(gauges, "history_seconds", s.HistorySeconds, 1)
	ifKnown(gauges, "lag_ordinals", s.LagOrdinals, 1)
	ifKnown(gauges, "lag_bytes", s.LagBytes, 1)
	ifKnown(gauges, "lag_seconds", s.LagSeconds, 1)
	ifKnown(gauges, "sync_done_bytes", s.SyncDoneBytes, 1)
	ifKnown(gauges, "sync_total_bytes", s.SyncTotalBytes, 1)
	ifKnown(gauges, "acknowledged_ordinal", s.AcknowledgedOrdinal, 1)
	ifKnown(gauges, "last_replicated_timestamp_seconds", s.LastReplicatedUnixNanos, 1e-9)
	ifKnown(gauges, "clock_difference_seconds", s.ClockDifferenceSeconds, 1)
	ifKnown(gauges, "clock_difference_error_seconds", s.ClockDifferenceErrorSeconds, 1)
	gauges["verify_running"] = oneIf(s.Verify.Running)
	gauges["verify_done_bytes"], gauges["verify_total_bytes"] = float64(s.Verify.DoneBytes), float64(s.Verify.TotalBytes)
	ifKnown(gauges, "verify_differing_extents", s.Verify.DifferenceCount, 1)
	ifKnown(gauges, "verify_last_timestamp_seconds", s.Verify.FinishedUnixNanos, 1e-9)
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

// ifKnown adds a gauge that has no series while its value is unknown: a zero would be wrong.
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

func (m *Metrics) collectViews(ch chan<- prometheus.Metric, s *replication.Status, views []replication.ViewStatus) {
	var used int64
	failed := 0
	for _, v := range views {
		used += v.UsedBytes
		if v.Failed != nil {
			failed++
		}
	}
	for name, value := range map[string]float64{
		"views": float64(len(views)), "views_failed": float64(failed), "views_bytes": float64(used),
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
