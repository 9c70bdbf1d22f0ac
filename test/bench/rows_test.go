package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/report"
)

func TestStats(t *testing.T) {
	for _, test := range []struct {
		values        []float64
		median, q, lo float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{4, 1}, 2.5, 4, 1},
		{[]float64{9, 1, 5}, 5, 9, 1},
		{[]float64{4, 3, 2, 1}, 2.5, 4, 1},
	} {
		low, high := spread(test.values)
		if m, q := median(test.values), quantile(test.values,
			0.99); m != test.median || q != test.q || low != test.lo || high != test.q {
			t.Errorf("%v: median %v, 99th percentile %v, spread %v to %v", test.values, m, q, low, high)
		}
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(quantile(nil, 0.5)) {
		t.Error("a number made of nothing")
	}
}

// testComparison: the ratios of the rounds are 0.5, 1 and 2, while that of the medians would be 1.5.
func testComparison() *comparison {
	c := &comparison{name: "load", load: fioLoad{blockSize: 4096},
		targets: map[variant]float64{replicated: 0.95, off: 1.1, flushed: 0}}
	for round, values := range [][3]float64{{100, 50, 100}, {200, 200, 200}, {300, 600, 300}} {
		for i, v := range []variant{plain, replicated, off} {
			c.add(v, round, sample{value: values[i], operations: values[i], bytes: values[i] * (1 << 20), p99: time.Millisecond,
				machine: usage{CPU: time.Second}, here: usage{CPU: time.Second, Switches: 10}, there: usage{CPU: time.Second / 2}})
		}
	}
	return c
}

func TestRows(t *testing.T) {
	rows := testComparison().rows()
	if len(rows) != 2 {
		t.Fatalf("%d rows: %+v", len(rows), rows)
	}
	r := rows[0]
	if r.Variant != string(replicated) || *r.Ratio != 1 || r.Spread != [2]float64{0.5, 2} || r.Rounds != 3 || !*r.Met ||
		r.Value != 200 || r.Baseline != 200 {
		t.Errorf("replicated: %+v", r)
	}
	if r = rows[1]; *r.Ratio != 1 || *r.Met {
		t.Errorf("a ratio of 1 for a target of 1.1: %+v", r)
	}
	c := testComparison()
	delete(c.samples[plain], 0)
	if r := c.rows()[0]; r.Rounds != 2 || *r.Ratio != 1.5 {
		t.Errorf("without the baseline of one round: %+v", r)
	}
}

// TestBaseline: ratios are to the better one of the two plain variants, and of raw loads without a flush to the
// driver's.
func TestBaseline(t *testing.T) {
	for _, test := range []struct {
		load         load
		driver, want float64 // of 100 on the loop device; ratio of 50 on the replicated volume
		against      variant
	}{
		{fsyncEach, 200, 0.25, driverPlain},
		{fsyncEach, 10, 0.5, plain},
		{fioLoad{pattern: "randwrite", blockSize: kib4}, 10, 5, driverPlain},
		{pgLoad{}, 10, 0.5, plain},
	} {
		c := &comparison{load: test.load, slowest: 1.5}
		c.add(plain, 0, sample{value: 100, p99: 4 * time.Millisecond})
		c.add(driverPlain, 0, sample{value: test.driver, p99: 4 * time.Millisecond})
		c.add(replicated, 0, sample{value: 50, p99: 8 * time.Millisecond})
		var seen int
		for _, r := range c.rows() {
			switch {
			case r.Variant == string(test.against):
				t.Errorf("%+v: the baseline has a row", test)
			case r.AtMost:
				seen++
				if *r.Ratio != 2 || *r.Met {
					t.Errorf("%+v: p99 %+v", test, r)
				}
			case r.Variant == string(replicated):
				seen++
				if *r.Ratio != test.want || r.Against != string(test.against) {
					t.Errorf("%+v: ratio %v against %s", test, *r.Ratio, r.Against)
				}
			}
		}
		if seen != 2 {
			t.Errorf("%+v: rows %+v", test, c.rows())
		}
	}
}

