package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func wave(n int, scale float64) []Point {
	var points []Point
	for i := range n {
		points = append(points, Point{X: float64(i) / 10, Y: scale * (1.5 + math.Sin(float64(i)/7))})
	}
	return points
}

func samplePage() Page {
	return Page{
		Title: "A title with <markup> & more",
		Lead:  "What came out.",
		Facts: []Fact{{"machine", "2 cores"}, {"seed", "7"}},
		Cards: []Card{{"orders without stock", "0", "in one group", Good},
			{"orders without stock", "31", "in two groups", Bad}, {"throughput", "0.97", "of a plain device", Neutral}},
		Sections: []Section{{
			Title: "Numbers", Paragraphs: []string{"A paragraph."},
			Table: &Table{Header: []string{"what", "plain", "replicated"},
				Rows: [][]string{{"orders per second", "412", "401"}}, Note: "Medians."},
			Figures: []Figure{
				{Plot{Title: "Latency", X: "time (s)", Y: "latency (ms)", LogY: true, Series: []Series{
					{Name: "plain", Style: Dots, Points: wave(300, 1)},
					{Name: "replicated", Style: Dots, Points: wave(300, 1.3), Hue: 3}},
					Markers: []Marker{{28, "site A dies"}}}, "Each dot is an order."},
				{Plot{Title: "Lag", X: "time (s)", Y: "lag (ms)",
					Series: []Series{{Name: "lag", Points: wave(200, 20)}}, Markers: []Marker{{2, "begin"}}}, "Sampled."},
			},
		}},
	}
}

func TestPageIsSelfContained(t *testing.T) {
	var buf bytes.Buffer
	if err := samplePage().Write(&buf); err != nil {
		t.Fatal(err)
	}
	html := buf.String()
	for _, want := range []string{"A title with &lt;markup&gt; &amp; more", "<td>401</td>", "site A dies",
		`class="card good"`, "orders without stock"} {
		if !strings.Contains(html, want) {
			t.Errorf("page lacks %q", want)
		}
	}
	// Nothing may make a browser load anything.
	for _, banned := range []string{"<script", "<link", "src=", "href=", "url(", "@import"} {
		if strings.Contains(html, banned) {
			t.Errorf("page contains %q", banned)
		}
	}
	if dir := os.Getenv("REPORT_SAMPLE_DIR"); dir != "" {
		if err := samplePage().WriteFile(filepath.Join(dir, "sample.html")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPlotIsWellFormed(t *testing.T) {
	for _, fig := range samplePage().Sections[0].Figures {
		svg, err := fig.Wide()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(svg), `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 `) {
			t.Errorf("begins with %.80q", svg)
		}
		decoder := xml.NewDecoder(strings.NewReader(string(svg)))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// The style sheet has all colours, so that a drawing can be seen on a dark screen, too. It has each of them twice.
func TestColorsAreThePages(t *testing.T) {
	var buf bytes.Buffer
	if err := samplePage().Write(&buf); err != nil {
		t.Fatal(err)
	}
	sheet, body, _ := strings.Cut(buf.String(), "</style>")
	if own := regexp.MustCompile(`#[0-9A-Fa-f]{6}`).FindAllString(body, -1); len(own) > 0 {
		t.Errorf("colours that do not change with the screen: %v", own)
	}
	for _, name := range inkNames {
		if n := strings.Count(sheet, "--"+name+": "); n != 2 {
			t.Errorf("the style sheet has %d values for %s, want 2", n, name)
		}
	}
	if !strings.Contains(body, string(css(palette[0]))) {
		t.Error("the first plot has not the colour of its series")
	}
}

func TestPlotCorners(t *testing.T) {
	tests := []struct {
		name string
		plot Plot
		want error
	}{
		{"nothing", Plot{}, ErrNoPoints},
		{"no finite point", Plot{Series: []Series{{Points: []Point{{1, math.NaN()}, {math.Inf(1), 2}}}}}, ErrNoPoints},
		{"no positive point", Plot{LogY: true, Series: []Series{{Points: []Point{{1, 0}, {2, -1}}}}}, ErrNoPoints},
		{"one point", Plot{Series: []Series{{Points: []Point{{1, 0}}}}}, nil},
		{"one point, logarithmic", Plot{LogY: true, Series: []Series{{Style: Dots, Points: []Point{{1, 3}}}}}, nil},
		{"a constant", Plot{Series: []Series{{Points: []Point{{0, 5}, {1, 5}}}}}, nil},
		{"markup in names", Plot{Title: "a < b & c", Series: []Series{{Name: "<s>", Points: []Point{{0, 1}, {1, 2}}}}}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			svg, err := tt.plot.SVG(Wide)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			if strings.Contains(string(svg), "NaN") || strings.Contains(string(svg), "Inf") {
				t.Error("a coordinate is not a number")
			}
			if strings.Contains(string(svg), "<s>") {
				t.Error("text is not escaped")
			}
		})
	}
}

func TestWriteFileLeavesNothingAfterAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.html")
	bad := Page{Sections: []Section{{Table: &Table{Header: []string{"a", "b"}, Rows: [][]string{{"1"}}}}}}
	if err := bad.WriteFile(path); err == nil {
		t.Fatal("a table with a short row was written")
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is there: %v", err)
	}
}

func TestTicks(t *testing.T) {
	labels := func(ticks []string) string { return strings.Join(ticks, " ") }
	for _, tt := range []struct {
		name      string
		low, high float64
		log       bool
		want      string
	}{
		{"decades", 0.5, 50, true, "0.5 1 2 5 10 20 50"},
		{"linear", 0, 100, false, "0 20 40 60 80 100"},
		{"fractions", 0, 0.3, false, "0 0.05 0.1 0.15 0.2 0.25 0.3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			make := linearTicks
			if tt.log {
				make = logTicks
			}
			var got []string
			for _, tick := range make(tt.low, tt.high) {
				got = append(got, tick.Label)
			}
			if labels(got) != tt.want {
				t.Errorf("got %q, want %q", labels(got), tt.want)
			}
		})
	}
}
