package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// TestMonitoring: the PrometheusRule has the rules of the rule files, and each ConfigMap its dashboard as it is. By
// default there are none. Templates of Prometheus and Grafana in double braces are not Helm's.
func TestMonitoring(t *testing.T) {
	const on = "site: {name: site-a}\nmetrics:\n  alerts: {enabled: true, labels: {release: prometheus}}\n" +
		"  dashboards: {enabled: true, namespace: grafana}\n"
	var want []any
	files, _ := filepath.Glob(filepath.Join(chartDir, "files", "alerts", "*.yaml"))
	for _, file := range files {
		var content struct {
			Groups []any `json:"groups"`
		}
		read(t, file, &content)
		want = append(want, content.Groups...)
	}
	boards, _ := filepath.Glob(filepath.Join(chartDir, "files", "dashboards", "*.json"))
	if len(want) != 3 || len(boards) != 3 {
		t.Fatalf("%d groups of rules, %d dashboards", len(want), len(boards))
	}
	rule, dashboards := monitoring(t, on)
	if rule == nil || !reflect.DeepEqual(rule.Spec.Groups, want) || rule.Metadata.Labels["release"] != "prometheus" {
		t.Errorf("the rules of the chart differ from the files: %+v", rule)
	}
	for _, file := range boards {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		m := dashboards["slipstream-dashboard-"+name]
		if m == nil || strings.TrimSpace(m.Data["slipstream-"+name+".json"]) != strings.TrimSpace(string(text)) ||
			m.Metadata.Namespace != "grafana" || m.Metadata.Labels["grafana_dashboard"] != "1" {
			t.Errorf("dashboard %s differs from its file", name)
		}
	}
	if rule, dashboards := monitoring(t, "site: {name: site-a}\n"); rule != nil || len(dashboards) != 0 {
		t.Errorf("by default there are a PrometheusRule (%t) and %d dashboards", rule != nil, len(dashboards))
	}
}

// manifest is what the test looks at of an object.
type manifest struct {
	Kind     string `json:"kind"`
	Metadata struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace"`
		Labels    map[string]string `json:"labels"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
	Spec struct {
		Groups []any `json:"groups"`
	} `json:"spec"`
}

// monitoring are the PrometheusRule and the ConfigMaps of a rendering.
func monitoring(t *testing.T, text string) (rule *manifest, maps map[string]*manifest) {
	t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	rendered, err := Render(chartDir, testRelease, values)
	if err != nil {
		t.Fatal(err)
	}
	maps = map[string]*manifest{}
	for _, document := range strings.Split("\n"+string(rendered), "\n---\n") {
		m := &manifest{}
		if !strings.Contains(document, "kind: PrometheusRule") && !strings.Contains(document, "kind: ConfigMap") {
			continue
		}
		if err := yaml.Unmarshal([]byte(document), m); err != nil {
			t.Fatal(err)
		}
		switch m.Kind {
		case "PrometheusRule":
			rule = m
		case "ConfigMap":
			maps[m.Metadata.Name] = m
		}
	}
	return rule, maps
}

func read(t *testing.T, file string, to any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, to); err != nil {
		t.Fatal(err)
	}
}