// TestSettings: the results of a load in both settings are in one line.
func TestSettings(t *testing.T) {
	r := &results{}
	for _, s := range []setting{oneMachine, twoHosts} {
		p := (&env{}).newPiece("load")
		p.Setting = s
		p.fill(testComparison())
		r.take(p.end())
	}
	if cells := r.rowCells(); len(r.Pieces) != 2 || len(cells) != 2 || len(cells[0]) != len(rowHeader) ||
		cells[0][1] != "1.00 (0.50 .. 2.00)" || cells[0][5] != cells[0][1] || cells[0][2] != "0.95 met" {
		t.Errorf("%d pieces, %q", len(r.Pieces), cells)
	}
	p := (&env{}).newPiece("lag")
	p.Rows = []row{measured("lag", []float64{10}, "ms", 50, "")}
	r.take(p.end())
	if cells := r.rowCells(); cells[1][0] != "lag" || cells[1][5] != "-" {
		t.Errorf("a row of one setting: %q", cells)
	}
}

func TestPeerRows(t *testing.T) {
	c := testComparison()
	for round := range 3 {
		c.add(peer, round, sample{value: 100})
	}
	r := c.peerRows()
	if len(r) != 1 || *r[0].Ratio != 2 || *r[0].Target != targetPeer || r[0].Baseline != 100 || !*r[0].Met {
		t.Errorf("without flushes: %+v", r)
	}
	c.load = fsyncEach
	if r = c.peerRows(); *r[0].Target != targetPeerFlush {
		t.Errorf("with flushes: %+v", r)
	}
}

func TestCPURows(t *testing.T) {
	c := testComparison()
	if rows := c.cpuRows(); rows != nil {
		t.Errorf("of a load without flushes: %+v", rows)
	}
	c.load = fsyncEach
	c.add(replicated, 0, sample{flushes: 1e6, here: usage{CPU: 50 * time.Second}, there: usage{CPU: 20 * time.Second}})
	if rows := c.cpuRows(); len(rows) != 2 || rows[0].Value != 50 || rows[1].Value != 20 ||
		rows[0].Unit != "µs per flush" {
		t.Errorf("per flush: %+v", rows)
	}
	c.load = fioLoad{pattern: "write", blockSize: 1 << 20, flushEvery: 64}
	c.add(replicated, 0, sample{bytes: 100 << 20, here: usage{CPU: time.Second}})
	if rows := c.cpuRows(); rows[0].Spread[1] != 1e4 {
		t.Errorf("per MiB: %+v", rows)
	}
}

func TestMeasuredAgainstAnUpperBound(t *testing.T) {
	if r := measured("lag", []float64{10, 60}, "ms", 50, ""); !*r.Met || r.Value != 35 {
		t.Errorf("35 ms of 50: %+v", r)
	}
	if r := measured("lag", []float64{60}, "ms", 50, ""); *r.Met {
		t.Errorf("60 ms of 50: %+v", r)
	}
	if r := measured("lag", []float64{60}, "ms", 0, ""); r.Met != nil || r.Target != nil {
		t.Errorf("without a bound: %+v", r)
	}
}

func TestCosts(t *testing.T) {
	for _, k := range testComparison().costs() {
		if k.Variant != string(replicated) {
			continue
		}
		// Three rounds: 3 s of CPU for 850 operations of 1 MiB.
		if want := 3e6 / 850; math.Abs(k.HereCPU-want) > 1e-6 || math.Abs(k.HereCPUPerMiB-want) > 1e-6 ||
			math.Abs(k.ThereCPU-want/2) > 1e-6 {
			t.Errorf("%+v", k)
		}
		return
	}
	t.Error("no cost of the replicated volume")
}

