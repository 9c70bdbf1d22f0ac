// Command monitoring writes the Grafana dashboards of the chart: `go run . DIRECTORY`. It is a module of its own,
// because Prometheus brings a few hundred packages along that the project has no use for. Its tests hold the alert
// rules and the dashboards to the metrics that the programs have, run the rules with promtool, and read the dashboards
// by Grafana's schema.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: monitoring DIRECTORY")
		os.Exit(2)
	}
	for _, b := range boards {
		text, err := b.json()
		if err == nil {
			err = os.WriteFile(filepath.Join(os.Args[1], b.name+".json"), text, 0o644)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "monitoring: dashboard %s: %v\n", b.name, err)
			os.Exit(1)
		}
	}
}

// kind is how a panel shows its queries.
type kind int

const (
	graph  kind = iota // over time
	number             // the newest value
	list               // a table of the newest values
)

// query is one PromQL expression. legend names its series; labels stand in double braces.
type query struct{ expr, legend string }

// panel is one rectangle of a dashboard. Of its 24 columns it takes width.
type panel struct {
	kind    kind
	title   string
	about   string // shown at the title
	unit    string // a unit of Grafana; empty for a plain number
	width   uint32
	queries []query
	words   map[string]string // for values: 0 and 1 as words
}

// row is a heading with the panels below it.
type row struct {
	title  string
	panels []panel
}

// variable is a choice at the top of a dashboard: the values that a label has.
type variable struct{ name, label, query string }

// board is one dashboard. uid is its address in Grafana, which other dashboards link to.
type board struct {
	name, uid, title, about string
	variables               []variable
	rows                    []row
}

// source is the data source that the reader chooses.
var source = common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("${datasource}")}

func (b *board) json() ([]byte, error) {
	builder := dashboard.NewDashboardBuilder(b.title).Uid(b.uid).Description(b.about).Tags([]string{"slipstream"}).
		Time("now-1h", "now").Refresh("30s").Timezone("browser").Tooltip(dashboard.DashboardCursorSyncCrosshair).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		Link(dashboard.NewDashboardLinkBuilder("Slipstream").Type(dashboard.DashboardLinkTypeDashboards).
			Tags([]string{"slipstream"}).AsDropdown(true).KeepTime(true))
	for _, v := range b.variables {
		builder.WithVariable(dashboard.NewQueryVariableBuilder(v.name).Label(v.label).Datasource(source).
			Query(dashboard.StringOrMap{String: cog.ToPtr(v.query)}).Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
			Sort(dashboard.VariableSortAlphabeticalAsc).Multi(true).IncludeAll(true).AllValue(".*"))
	}
	for _, r := range b.rows {
		builder.WithRow(dashboard.NewRowBuilder(r.title))
		for _, p := range r.panels {
			builder.WithPanel(p.build())
		}
	}
	built, err := builder.Build()
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(built, "", "  ")
	return append(text, '\n'), err
}

const (
	smallHeight = 4
	largeHeight = 8
)

func (p *panel) build() cog.Builder[dashboard.Panel] {
	switch p.kind {
	case number:
		b := stat.NewPanelBuilder().Title(p.title).Description(p.about).Datasource(source).Unit(p.unit).Span(p.width).
			Height(smallHeight).ColorMode(common.BigValueColorModeNone).NoValue("unknown").Mappings(p.mappings())
		for _, q := range p.queries {
			b.WithTarget(target(q).Instant())
		}
		return b
	case list:
		b := table.NewPanelBuilder().Title(p.title).Description(p.about).Datasource(source).Unit(p.unit).Span(p.width).
			Height(largeHeight).Mappings(p.mappings()).
			// Hidden. The schema wants a reducer in any case.
			Footer(common.NewTableFooterOptionsBuilder().Show(false).Reducer([]string{"sum"}))
		for _, q := range p.queries {
			b.WithTarget(target(q).Instant().Format(prometheus.PromQueryFormatTable))
		}
		return b
	}
	b := timeseries.NewPanelBuilder().Title(p.title).Description(p.about).Datasource(source).Unit(p.unit).Span(p.width).
		Height(largeHeight).FillOpacity(0).LineWidth(1).ShowPoints(common.VisibilityModeNever).
		Legend(common.NewVizLegendOptionsBuilder().ShowLegend(true).DisplayMode(common.LegendDisplayModeList).
			Placement(common.LegendPlacementBottom))
	for _, q := range p.queries {
		b.WithTarget(target(q).Range())
	}
	return b
}

func target(q query) *prometheus.DataqueryBuilder {
	return prometheus.NewDataqueryBuilder().Expr(q.expr).LegendFormat(q.legend)
}

// mappings show words in place of numbers.
func (p *panel) mappings() []dashboard.ValueMapping {
	if len(p.words) == 0 {
		return nil
	}
	options := map[string]dashboard.ValueMappingResult{}
	for value, word := range p.words {
		options[value] = dashboard.ValueMappingResult{Text: cog.ToPtr(word)}
	}
	return []dashboard.ValueMapping{{ValueMap: &dashboard.ValueMap{Type: "value", Options: options}}}
}
