// Command metricsdoc prints the documentation of the metrics, made from the collectors that the programs serve.
package main

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/slipstream-storage/slipstream/hack/markdown"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/gateway"
	"github.com/slipstream-storage/slipstream/pkg/operator"
	"github.com/slipstream-storage/slipstream/pkg/router"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
)

// program is what serves metrics.
type program struct {
	name, text string
	collectors []prometheus.Collector
}

var programs = []program{
	{"replicator",
		"Port 9812 of a node's pod. Both sites have the metrics of a group; `peer` is the other site. " +
			"`slipstream_group_volume_info` has the claims of a group: join it with the group's metrics on `group`.",
		append(tcplisten.Metrics(), sidecar.NewMetrics(nil), metricsserver.CertificateExpiry(nil),
			metricsserver.CertificateUsable(nil))},
	{"csi-driver",
		"Port 9811 of a node's pod. `csi_plugin_operations_seconds` counts and times the answered calls. Certificate " +
			"and handshakes exist only if the driver has a port for a controller.",
		[]prometheus.Collector{driver.Metrics()}},
	{"csi-driver --mode=controller", "Port 9811 of the controller's pod, with `csi_plugin_operations_seconds`.",
		[]prometheus.Collector{router.Metrics()}},
	{"gateway", "Port 9816 of the gateway's pods.",
		append(tcplisten.Metrics(), gateway.NewMetrics(), metricsserver.CertificateExpiry(nil),
			metricsserver.CertificateUsable(nil))},
	{"operator",
		"Port 9818 of the operator's pods, with the metrics of controller-runtime. Only the leader has those of claims " +
			"and groups.",
		[]prometheus.Collector{&operator.Metrics{}, router.Metrics()}},
}

//go:embed head.md
var head string

// metric is what a collector says of one.
type metric struct {
	name, help string
	labels     []string
}

var descPattern = regexp.MustCompile(`^Desc\{fqName: ("(?:[^"\\]|\\.)*"), help: ("(?:[^"\\]|\\.)*"), ` +
	`unit: "[^"]*", constLabels: \{\}, variableLabels: \{(.*)\}\}$`)

// describe takes a Desc apart, which says what it has only as a string.
func describe(d *prometheus.Desc) (m metric, err error) {
	parts := descPattern.FindStringSubmatch(d.String())
	if parts == nil {
		return m, fmt.Errorf("%s is not as expected", d)
	}
	if m.name, err = strconv.Unquote(parts[1]); err == nil {
		m.help, err = strconv.Unquote(parts[2])
	}
	if parts[3] != "" {
		m.labels = strings.Split(parts[3], ",")
	}
	return m, err
}

func (p program) metrics() (list []metric, err error) {
	descs := make(chan *prometheus.Desc, 1000)
	for _, c := range p.collectors {
		c.Describe(descs)
	}
	close(descs)
	for d := range descs {
		m, err := describe(d)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b metric) int { return strings.Compare(a.name, b.name) })
	return list, nil
}

func write(w io.Writer) error {
	var b strings.Builder
	b.WriteString(head)
	for _, p := range programs {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", p.name, markdown.Fill("", p.text))
		list, err := p.metrics()
		if err != nil {
			return err
		}
		for _, m := range list {
			labels := ""
			if len(m.labels) > 0 {
				labels = " (" + strings.Join(m.labels, ", ") + ")"
			}
			fmt.Fprintln(&b, markdown.Fill("- ", fmt.Sprintf("`%s`%s: %s", m.name, labels, m.help)))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func main() {
	if err := write(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "metricsdoc:", err)
		os.Exit(1)
	}
}
