package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

const (
	root     = "../.."
	rulesDir = root + "/deploy/charts/slipstream/files/alerts"
	pagesDir = root + "/docs/alerts"
)

// rule is one alert of a rule file.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

// rules are the alerts of all rule files, in order.
func rules(t *testing.T) (all []rule) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(rulesDir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no rule files: %v", err)
	}
	for _, file := range files {
		var content struct {
			Groups []struct {
				Name  string `json:"name"`
				Rules []rule `json:"rules"`
			} `json:"groups"`
		}
		readYAML(t, file, &content)
		for _, g := range content.Groups {
			all = append(all, g.Rules...)
		}
	}
	return all
}

func readYAML(t *testing.T, file string, to any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, to); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// foreign are metrics that the programs or Prometheus have from libraries, with their labels.
var foreign = map[string][]string{
	"ALERTS":                        {"alertname", "alertstate", "severity"},
	"up":                            {},
	"csi_plugin_operations_seconds": {"driver_name", "method_name", "grpc_status_code", "migrated"},
	"leader_election_master_status": {"name"},
	"controller_runtime_reconcile_errors_total": {"controller"},
}

// scraped are labels that Prometheus gives to every series.
var scraped = []string{"instance", "job"}

// metrics are those of docs/metrics.md, which is made from the collectors of the programs, with their labels.
func metrics(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile(root + "/docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string][]string{}
	for name, of := range foreign {
		known[name] = of
	}
	entry := regexp.MustCompile("(?m)^- `(\\w+)`(?: \\(([a-z_, ]+)\\))?:")
	for _, m := range entry.FindAllStringSubmatch(string(text), -1) {
		var of []string
		if m[2] != "" {
			of = strings.Split(m[2], ", ")
		}
		known[m[1]] = append(known[m[1]], of...)
	}
	if len(known) < 60 {
		t.Fatalf("%d metrics in docs/metrics.md", len(known))
	}
	return known
}

// values are what a label can be, by metric and label, as the sources have it.
func values(t *testing.T) map[string][]string {
	t.Helper()
	constants := func(file, pattern string) (found []string) {
		text, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			found = append(found, m[1])
		}
		if len(found) == 0 {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return found
	}
	types := constants("pkg/api/v1alpha1/groupaction.go", `ActionType = "(\w+)"`)
	conditions := constants("pkg/api/v1alpha1/labels.go", `\tCondition\w+\s+= "(\w+)"`)
	return map[string][]string{
		"slipstream_group_state state":                     constants("pkg/replication/core/core.go", `State = "(\w+)"`),
		"slipstream_consistency_group_condition condition": conditions,
		"slipstream_remote_site_condition condition":       conditions,
		"slipstream_group_last_action type":                types,
		"slipstream_group_last_action phase": append(
			constants("pkg/api/v1alpha1/groupaction.go", `ActionPhase = "(\w+)"`),
			constants("pkg/operator/metrics.go", `phasePending = "(\w+)"`)...),
		"slipstream_controller_handshakes_total result":    {"ok", "certificate", "failed", "refused"},
		"slipstream_port_dropped_connections_total reason": {"crowd", "silent", "full"},
		"slipstream_controller_node_up retired":            {"true", "false"},
		"slipstream_shim_operation_seconds result":         {"ok", "error"},
	}
}

// checkExpression complains about metrics, labels and values that do not exist, and returns the labels that the
// metrics of the expression have.
func checkExpression(t *testing.T, what, expr string) (of []string) {
	t.Helper()
	known, can := metrics(t), values(t)
	tree, err := parser.NewParser(parser.Options{}).ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return nil
	}
	selectors := 0
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		selectors++
		base := regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(s.Name, "")
		name := s.Name
		if _, ok := known[name]; !ok {
			name = base
		}
		has, ok := known[name]
		if !ok {
			t.Errorf("%s: there is no metric %s", what, s.Name)
			return nil
		}
		has = append(slices.Clone(has), scraped...)
		if strings.HasSuffix(s.Name, "_bucket") {
			has = append(has, "le")
		}
		of = append(of, has...)
		for _, m := range s.LabelMatchers {
			if m.Name == labels.MetricName {
				continue
			}
			if !slices.Contains(has, m.Name) {
				t.Errorf("%s: %s has no label %s", what, s.Name, m.Name)
			}
			if possible, limited := can[name+" "+m.Name]; limited && !slices.ContainsFunc(possible, m.Matches) {
				t.Errorf("%s: %s of %s is never %s", what, m.Name, s.Name, m.Value)
			}
			if possible, limited := can[name+" "+m.Name]; limited {
				for one := range strings.SplitSeq(m.Value, "|") {
					if !slices.Contains(possible, one) {
						t.Errorf("%s: %s of %s is never %s", what, m.Name, s.Name, one)
					}
				}
			}
		}
		return nil
	})
	if selectors == 0 {
		t.Errorf("%s has no metric: %s", what, expr)
	}
	parser.Inspect(tree, func(node parser.Node, _ []parser.Node) error {
		var named []string
		switch n := node.(type) {
		case *parser.AggregateExpr:
			named = n.Grouping
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				named = n.VectorMatching.MatchingLabels
			}
		}
		for _, label := range named {
			if !slices.Contains(of, label) {
				t.Errorf("%s: no metric of it has the label %s", what, label)
			}
		}
		return nil
	})
	return of
}
