package sidecar

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
)

// All metrics are gathered by a registry that checks them against their descriptions, under names and labels that
// dashboards rely on.
func TestMetrics(t *testing.T) {
	f := newFixture(t, newNetwork(t), "site-a", false)
	f.createGroup("shop", "site-b")
	f.createGroup("alone", "")
	f.createVolume("v0", 1<<20, true)
	f.addVolume("shop", "v0")
	f.metrics.observe(shim.Op(0), 1, nil)
	f.metrics.observe(shim.Op(0), 1, f.ctx.Err())
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(f.metrics); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil || len(problems) > 0 {
		t.Fatalf("%v, %v", problems, err)
	}
	got := map[string][]string{}
	series := map[string]int{}
	for _, family := range families {
		var labels []string
		for _, l := range family.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		got[family.GetName()], series[family.GetName()] = labels, len(family.Metric)
	}
	group := []string{"group", "peer"}
	for _, name := range []string{
		"journal_size_bytes", "journal_used_bytes", "journal_used_ratio", "change_map_bytes",
		"sync_done_bytes", "sync_total_bytes", "shipped_bytes_total", "wire_bytes_total", "head_ordinal", "durable_ordinal",
		"applied_ordinal", "apply_failing", "promotable", "primary", "connected", "cuts_running", "cuts_done_bytes",
		"cuts_total_bytes",
		"lagging", "rpo_target_seconds", "ship_limit_bytes_per_second", "history_target_seconds", "history_short", "views",
		"views_failed", "views_bytes", "verify_running", "verify_done_bytes", "verify_total_bytes",
	} {
		if name = "slipstream_group_" + name; !slices.Equal(got[name], group) || series[name] != 2 {
			t.Errorf("%s has labels %v and %d series", name, got[name], series[name])
		}
		delete(got, name)
	}
	for name, labels := range map[string][]string{
		"slipstream_group_state":            {"group", "peer", "state"},
		"slipstream_group_unapplied_bytes":  {"group", "peer", "pvc", "pvc_namespace", "volume"},
		"slipstream_group_volume_info":      {"group", "peer", "pvc", "pvc_namespace", "volume"},
		"slipstream_shim_operation_seconds": {"operation", "result"},

		"slipstream_journal_memory_bytes":       nil,
		"slipstream_journal_memory_limit_bytes": nil,
		"slipstream_journal_read_records_total": {"source"},
	} {
		if !slices.Equal(got[name], labels) {
			t.Errorf("%s has labels %v, want %v", name, got[name], labels)
		}
		delete(got, name)
	}
	// What is unknown has no series: neither group has ever heard of a peer.
	if len(got) > 0 {
		t.Errorf("more metrics than this test knows: %v", got)
	}
	// Exactly one state is 1.
	for _, family := range families {
		if family.GetName() != "slipstream_group_state" {
			continue
		}
		ones := map[string]int{}
		for _, m := range family.Metric {
			for _, l := range m.Label {
				if l.GetName() == "group" {
					ones[l.GetValue()] += int(m.Gauge.GetValue())
				}
			}
		}
		if ones["shop"] != 1 || ones["alone"] != 1 {
			t.Errorf("states that are 1: %v", ones)
		}
	}
}

// What is known of a copy has its series, with the value of the status.
func TestMetricsOfACopy(t *testing.T) {
	net := newNetwork(t)
	a, b := newFixture(t, net, "site-a", false), newFixture(t, net, "site-b", false)
	a.createGroup("shop", "site-b")
	a.createVolume("v0", 1<<20, true)
	a.addVolume("shop", "v0")
	known := map[string]bool{}
	for _, name := range []string{"lag_seconds", "lag_ordinals", "lag_bytes", "last_replicated_timestamp_seconds",
		"clock_difference_seconds", "clock_difference_error_seconds"} {
		known["slipstream_group_"+name] = true
	}
	for _, f := range []*fixture{a, b} {
		f.eventually("the metrics of its copy", func() bool {
			registry := prometheus.NewPedanticRegistry()
			if err := registry.Register(f.metrics); err != nil {
				t.Fatal(err)
			}
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, family := range families {
				if known[family.GetName()] {
					n++
				}
			}
			return n == len(known)
		})
	}
}

// volumeMetrics are the values of the metrics of one volume by name, those of groups aside.
func (f *fixture) volumeMetrics(id string) map[string]float64 {
	f.t.Helper()
	registry := prometheus.NewPedanticRegistry()
	err := registry.Register(f.metrics)
	if err != nil {
		f.t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		f.t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		f.t.Fatalf("%v, %v", problems, err)
	}
	values := map[string]float64{}
	for _, family := range families {
		if !strings.HasPrefix(family.GetName(), "slipstream_volume_") {
			continue
		}
		for _, m := range family.Metric {
			if slices.ContainsFunc(m.Label, func(l *dto.LabelPair) bool {
				return l.GetName() == "volume" &&
					l.GetValue() == id
			}) {
				values[family.GetName()] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
			}
		}
	}
	return values
}

// A group whose records do not reach the images says so.
func TestApplyFailingMetric(t *testing.T) {
	m := NewMetrics(nil)
	for text, want := range map[string]float64{"": 0, "no space left on device": 1} {
		ch := make(chan prometheus.Metric, 1000)
		m.collectGroup(ch, &replication.Status{Name: "shop", ApplyError: text})
		close(ch)
		found := false
		for metric := range ch {
			var got dto.Metric
			if err := metric.Write(&got); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(metric.Desc().String(), `"slipstream_group_apply_failing"`) {
				found = true
				if got.Gauge.GetValue() != want {
					t.Errorf("with %q it is %v, want %v", text, got.Gauge.GetValue(), want)
				}
			}
		}
		if !found {
			t.Errorf("with %q there is no metric", text)
		}
	}
}
