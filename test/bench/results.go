package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/slipstream-storage/slipstream/internal/report"
)

// title is the row's name with its variant.
func (r row) title() string {
	if r.Variant != "" && r.Variant != againstPeer && r.Variant != string(replicated) {
		return r.Name + " (" + r.Variant + ")"
	}
	return r.Name
}

// target is what should be reached, and whether it was.
func (r row) target() string {
	if r.Target == nil {
		return "-"
	}
	target := figure(*r.Target)
	if r.AtMost {
		target = "≤ " + target
		if r.Ratio == nil {
			target += " " + r.Unit
		}
	}
	if r.Met != nil && *r.Met {
		return target + " met"
	}
	return target + " missed"
}

// cells are those of one setting.
func (r row) cells() []string {
	result := figure(r.Value)
	if r.Ratio != nil {
		result = fmt.Sprintf("%.2f", *r.Ratio)
	}
	median, p99 := figure(r.Value), "-"
	if r.Baseline > 0 {
		median += " / " + figure(r.Baseline)
		if r.Against == string(driverPlain) {
			median += "*"
		}
	}
	if r.P99Millis > 0 {
		p99 = figure(r.P99Millis) + " / " + figure(r.BaselineP99Millis)
	}
	result += fmt.Sprintf(" (%s .. %s)", figure(r.Spread[0]), figure(r.Spread[1]))
	return []string{result, r.target(), median, p99}
}

var settingHeader = []string{"target", "median / baseline", "p99 ms"}

var rowHeader = slices.Concat([]string{"load", string(oneMachine)}, settingHeader, []string{string(twoHosts)},
	settingHeader, []string{"unit"})

// ordered has the rows of replicated volumes first, then each other variant's.
func (r *results) ordered() []row {
	var ordered []row
	for _, v := range []variant{replicated, oneGroup, "", againstPeer, off, flushed, plain, driverPlain, peerAlone, peer,
		peerSync} {
		for _, row := range r.rows() {
			if row.Variant == string(v) {
				ordered = append(ordered, row)
			}
		}
	}
	return ordered
}

// lines are the rows with both settings beside each other.
func (r *results) lines() []resultLine {
	var lines []resultLine
	for _, of := range r.ordered() {
		i := slices.IndexFunc(lines, func(l resultLine) bool { return l.title == of.title() && l.unit == of.Unit })
		if i < 0 {
			i = len(lines)
			lines = append(lines, resultLine{title: of.title(), unit: of.Unit, variant: of.Variant,
				ratio: of.Ratio != nil, by: map[setting]row{}})
		}
		lines[i].by[cmp.Or(of.Setting, oneMachine)] = of
	}
	return lines
}

// rowCells are the lines with all their cells.
func (r *results) rowCells() [][]string {
	var all [][]string
	for _, l := range r.lines() {
		line := []string{l.title}
		for _, s := range []setting{oneMachine, twoHosts} {
			if of, ok := l.by[s]; ok {
				line = append(line, of.cells()...)
			} else {
				line = append(line, "-", "-", "-", "-")
			}
		}
		all = append(all, append(line, l.unit))
	}
	return all
}

// writeTable writes the rows for a terminal.
func (r *results) writeTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(rowHeader, "\t"))
	for _, cells := range r.rowCells() {
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, tableNote)
	return err
}

// tableNote explains what the cells have.
const tableNote = "A ratio is to the baseline, the better of a buffered loop device and the driver's plain volume " +
	"(*); in brackets its smallest and largest value of the rounds."

var costHeader = []string{"load", "setting", "on", "machine CPU µs", "machine switches", "replicator CPU µs",
	"switches", "read calls", "write calls", "secondary CPU µs", "CPU µs/MiB here, there"}

func (k cost) cells() []string {
	perMiB := "-"
	if k.HereCPUPerMiB > 0 {
		perMiB = figure(k.HereCPUPerMiB) + ", " + figure(k.ThereCPUPerMiB)
	}
	return []string{k.Name, string(cmp.Or(k.Setting, oneMachine)), k.Variant, figure(k.MachineCPU),
		figure(k.MachineSwitches), figure(k.HereCPU),
		figure(k.HereSwitches),
		figure(k.HereReads), figure(k.HereWrites), figure(k.ThereCPU), perMiB}
}

func (r *results) writeCosts(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(costHeader, "\t"))
	for _, k := range r.costs() {
		fmt.Fprintln(t, strings.Join(k.cells(), "\t"))
	}
	return t.Flush()
}

// writeFiles writes summary.json with the rows alone, results.json with everything, report.html and table.md.
func (r *results) writeFiles(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var written []string
	for name, value := range map[string]any{"summary.json": r.ordered(), resultsFile: r} {
		text, err := json.MarshalIndent(value, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
			return nil, err
		}
		written = append(written, path)
	}
	markdown := filepath.Join(dir, "table.md")
	if err := os.WriteFile(markdown, []byte(r.markdown()), 0o644); err != nil {
		return nil, err
	}
	page := filepath.Join(dir, "report.html")
	if err := r.page().WriteFile(page); err != nil {
		return nil, err
	}
	return append(written, markdown, page), nil
}

