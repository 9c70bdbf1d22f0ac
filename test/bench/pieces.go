package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/report"
)

// piece is what was measured in one go: a load on its variants, or a stage of another kind. Pieces of several runs on
// one machine make up one set of results, because an hour without other work on a machine is rare.
type piece struct {
	Name    string  `json:"name"`
	Setting setting `json:"setting,omitempty"`

	Began  time.Time `json:"began"`
	Ended  time.Time `json:"ended"`
	Commit string    `json:"commit"`
	Mode   string    `json:"mode"`
	Method []string  `json:"method"`

	Rows  []row   `json:"rows"`
	Costs []cost  `json:"costs,omitempty"`
	Calls []calls `json:"calls,omitempty"`
	// Samples are all throughputs, by variant and round.
	Samples map[variant]map[int]float64 `json:"samples,omitempty"`
	// Figures are the stage's own, Rounds the one of a load.
	Figures []report.Figure `json:"figures,omitempty"`
	Rounds  *report.Figure  `json:"rounds,omitempty"`
}

// results are pieces, each measured once or, when it was measured again, as it was the last time.
type results struct {
	Machine string   `json:"machine"`
	Pieces  []*piece `json:"pieces"`
}

// take takes a piece in the place of an older one of its name.
func (r *results) take(p *piece) {
	same := func(old *piece) bool {
		return old.Name == p.Name && cmp.Or(old.Setting, oneMachine) == cmp.Or(p.Setting, oneMachine)
	}
	if i := slices.IndexFunc(r.Pieces, same); i >= 0 {
		r.Pieces[i] = p
		return
	}
	r.Pieces = append(r.Pieces, p)
}

const resultsFile = "results.json"

// merge begins with what earlier runs left in a directory. Numbers of two machines do not belong into one table.
func (r *results) merge(dir string) error {
	earlier, err := readResults(dir)
	if err != nil {
		return err
	}
	if len(earlier.Pieces) > 0 && earlier.Machine != r.Machine {
		return fmt.Errorf("%s is of another machine (%s; this is %s): choose another directory with --results",
			filepath.Join(dir, resultsFile), earlier.Machine, r.Machine)
	}
	r.Pieces = earlier.Pieces
	return nil
}

// newPiece begins a piece.
func (e *env) newPiece(name string) *piece {
	return &piece{Name: name, Began: time.Now(), Commit: e.commit, Mode: e.mode, Method: e.method()}
}

// end completes a piece and its rows. A piece in which nothing was measured is nil.
func (p *piece) end() *piece {
	if len(p.Rows) == 0 && len(p.Calls) == 0 {
		return nil
	}
	p.Ended = time.Now()
	for i := range p.Rows {
		p.Rows[i].Setting = cmp.Or(p.Setting, oneMachine)
		p.Rows[i].Measured, p.Rows[i].Commit = p.Ended.UTC().Truncate(time.Second), p.Commit
	}
	return p
}

// fill takes a comparison in.
func (p *piece) fill(c *comparison) {
	if len(c.samples) == 0 {
		return // an error came before
	}
	p.Rows = append(p.Rows, c.rows()...)
	p.Costs = append(p.Costs, c.costs()...)
	for i := range p.Costs {
		p.Costs[i].Setting = cmp.Or(p.Setting, oneMachine)
	}
	p.Samples = map[variant]map[int]float64{}
	for v := range c.samples {
		p.Samples[v] = c.values(v)
	}
	rounds := c.figure()
	rounds.Plot.Title += ", " + string(cmp.Or(p.Setting, oneMachine))
	p.Rounds = &rounds
}

func (r *results) rows() []row {
	var all []row
	for _, p := range r.Pieces {
		all = append(all, p.Rows...)
	}
	return all
}

func (r *results) costs() []cost {
	var all []cost
	for _, p := range r.Pieces {
		all = append(all, p.Costs...)
	}
	return all
}

func (r *results) calls() []calls {
	var all []calls
	for _, p := range r.Pieces {
		all = append(all, p.Calls...)
	}
	return all
}

// figures are those of the pieces; plots of one title become one.
func (r *results) figures() []report.Figure {
	var all []report.Figure
	for _, p := range r.Pieces {
		for _, f := range p.Figures {
			i := slices.IndexFunc(all, func(a report.Figure) bool { return a.Plot.Title == f.Plot.Title })
			if i < 0 {
				f.Plot.Series = slices.Clone(f.Plot.Series)
				all = append(all, f)
				continue
			}
			all[i].Plot.Series = append(all[i].Plot.Series, f.Plot.Series...)
		}
	}
	return all
}

var pieceHeader = []string{"piece", "setting", "measured", "minutes", "commit", "by"}

func (r *results) pieceCells() [][]string {
	var cells [][]string
	for _, p := range r.Pieces {
		ended := p.Ended.UTC().Format("2 January 2006 15:04 UTC")
		cells = append(cells, []string{p.Name, string(cmp.Or(p.Setting, oneMachine)), ended,
			figure(p.Ended.Sub(p.Began).Minutes()), p.Commit, p.Mode})
	}
	return cells
}

// method is each piece's, every sentence once.
func (r *results) method() []string {
	var all []string
	for _, p := range r.Pieces {
		for _, line := range p.Method {
			if !slices.Contains(all, line) {
				all = append(all, line)
			}
		}
	}
	return all
}

// commitOf asks a program of the ones that are measured what it was built from.
func commitOf(ctx context.Context, binDir string) (string, error) {
	out, err := run(ctx, filepath.Join(binDir, "replicator"), "--version")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(out)), nil
}
