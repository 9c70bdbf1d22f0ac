package driver

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// volumeMetrics are the pool's volumes, each with its claim. They are read from the records when they are scraped.
type volumeMetrics struct {
	d            *Driver
	size, staged *prometheus.Desc
}

func newVolumeMetrics(d *Driver) *volumeMetrics {
	labels := []string{"volume", "pvc", "pvc_namespace", "group"}
	return &volumeMetrics{
		d: d,
		size: prometheus.NewDesc("slipstream_volume_size_bytes", "Size of the volume. Its image can use less space.",
			labels, nil),
		staged: prometheus.NewDesc("slipstream_volume_staged", "1 if the volume is staged on this node.", labels, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *volumeMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.size
	ch <- m.staged
}

// Collect implements prometheus.Collector. Volumes whose records cannot be read are missing, and logged.
func (m *volumeMetrics) Collect(ch chan<- prometheus.Metric) {
	records, err := m.d.store.SharedVolumes()
	if err != nil {
		klog.ErrorS(err, "The metrics are without volumes whose records cannot be read")
	}
	for _, rec := range records {
		claim := blockdev.ClaimRecord{}
		if rec.Claim != nil {
			claim = *rec.Claim
		}
		labels := []string{rec.ID, claim.Name, claim.Namespace, rec.Group}
		staged := 0.0
		if rec.Stage != nil {
			staged = 1
		}
		ch <- prometheus.MustNewConstMetric(m.size, prometheus.GaugeValue, float64(rec.SizeBytes), labels...)
		ch <- prometheus.MustNewConstMetric(m.staged, prometheus.GaugeValue, staged, labels...)
	}
}
