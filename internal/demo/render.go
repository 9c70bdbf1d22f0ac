package demo

import (
	"fmt"
	"io"
	"math"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"

	"github.com/slipstream-storage/slipstream/internal/report"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/internal/workload"
)

// WriteTable writes the results for a terminal.
func (r *Results) WriteTable(w io.Writer) error {
	var err error
	print := func(header []string, rows [][]string) {
		t := table.NewWriter()
		t.SetStyle(table.StyleLight)
		t.Style().Format.Header = text.FormatDefault
		toRow := func(cells []string) table.Row {
			row := make(table.Row, len(cells))
			for i, c := range cells {
				row[i] = c
			}
			return row
		}
		t.AppendHeader(toRow(header))
		var columns []table.ColumnConfig
		for i := 2; i <= len(header); i++ {
			columns = append(columns, table.ColumnConfig{Number: i, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
		t.SetColumnConfigs(columns)
		for _, row := range rows {
			t.AppendRow(toRow(row))
		}
		if err == nil {
			_, err = fmt.Fprintln(w, t.Render())
		}
	}
	print(r.costHeader(), r.costRows())
	print(r.lossHeader(), r.lossRows())
	if rows := r.wayRows(); len(rows) > 0 {
		print(wayHeader, rows)
	}
	if rows := r.earlierRows(); len(rows) > 0 {
		print(earlierHeader, rows)
	}
	return err
}

func (r *Results) costHeader() []string {
	return []string{"cost", "plain loop device", "replicated", "ratio"}
}

func (r *Results) costRows() [][]string {
	row := func(name string, value func(workload.Stats) float64, format func(float64) string) []string {
		plain, replicated := r.medianOf(false, value), r.medianOf(true, value)
		return []string{name, format(plain), format(replicated), fmt.Sprintf("%.2f", ratio(replicated, plain))}
	}
	seconds := func(s float64) string { return milliseconds(time.Duration(s * float64(time.Second))) }
	return [][]string{
		row("throughput, orders per second", ordersPerSecond, func(v float64) string { return fmt.Sprintf("%.0f", v) }),
		row("latency of an order, median", medianLatency, seconds),
		row("latency of an order, 99th percentile", p99Latency, seconds),
		{"lag of the copy under load (RPO), median", "-", r.RPO.text(r.RPO.P50), "-"},
		{"lag of the copy under load (RPO), 99th percentile", "-", r.RPO.text(r.RPO.P99), "-"},
	}
}

func (r *Results) lossHeader() []string {
	return []string{"after the failure", "one consistency group", "separate groups"}
}

func (r *Results) lossRows() [][]string {
	row := func(name string, value func(*Variant) string) []string {
		return []string{name, value(r.Joint), value(r.Separate)}
	}
	bound := func(v *Variant, s string) string {
		if v.Loss.Exact {
			return s
		}
		return "at most " + s
	}
	return [][]string{
		row("orders in the copy", func(v *Variant) string { return fmt.Sprint(v.Result.Orders) }),
		row("orders without stock movement", func(v *Variant) string { return fmt.Sprint(v.Result.OrdersWithoutStock) }),
		row("stock movements without order", func(v *Variant) string { return fmt.Sprint(v.Result.MovementsWithoutOrder) }),
		row("last order", func(v *Variant) string { return fmt.Sprintf("no. %d", v.Result.LastOrder) }),
		row("acknowledged orders lost", func(v *Variant) string { return fmt.Sprint(v.Result.LostOrders) }),
		row("first of them acknowledged before the failure", func(v *Variant) string {
			if v.Result.LostOrders == 0 {
				return "-"
			}
			return milliseconds(v.Result.LostSpan)
		}),
		row("lost as the groups report it, ordinals", func(v *Variant) string {
			if v.Loss.Exact {
				return fmt.Sprint(v.Loss.Ordinals)
			}
			return fmt.Sprintf("at least %d", v.Loss.Ordinals)
		}),
		row("lost as the groups report it, time", func(v *Variant) string {
			if v.Loss.Unbounded {
				return "unknown"
			}
			return bound(v, milliseconds(time.Duration(v.Loss.Seconds*float64(time.Second))))
		}),
		row("findings of the databases' own checks", func(v *Variant) string { return fmt.Sprint(len(v.Result.Damage)) }),
		row("from promotion to mounted volumes", func(v *Variant) string { return milliseconds(v.Mounted) }),
	}
}

// page is the HTML report.
func (r *Results) page() report.Page {
	joint, separate := r.Joint.Result, r.Separate.Result
	lead := "A shop keeps its stock in one database and its orders in another, on two volumes. Its site was killed " +
		"under load and opened at the other site."
	if r.Joint.Result.OneInstant(r.Clients) == nil {
		lead += " With both volumes in one consistency group the two databases are of one instant."
	} else {
		lead += " The copy of the consistency group is not of one instant: this is a bug."
	}
	switch {
	case separate.OrdersWithoutStock > 0:
		lead += " With a group for each of them they are not."
	default:
		lead += " With a group for each of them they happened to fit this time."
	}
	date := r.Began.Format("2 January 2006 15:04 MST")
	return report.Page{
		Title: "Slipstream: losing a site",
		Lead:  lead,
		Facts: []report.Fact{
			{Name: "date", Value: date}, {Name: "machine", Value: r.Machine},
			{Name: "workload", Value: fmt.Sprintf("%s, %s", r.Workload, words.Count(r.Clients, "client"))},
			{Name: "seed", Value: fmt.Sprint(r.Seed)},
		},
		Shares: []report.Share{ordersShare("One consistency group", joint), ordersShare("Separate groups", separate)},
		Cards: []report.Card{
			{Label: "Acknowledged orders lost, one group", Value: fmt.Sprint(joint.LostOrders), Tone: report.Neutral,
				Note: fmt.Sprintf("of %d; the newest ones", joint.Orders+joint.LostOrders)},
			{Label: "From promotion to mounted volumes", Value: milliseconds(r.Joint.Mounted), Tone: report.Neutral,
				Note: "one group, at the second site"},
			{Label: "Throughput with replication", Value: fmt.Sprintf("%.2f", r.ThroughputRatio()), Tone: report.Neutral,
				Note: fmt.Sprintf("of a plain loop device; median of %s each", words.Count(r.rounds(), "round"))},
			{Label: "Lag of the copy under load", Value: r.RPO.text(r.RPO.P50), Tone: report.Neutral,
				Note: fmt.Sprintf("median; 99th percentile %s", r.RPO.text(r.RPO.P99))},
		},
		Sections: r.sections(),
	}
}

func (r *Results) sections() []report.Section {
	sections := []report.Section{r.lossSection()}
	if r.Comeback != nil {
		sections = append(sections, r.waySection())
	}
	if r.Joint.Earlier != nil {
		sections = append(sections, r.earlierSection())
	}
	return append(sections, r.costSection(), r.jointSection(), r.separateSection(), r.methodSection())
}

// ordersShare is the headline: orders in the copy whose goods were never taken from the stock.
func ordersShare(label string, result workload.Result) report.Share {
	return report.Share{Label: label, Bad: result.OrdersWithoutStock, All: result.Orders,
		Text: fmt.Sprintf("%d of %s without stock", result.OrdersWithoutStock, words.Count(result.Orders, "order"))}
}

func (r *Results) rounds() int {
	n := 0
	for _, round := range r.Rounds {
		if round.Replicated {
			n++
		}
	}
	return n
}

func (r *Results) lossSection() report.Section {
	return report.Section{
		Title: "What the second site had",
		Table: &report.Table{Header: r.lossHeader(), Rows: r.lossRows(),
			Note: "Ordinals count every write of the volumes, those of the file system too. A lost order is one that " +
				"the application was told is committed."},
	}
}

func (r *Results) costSection() report.Section {
	var latency, throughput []report.Series
	for _, round := range r.Rounds {
		latency = append(latency, r.latency(round.Replicated, round.Acks))
		throughput = append(throughput, r.throughput(round.Replicated, round.Acks))
	}
	return report.Section{
		Title: "What replication costs",
		Paragraphs: []string{
			"The same load ran on plain loop devices and on replicated volumes in turn, because a machine's speed " +
				"changes from one second to the next. The table has medians over the rounds."},
		Table: &report.Table{Header: r.costHeader(), Rows: r.costRows()},
		Figures: []report.Figure{
			{Plot: report.Plot{Title: "Latency of orders, in turn", X: "time (s)", Y: "latency (ms)", LogY: true,
				Series: latency},
				Caption: "For each tenth of a second the median and the slowest order."},
			{Plot: report.Plot{Title: "Throughput, in turn", X: "time (s)", Y: "orders per second", Series: throughput},
				Caption: "Orders acknowledged in each tenth of a second."},
		},
	}
}

func (r *Results) jointSection() report.Section {
	return report.Section{
		Title: "One consistency group: the failure",
		Paragraphs: []string{
			"Both volumes are in one group, so every write to either of them has its place in one order. At a random " +
				"moment every process of the first site was killed with SIGKILL: databases, replicator, driver. The " +
				"second site was promoted by force, its volumes were mounted, and both databases recovered as after a " +
				"power failure.",
			failureText(r.Joint),
		},
		Figures: r.failureFigures(r.Joint, "Lag of the group", "What a failure would have lost, at each moment."),
	}
}

func (r *Results) separateSection() report.Section {
	return report.Section{
		Title: "Separate groups: why a group",
		Paragraphs: []string{
			fmt.Sprintf(
				"The same, but stock and sales are in a group each, and the stock's line to the other site is %s "+
					"slower each way. Each copy is of one instant for itself, and each database recovers. But the "+
					"instants differ: orders arrived whose goods were never taken from the stock.", milliseconds(extraDelay)),
			failureText(r.Separate),
		},
		Figures: r.failureFigures(r.Separate, "Lag of each group",
			fmt.Sprintf(
				"As the primary knows it: on the slow line a write counts as missing until its acknowledgement is "+
					"back, twice %s later.", milliseconds(extraDelay))),
	}
}

func (r *Results) methodSection() report.Section {
	return report.Section{
		Title: "How it was measured",
		Paragraphs: []string{
			"Two complete sites ran on one machine, each with its own CSI driver and replicator, connected by mutual " +
				"TLS over loopback. The volumes were provisioned, staged and published through the CSI socket. An " +
				"order takes its goods from the stock and commits; then it is written to the sales database and " +
				"committed. An order counts as acknowledged when both commits have returned, and is logged then " +
				"outside the volumes.",
			fmt.Sprintf(
				"The lag is what the primary reports every %v: how old the oldest write is that the other site does "+
					"not have on stable storage. After the failure the site was restarted, and told the other one "+
					"what exactly it had lost where the table does not say otherwise.", lagInterval),
			"A killed process is not a power failure: the kernel of the first site lived on. What the second site had " +
				"is the same in both cases, because the network ended with the process.",
		},
	}
}

func failureText(v *Variant) string {
	s := fmt.Sprintf("The copy has %s, the last one is no. %d. ", words.Count(v.Result.Orders, "order"),
		v.Result.LastOrder)
	if v.Result.LostOrders == 0 {
		s += "No acknowledged order was lost. "
	} else {
		s += fmt.Sprintf("%s %s lost, the first of them %s before the failure. ",
			words.Count(v.Result.LostOrders, "acknowledged order"), words.Choose(v.Result.LostOrders, "was", "were"),
			milliseconds(v.Result.LostSpan))
	}
	return s + fmt.Sprintf("The volumes were mounted %s after the call to promote.", milliseconds(v.Mounted))
}

// failureFigures show the last seconds of the load, and the lag, with a mark where the site died.
func (r *Results) failureFigures(v *Variant, lagTitle, lagCaption string) []report.Figure {
	markers := []report.Marker{
		{X: r.at(v.Killed), Label: fmt.Sprintf("site A dies, at %.1f s", r.at(v.Killed))},
		{X: r.at(v.Served), Label: fmt.Sprintf("site B mounted, at %.1f s", r.at(v.Served))},
	}
	var begin time.Time
	if len(v.Acks) > 0 {
		begin = v.Acks[0].Start
	}
	var lag []report.Series
	for i, name := range v.Groups {
		s := report.Series{Name: "group " + name, Style: report.Line, Hue: hueReplicated + i}
		for _, sample := range v.Lag[name] {
			// Between the rounds before there was no load on it.
			if !sample.At.Before(begin) && !sample.At.After(v.Killed) {
				s.Points = append(s.Points, report.Point{X: r.at(sample.At), Y: sample.Lag.Seconds() * 1000})
			}
		}
		lag = append(lag, s)
	}
	return []report.Figure{
		{Plot: report.Plot{Title: "Latency of orders until the failure", X: "time (s)", Y: "latency (ms)", LogY: true,
			Series: []report.Series{r.latency(true, v.Acks)}, Markers: markers},
			Caption: "For each tenth of a second the median and the slowest order."},
		{Plot: report.Plot{Title: lagTitle + " until the failure", X: "time (s)", Y: "lag (ms)", Series: lag,
			Markers: markers},
			Caption: lagCaption},
	}
}

// at is a time on the reports' axes.
func (r *Results) at(t time.Time) float64 { return t.Sub(r.Began).Seconds() }

// seriesInterval is how finely the reports show time.
const seriesInterval = 100 * time.Millisecond

// Colours of things that several plots show.
const (
	huePlain      = 1
	hueReplicated = 2
)

func hue(replicated bool) int {
	if replicated {
		return hueReplicated
	}
	return huePlain
}

func (r *Results) latency(replicated bool, acks []workload.Ack) report.Series {
	workload.SortAcks(acks)
	s := report.Series{Name: deviceName(replicated), Style: report.Dots, Hue: hue(replicated)}
	for _, sample := range workload.TimeSeries(acks, seriesInterval) {
		x := r.at(sample.At)
		s.Points = append(s.Points, report.Point{X: x, Y: sample.P50.Seconds() * 1000}, report.Point{X: x,
			Y: sample.Max.Seconds() * 1000})
	}
	return s
}

func (r *Results) throughput(replicated bool, acks []workload.Ack) report.Series {
	workload.SortAcks(acks)
	s := report.Series{Name: deviceName(replicated), Style: report.Line, Hue: hue(replicated)}
	for _, sample := range workload.TimeSeries(acks, seriesInterval) {
		s.Points = append(s.Points, report.Point{X: r.at(sample.At), Y: sample.OrdersPerSecond})
	}
	return s
}

func deviceName(replicated bool) string {
	if replicated {
		return "replicated"
	}
	return "plain loop device"
}

// milliseconds writes a duration with two or three digits.
func milliseconds(d time.Duration) string {
	ms := d.Seconds() * 1000
	switch {
	case ms >= 10000:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case ms >= 100:
		return fmt.Sprintf("%.0f ms", ms)
	case ms >= 10:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return fmt.Sprintf("%.2f ms", ms)
}

func round(v float64, digits int) float64 {
	scale := math.Pow(10, float64(digits))
	return math.Round(v*scale) / scale
}
