package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
)

const boardsDir = root + "/deploy/charts/slipstream/files/dashboards"

// TestBoards: the files of the chart are what this module writes. They are dashboards by Grafana's schema, whose types
// know every field. Every query is PromQL, with metrics and labels that the programs have.
func TestBoards(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	files, err := os.ReadDir(boardsDir)
	if err != nil || len(files) != len(boards) {
		t.Errorf("%d files, %v", len(files), err)
	}
	uids := map[string]bool{}
	for _, b := range boards {
		t.Run(b.name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(boardsDir, b.name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			if made, err := b.json(); err != nil || string(made) != string(text) {
				t.Errorf("the file is stale (%v): run make generate", err)
			}
			// Reading strictly finds unknown fields, and leaves the panels out.
			if err := faults(new(dashboard.Dashboard).UnmarshalJSONStrict(text)); err != nil {
				t.Fatalf("not a dashboard by Grafana's schema: %v", err)
			}
			var d dashboard.Dashboard
			if err := json.Unmarshal(text, &d); err != nil {
				t.Fatal(err)
			}
			if err := faults(d.Validate()); err != nil {
				t.Errorf("not a dashboard by Grafana's schema: %v", err)
			}
			if uids[*d.Uid] {
				t.Errorf("two dashboards have the uid %s", *d.Uid)
			}
			uids[*d.Uid] = true
			checkVariables(t, &d)
			checkPanels(t, &d)
		})
	}
}

// faults is nil for a list of none, which the schema's types return without faults.
func faults(err error) error {
	var list cog.BuildErrors
	if errors.As(err, &list) && len(list) == 0 {
		return nil
	}
	return err
}

// variables of Grafana that stand in the expressions, and what they can be.
var variables = strings.NewReplacer("$__rate_interval", "5m", "$group", "shop", "$instance", "node-1:9812")

func checkVariables(t *testing.T, d *dashboard.Dashboard) {
	t.Helper()
	for _, v := range d.Templating.List {
		if v.Type != dashboard.VariableTypeQuery {
			continue
		}
		m := regexp.MustCompile(`^label_values\((\w+), (\w+)\)$`).FindStringSubmatch(*v.Query.String)
		if m == nil {
			t.Errorf("variable %s: %s", v.Name, *v.Query.String)
			continue
		}
		if of, ok := metrics(t)[m[1]]; !ok || !slices.Contains(append(of, scraped...), m[2]) {
			t.Errorf("variable %s: %s has no label %s", v.Name, m[1], m[2])
		}
	}
}

func checkPanels(t *testing.T, d *dashboard.Dashboard) {
	t.Helper()
	var panels, queries int
	var check func(p *dashboard.Panel)
	check = func(p *dashboard.Panel) {
		panels++
		if p.GridPos == nil || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %q is wider than the dashboard", *p.Title)
		}
		for _, target := range p.Targets {
			q, ok := target.(*prometheus.Dataquery)
			if !ok {
				t.Errorf("panel %q has a query of %T", *p.Title, target)
				continue
			}
			queries++
			of := checkExpression(t, *p.Title, variables.Replace(q.Expr))
			for _, m := range regexp.MustCompile(`\{\{(\w+)\}\}`).FindAllStringSubmatch(*q.LegendFormat, -1) {
				if !slices.Contains(of, m[1]) {
					t.Errorf("panel %q: its legend shows the label %s, which its metrics do not have", *p.Title, m[1])
				}
			}
		}
	}
	for _, p := range d.Panels {
		if p.Panel != nil {
			check(p.Panel)
		}
		if p.RowPanel != nil {
			for i := range p.RowPanel.Panels {
				check(&p.RowPanel.Panels[i])
			}
		}
	}
	if panels < 8 || queries < panels {
		t.Errorf("%d panels with %d queries", panels, queries)
	}
}

// TestSchemaRefuses: the schema is no check if it takes everything.
func TestSchemaRefuses(t *testing.T) {
	plugins.RegisterDefaultPlugins()
	text, err := os.ReadFile(filepath.Join(boardsDir, "fleet.json"))
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(map[string]any){
		"an unknown field": func(d map[string]any) { d["titel"] = "x" },
		"a wrong type":     func(d map[string]any) { d["panels"] = "none" },
		"a panel's field": func(d map[string]any) {
			d["panels"].([]any)[1].(map[string]any)["gridPosition"] = 1
		},
	} {
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatal(err)
		}
		change(fields)
		changed, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		if err := faults(new(dashboard.Dashboard).UnmarshalJSONStrict(changed)); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
