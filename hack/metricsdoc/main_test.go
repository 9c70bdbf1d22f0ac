package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestAlerts looks at every metric in the example's rules, and at every label that they choose by or show.
func TestAlerts(t *testing.T) {
	known := map[string][]string{}
	for _, p := range programs {
		list, err := p.metrics()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range list {
			known[m.name] = append(known[m.name], m.labels...)
		}
	}
	text, err := os.ReadFile("../../deploy/examples/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rules := strings.Split(string(text), "- alert: ")[1:]
	if len(rules) == 0 {
		t.Fatal("there are no rules")
	}
	metricIn := regexp.MustCompile(`(slipstream_[a-z_]+)(?:\{([^}]*)\})?`)
	for _, rule := range rules {
		name, _, _ := strings.Cut(rule, "\n")
		_, expr, _ := strings.Cut(rule, "expr: ")
		expr, _, _ = strings.Cut(expr, "\n")
		var labels []string
		found := metricIn.FindAllStringSubmatch(expr, -1)
		for _, m := range found {
			of, ok := known[m[1]]
			if !ok {
				of, ok = known[strings.TrimSuffix(m[1], "_count")]
			}
			if !ok {
				t.Errorf("%s: there is no metric %s", name, m[1])
			}
			labels = append(labels, of...)
			for label := range strings.SplitSeq(m[2], ",") {
				if key, _, _ := strings.Cut(label, "="); label != "" && !slices.Contains(of, strings.TrimRight(key, "!")) {
					t.Errorf("%s: %s has no label %s", name, m[1], key)
				}
			}
		}
		if len(found) == 0 {
			t.Errorf("%s has no metric: %s", name, expr)
		}
		for _, m := range regexp.MustCompile(`\$labels\.([a-z_]+)`).FindAllStringSubmatch(rule, -1) {
			if m[1] != "instance" && !slices.Contains(labels, m[1]) {
				t.Errorf("%s shows the label %s, which its metrics do not have", name, m[1])
			}
		}
		if !strings.Contains(rule, "action: ") {
			t.Errorf("%s does not say what to do", name)
		}
	}
}
