package driver

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/health"
)

// healthTimeout is less than the ten seconds that Prometheus waits.
const healthTimeout = 8 * time.Second

// healthMetrics are the conditions that NodeGetVolumeHealth reports, of all volumes, found out when they are scraped.
// Messages are logged when a condition begins. It may be collected by several goroutines.
type healthMetrics struct {
	d                  *Driver
	healthy, condition *prometheus.Desc

	mu     sync.Mutex
	logged map[string]bool // conditions of the last scrape, by volume and reason
}

func newHealthMetrics(d *Driver) *healthMetrics {
	labels := []string{"volume", "pvc", "pvc_namespace", "group"}
	return &healthMetrics{
		d: d,
		healthy: prometheus.NewDesc("slipstream_volume_healthy",
			"1 if the volume has no adverse condition, 0 if it has one; absent if that is not known.", labels, nil),
		condition: prometheus.NewDesc("slipstream_volume_condition", "1 for each adverse condition of the volume, while it "+
			"lasts: docs/health.md has the reasons. type is degraded, inaccessible or data_loss.",
			append(labels, "type", "reason"), nil),
	}
}

// Describe implements prometheus.Collector.
func (m *healthMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.healthy
	ch <- m.condition
}

// Collect implements prometheus.Collector. Volumes whose health cannot be found out are missing, and logged.
func (m *healthMetrics) Collect(ch chan<- prometheus.Metric) {
	ids, err := m.d.store.Pool.IDs()
	if err != nil {
		klog.ErrorS(err, "The metrics are without the health of volumes")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	survey := m.d.health.Survey(ctx)
	lasting := map[string]string{} // messages by volume and reason
	for _, id := range ids {
		rec, found, err := survey.VolumeHealth(id)
		if err == nil && rec != nil {
			err = m.d.healthWhereUsed(&found, rec)
		}
		switch {
		case status.Code(err) == codes.NotFound:
			continue // deleted meanwhile
		case err != nil:
			klog.ErrorS(err, "The metrics are without the health of a volume", "volume", id)
			continue
		case rec == nil: // its record cannot be read
			rec = &blockdev.VolumeRecord{ID: id}
		}
		claim := blockdev.ClaimRecord{}
		if rec.Claim != nil {
			claim = *rec.Claim
		}
		labels := []string{id, claim.Name, claim.Namespace, rec.Group}
		healthy := 1.0
		for _, c := range found {
			key := id + " " + c.GetReason()
			if _, twice := lasting[key]; twice {
				continue
			}
			healthy, lasting[key] = 0, c.GetMessage()
			ch <- prometheus.MustNewConstMetric(m.condition, prometheus.GaugeValue, 1,
				append(labels[:len(labels):len(labels)], strings.ToLower(c.GetStatus().String()), c.GetReason())...)
		}
		ch <- prometheus.MustNewConstMetric(m.healthy, prometheus.GaugeValue, healthy, labels...)
	}
	m.log(lasting)
}

// log writes the messages of conditions that the last scrape did not see.
func (m *healthMetrics) log(lasting map[string]string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	logged := map[string]bool{}
	for key, message := range lasting {
		if !m.logged[key] {
			klog.InfoS("A volume is not healthy", "condition", key, "message", message)
		}
		logged[key] = true
	}
	m.logged = logged
}

// healthWhereUsed adds the conditions of a volume where it is staged and published on this node.
func (d *Driver) healthWhereUsed(found *health.Conditions, rec *blockdev.VolumeRecord) error {
	published, err := d.attachments.Published(rec.ID)
	if err != nil {
		return err
	}
	if len(published) == 0 {
		return d.health.NodeHealth(found, rec, "")
	}
	for _, p := range published {
		if err := d.health.NodeHealth(found, rec, p.TargetPath); err != nil {
			return err
		}
	}
	return nil
}