func TestGrowth(t *testing.T) {
	var flat, leak []report.Point
	for i := range 100 {
		flat = append(flat, report.Point{X: float64(i), Y: 50 + float64(i%7)})
		leak = append(leak, report.Point{X: float64(i), Y: 50 + float64(i)})
	}
	if g, err := growth(flat); err != nil || g > flatGrowth {
		t.Errorf("a saw tooth: %v, %v", g, err)
	}
	if g, err := growth(leak); err != nil || g <= flatGrowth {
		t.Errorf("a leak: %v, %v", g, err)
	}
	if _, err := growth(flat[:4]); err == nil {
		t.Error("growth of four samples")
	}
}

func TestResultFiles(t *testing.T) {
	r := testResults()
	dir := filepath.Join(t.TempDir(), "results")
	written, err := r.writeFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range written {
		if info, err := os.Stat(path); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []map[string]any
	if err := json.Unmarshal(text, &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 3 || rows[0]["name"] != "load" || rows[0]["ratio"] != 1.0 || rows[0]["target"] != 0.95 ||
		rows[1]["ratio"] != nil {
		t.Errorf("summary.json: %s", text)
	}
	var table bytes.Buffer
	if err := r.writeTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"replication off", "missed", "≤ 50.0 ms"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("no %q in\n%s", want, &table)
		}
	}
}

// testResults are of a load that was measured, one that was not, and a stage with a row and a plot.
func testResults() *results {
	e := &env{commit: "abc", mode: "bench-quick"}
	r := &results{Machine: "a machine"}
	for _, c := range []*comparison{testComparison(), {name: "never ran", load: pgLoad{}}} {
		p := e.newPiece(c.name)
		p.fill(c)
		if p = p.end(); p != nil {
			r.take(p)
		}
	}
	p := e.newPiece("lag, near")
	p.Rows = []row{measured("lag", []float64{10}, "ms", 50, "a note")}
	p.Figures = []report.Figure{
		{Plot: report.Plot{Title: "Lag", Series: []report.Series{{Name: "near", Points: []report.Point{{X: 1, Y: 2}}}}}}}
	r.take(p.end())
	return r
}

// TestMerge: a second run adds what it measured, and replaces what it measured again.
func TestMerge(t *testing.T) {
	dir := t.TempDir()
	first := testResults()
	if _, err := first.writeFiles(dir); err != nil {
		t.Fatal(err)
	}
	second := &results{Machine: "a machine"}
	if err := second.merge(dir); err != nil {
		t.Fatal(err)
	}
	e := &env{commit: "def", mode: "bench"}
	for _, name := range []string{"lag, far", "load"} {
		p := e.newPiece(name)
		p.Rows = []row{measured(name, []float64{20}, "ms", 50, "")}
		p.Figures = []report.Figure{{Plot: report.Plot{Title: "Lag", Series: []report.Series{{Name: name}}}}}
		second.take(p.end())
	}
	var names, commits []string
	for _, row := range second.rows() {
		names, commits = append(names, row.Name), append(commits, row.Commit)
	}
	if got := strings.Join(names, "; "); got != "load; lag; lag, far" || strings.Join(commits, " ") != "def abc def" {
		t.Errorf("rows %s of %v", got, commits)
	}
	if f := second.figures(); len(f) != 1 || len(f[0].Plot.Series) != 3 || f[0].Plot.Series[1].Points[0].Y != 2 {
		t.Errorf("the lines' plots did not become one with the points that were stored: %+v", f)
	}
	if f := first.figures(); len(f[0].Plot.Series) != 1 {
		t.Error("figures changed the piece")
	}
	other := &results{Machine: "another machine"}
	if err := other.merge(dir); err == nil || len(other.Pieces) > 0 {
		t.Errorf("merged the results of another machine: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, resultsFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := second.merge(dir); err == nil {
		t.Error("merged half a file")
	}
}
