package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The documents have the latest results between two comments, which readers of the rendered page do not see.
const (
	publishBegin = "<!-- bench results: make bench-docs writes this part -->\n"
	publishEnd   = "<!-- end of bench results -->\n"
)

// publishResults puts the results of a directory into the documents below another one.
func publishResults(resultsDir, docsDir string) error {
	r, err := readResults(resultsDir)
	if err != nil {
		return err
	}
	if len(r.Pieces) == 0 {
		return fmt.Errorf("%s has no results: make bench makes them", resultsDir)
	}
	for name, text := range map[string]string{
		"README.md": r.short(), "docs/performance.md": r.long(), "docs/design/performance-notes.md": r.markdown(),
	} {
		if err := replacePart(filepath.Join(docsDir, name), text); err != nil {
			return err
		}
	}
	return nil
}

// replacePart replaces what a file has between the two comments.
func replacePart(path, part string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, begins := strings.Cut(string(text), publishBegin)
	_, after, ends := strings.Cut(rest, publishEnd)
	if !begins || !ends {
		return fmt.Errorf("%s has no part for the results, between %q and %q", path, strings.TrimSpace(publishBegin),
			strings.TrimSpace(publishEnd))
	}
	return os.WriteFile(path, []byte(before+publishBegin+"\n"+strings.TrimSpace(part)+"\n\n"+publishEnd+after), 0o644)
}

// measuredBy says when, where and at which commits the results were measured, and how many targets are met.
func (r *results) measuredBy() string {
	var commits, modes []string
	var met, judged int
	for _, p := range r.Pieces {
		commits, modes = append(commits, p.Commit), append(modes, "`make "+p.Mode+"`")
		for _, row := range p.Rows {
			if row.Met != nil {
				judged++
				if *row.Met {
					met++
				}
			}
		}
	}
	unique := func(all []string) string {
		slices.Sort(all)
		return strings.Join(slices.Compact(all), ", ")
	}
	return wrap(fmt.Sprintf("Measured on %s, at commit %s, with %s: %s. %d of %d targets are met.", r.when(),
		unique(commits), unique(modes), r.Machine, met, judged))
}

// long is the part of docs/performance.md: the results that have a target, ratios first. The notes have all of them.
func (r *results) long() string {
	var b strings.Builder
	b.WriteString(r.measuredBy() + "\n\n" + wrap(tableNote) + "\n\n")
	var ratios, figures [][]string
	for _, l := range r.lines() {
		if !l.targeted() {
			continue
		}
		cells := append([]string{l.title}, l.short()...)
		if l.ratio {
			ratios = append(ratios, cells)
		} else {
			figures = append(figures, append(cells, l.unit))
		}
	}
	header := []string{"load", string(oneMachine), "target", string(twoHosts), "target"}
	writeMarkdown(&b, header, ratios)
	header[0] = "figure"
	writeMarkdown(&b, append(header, "unit"), figures)
	return b.String()
}

// short is the part of README.md: the ratios of replicated volumes that have a target.
func (r *results) short() string {
	var rows [][]string
	for _, l := range r.lines() {
		if l.ratio && l.targeted() && l.variant == string(replicated) {
			rows = append(rows, append([]string{l.title}, l.short()...))
		}
	}
	var b strings.Builder
	b.WriteString(r.measuredBy() + "\n\n")
	writeMarkdown(&b, []string{"load", string(oneMachine), "target", string(twoHosts), "target"}, rows)
	return b.String()
}

// resultLine is a row of the tables: one measurement in both settings.
type resultLine struct {
	title, unit, variant string
	ratio                bool
	by                   map[setting]row
}

func (l resultLine) targeted() bool {
	for _, row := range l.by {
		if row.Target != nil {
			return true
		}
	}
	return false
}

// short are result and target in each setting.
func (l resultLine) short() []string {
	var cells []string
	for _, s := range []setting{oneMachine, twoHosts} {
		if row, ok := l.by[s]; ok {
			cells = append(cells, row.cells()[:2]...)
		} else {
			cells = append(cells, "-", "-")
		}
	}
	return cells
}

func writeMarkdown(b *strings.Builder, header []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(b, "| %s |\n|%s\n", strings.Join(header, " | "), strings.Repeat("---|", len(header)))
	for _, cells := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
	}
	b.WriteString("\n")
}

// wrap breaks a paragraph into lines of the documents' length.
func wrap(text string) string {
	const columns = 120
	var b strings.Builder
	length := 0
	for _, word := range strings.Fields(text) {
		switch n := len([]rune(word)); {
		case length == 0:
			length = n
		case length+1+n > columns:
			b.WriteString("\n")
			length = n
		default:
			b.WriteString(" ")
			length += 1 + n
		}
		b.WriteString(word)
	}
	return b.String()
}

// readResults returns what a directory has; nothing if it has none.
func readResults(dir string) (*results, error) {
	path := filepath.Join(dir, resultsFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &results{}, nil
	}
	r := &results{}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