// markdown is the part of docs/design/performance-notes.md: all tables.
func (r *results) markdown() string {
	var b strings.Builder
	b.WriteString(r.measuredBy() + "\n\n")
	table := func(header []string, rows [][]string) { writeMarkdown(&b, header, rows) }
	table(rowHeader, r.rowCells())
	b.WriteString("Per operation of the load (a write with its flush if it has one, a read, a transaction):\n\n")
	table(costHeader, r.costCells())
	if len(r.calls()) > 0 {
		b.WriteString("System calls of the replicators per operation of the load, under strace:\n\n")
		table(callsHeader, r.callCells())
	}
	b.WriteString("When each was measured:\n\n")
	table(pieceHeader, r.pieceCells())
	return b.String()
}

func (r *results) costCells() [][]string {
	var cells [][]string
	for _, k := range r.costs() {
		cells = append(cells, k.cells())
	}
	return cells
}

func (r *results) callCells() [][]string {
	var cells [][]string
	for _, k := range r.calls() {
		cells = append(cells, k.cells())
	}
	return cells
}

// page is the report for a browser.
func (r *results) page() report.Page {
	var met, judged int
	for _, row := range r.rows() {
		if row.Met != nil {
			judged++
			if *row.Met {
				met++
			}
		}
	}
	p := report.Page{
		Title: "Slipstream: what replication costs",
		Lead: fmt.Sprintf(
			"The same loads on plain volumes and on replicated volumes of two sites on this machine, in turn: "+
				"%d of %d targets are met.",
			met, judged),
		Facts: []report.Fact{
			{Name: "date", Value: r.when()}, {Name: "machine", Value: r.Machine},
		},
	}
	for _, row := range r.ordered() {
		if row.Target == nil || row.Variant == string(off) {
			continue
		}
		card := report.Card{Label: row.Name + ", " + string(cmp.Or(row.Setting, oneMachine)),
			Value: figure(row.Value) + " " + row.Unit, Note: "target " + row.target(), Tone: report.Bad}
		if row.Ratio != nil {
			card.Value = fmt.Sprintf("%.2f", *row.Ratio)
		}
		if *row.Met {
			card.Tone = report.Good
		}
		p.Cards = append(p.Cards, card)
	}
	p.Sections = append(p.Sections, report.Section{
		Title: "Ratios and targets", Paragraphs: r.method(),
		Table: &report.Table{Header: rowHeader, Rows: r.rowCells(),
			Note: tableNote + " " + r.notes()},
		Figures: r.figures(),
	})
	var rounds []report.Figure
	for _, p := range r.Pieces {
		if p.Rounds != nil {
			rounds = append(rounds, *p.Rounds)
		}
	}
	if len(rounds) > 0 {
		p.Sections = append(p.Sections, report.Section{Title: "All rounds", Figures: rounds})
	}
	if len(r.costs()) > 0 {
		p.Sections = append(p.Sections, report.Section{
			Title: "Where the time goes",
			Paragraphs: []string{
				"Per operation of the load: a write with its flush if it has one, a read, a transaction. The " +
					"machine's numbers include the load itself and whatever else ran."},
			Table: &report.Table{Header: costHeader, Rows: r.costCells()},
		})
	}
	if len(r.calls()) > 0 {
		p.Sections = append(p.Sections, report.Section{
			Title: "System calls",
			Paragraphs: []string{
				"Of the replicators per operation of the load, counted by strace, which slows them down several times."},
			Table: &report.Table{Header: callsHeader, Rows: r.callCells()},
		})
	}
	p.Sections = append(p.Sections, report.Section{Title: "When each was measured",
		Table: &report.Table{Header: pieceHeader, Rows: r.pieceCells()}})
	return p
}

// when is the time from the first piece to the last.
func (r *results) when() string {
	if len(r.Pieces) == 0 {
		return "-"
	}
	first, last := r.Pieces[0].Began, r.Pieces[0].Ended
	for _, p := range r.Pieces {
		if p.Began.Before(first) {
			first = p.Began
		}
		if p.Ended.After(last) {
			last = p.Ended
		}
	}
	const day = "2 January 2006"
	if from, to := first.UTC().Format(day), last.UTC().Format(day); from != to {
		return from + " to " + to
	}
	return last.UTC().Format(day) + ", " + first.UTC().Format("15:04") + " to " + last.UTC().Format("15:04 UTC")
}

// notes are those of the rows, each once.
func (r *results) notes() string {
	var notes []string
	seen := map[string]bool{"": true}
	for _, row := range r.rows() {
		if note := row.Name + ": " + row.Note; row.Note != "" && !seen[note] {
			seen[note] = true
			notes = append(notes, note+".")
		}
	}
	return strings.Join(notes, " ")
}

// figure shows a comparison's rounds.
func (c *comparison) figure() report.Figure {
	p := report.Plot{Title: c.name, X: "round", Y: c.load.unit()}
	for i, v := range variants {
		s := report.Series{Name: string(v), Style: report.Line, Hue: i + 1}
		values := c.values(v)
		for round := range len(values) {
			if value, ok := values[round]; ok {
				s.Points = append(s.Points, report.Point{X: float64(round + 1), Y: value})
			}
		}
		p.Series = append(p.Series, s)
	}
	return report.Figure{Plot: p}
}
