// Package report writes measurements down for people: one HTML file that opens without network, with tables, figures
// and the numbers that matter in large type. Figures are SVG inside the file, made from the measured points (Plot).
//
// It knows nothing about what is measured; the demo and the benchmarks say that. It is not a template engine: a page
// has one look.
//
// Values are plain data, built by one goroutine; nothing is shared.
package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"os"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// Page is a report.
type Page struct {
	Title string
	// Lead is the result in one or two sentences.
	Lead string
	// Facts are circumstances: date, machine, seed.
	Facts []Fact
	Cards []Card
	// Shares are drawn side by side above everything else.
	Shares []Share
	// Sections follow each other in the order given.
	Sections []Section
}

// Fact is a name with a value.
type Fact struct{ Name, Value string }

// Tone colours a card.
type Tone string

// The tones.
const (
	Neutral Tone = "neutral"
	Good    Tone = "good"
	Bad     Tone = "bad"
)

// Card is one number that matters.
type Card struct {
	Label, Value, Note string
	Tone               Tone
}

// Share shows how many of all are bad, as a hundred squares.
type Share struct {
	Label    string
	Bad, All int
	// Text is the number in words.
	Text string
}

// Squares are the hundred squares, bad ones last. One that is bad in part is bad: nothing bad is rounded away.
func (s Share) Squares() []Square {
	const side, step = 9, 10
	bad := 0
	if s.All > 0 {
		bad = (100*min(s.Bad, s.All) + s.All - 1) / s.All
	}
	squares := make([]Square, 100)
	for i := range squares {
		squares[i] = Square{X: i % 10 * step, Y: i / 10 * step, Side: side, Bad: i >= 100-bad}
	}
	return squares
}

// Square is one of the squares of a Share.
type Square struct {
	X, Y, Side int
	Bad        bool
}

// Section is a heading with what belongs to it, in this order.
type Section struct {
	Title      string
	Paragraphs []string
	Table      *Table
	Figures    []Figure
}

// Table has a column of names and columns of values, which are set flush right.
type Table struct {
	Header []string
	Rows   [][]string
	Note   string
}

// Figure is a plot with its caption.
type Figure struct {
	Plot    Plot
	Caption string
}

// Wide and Narrow are for the template, which shows the one that fits the screen.
func (f Figure) Wide() (template.HTML, error) { return f.Plot.SVG(Wide) }

// Narrow is Wide for a small screen.
func (f Figure) Narrow() (template.HTML, error) { return f.Plot.SVG(Narrow) }

//go:embed page.html.tmpl
var pageTemplate string

var page = template.Must(template.New("page").Parse(pageTemplate))

// Write writes the page as HTML. It fails on a table with rows of the wrong length and on a plot without points; some
// of the page may have been written then.
func (p Page) Write(w io.Writer) error {
	for _, s := range p.Sections {
		if s.Table == nil {
			continue
		}
		for i, row := range s.Table.Rows {
			if len(row) != len(s.Table.Header) {
				return fmt.Errorf("report: section %q, table row %d has %s for %s", s.Title, i,
					words.Count(len(row), "cell"), words.Count(len(s.Table.Header), "column"))
			}
		}
	}
	return page.Execute(w, p)
}

// WriteFile writes the page to a file, or leaves no file after an error.
func (p Page) WriteFile(path string) error {
	var buf bytes.Buffer
	if err := p.Write(&buf); err != nil {
		return err
	}
	return os.WriteFile(path, buf.Bytes(), 0o644)
}
