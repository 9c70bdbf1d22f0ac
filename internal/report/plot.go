package report

import (
	"bytes"
	"errors"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"regexp"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Point is one measured value. Points that are not finite numbers are left out.
type Point struct{ X, Y float64 }

// Style is how a series is drawn.
type Style int

// The styles: a line for a quantity that exists between the points, dots for single events.
const (
	Line Style = iota
	Dots
)

// Series is points with one name and colour. Series with the same name have the same colour and one legend entry, so
// that a quantity measured in several stretches is drawn without lines between them.
type Series struct {
	Name   string
	Style  Style
	Points []Point
	// Hue picks a colour, from 1, so that a thing has the same one in several plots; 0 takes the next.
	Hue int
}

// Marker is a vertical line. The legend has its word: in the drawing it would lie on lines.
type Marker struct {
	X     float64
	Label string
}

// Plot is a diagram of quantities over a common axis.
type Plot struct {
	// Title is also what a screen reader says of the drawing.
	Title   string
	X, Y    string // axis names, with units
	Series  []Series
	Markers []Marker
	// LogY makes the Y axis logarithmic; points at or below zero are left out then.
	LogY bool
}

// ErrNoPoints is returned for a plot without any point to draw.
var ErrNoPoints = errors.New("plot without points")

var (
	soft    = color.NRGBA{R: 0x5b, G: 0x68, B: 0x75, A: 0xff}
	gridInk = color.NRGBA{R: 0xe6, G: 0xea, B: 0xee, A: 0xff}
	// markerInks are those of the first marker, which is where something fails, and of those behind it.
	markerInks = []color.NRGBA{{R: 0xc2, G: 0x38, B: 0x2c, A: 0xff}, {R: 0x1a, G: 0x7f, B: 0x4b, A: 0xff},
		{R: 0x8b, G: 0x3f, B: 0xb5, A: 0xff}}
	// palette keeps its order of brightness in greyscale and its differences for the common colour blindnesses.
	palette = []color.NRGBA{
		{R: 0x8a, G: 0x96, B: 0xa3, A: 0xff},
		{R: 0x1f, G: 0x6f, B: 0xeb, A: 0xff},
		{R: 0xd9, G: 0x8a, B: 0x00, A: 0xff},
		{R: 0x1a, G: 0x7f, B: 0x4b, A: 0xff},
		{R: 0x8b, G: 0x3f, B: 0xb5, A: 0xff},
	}
)

// Size is the paper that a plot is drawn on. The page scales a drawing to its place, with its letters, so a small
// screen gets a drawing of its own.
type Size struct{ width, height vg.Length }

// The sizes: for a desk, and for a screen of 400 pixels.
var (
	Wide   = Size{26 * vg.Centimeter, 8.5 * vg.Centimeter}
	Narrow = Size{10.5 * vg.Centimeter, 7.5 * vg.Centimeter}
)

// SVG draws the plot as an SVG element that can stand in an HTML page.
func (p Plot) SVG(size Size) (template.HTML, error) {
	drawn := plot.New()
	drawn.X.Label.Text, drawn.Y.Label.Text = p.X, p.Y
	p.styleAxes(drawn)
	if err := p.addSeries(drawn); err != nil {
		return "", fmt.Errorf("report: plot %q: %w", p.Title, err)
	}
	if p.LogY {
		drawn.Y.Scale = plot.LogScale{}
		drawn.Y.Min, drawn.Y.Max = logBounds(drawn.Y.Min, drawn.Y.Max)
	} else {
		drawn.Y.Min = math.Min(0, drawn.Y.Min)
		drawn.Y.Max += (drawn.Y.Max - drawn.Y.Min) * 0.06
		if drawn.Y.Max == drawn.Y.Min {
			drawn.Y.Max = drawn.Y.Min + 1
		}
	}
	if drawn.X.Max == drawn.X.Min {
		drawn.X.Max = drawn.X.Min + 1
	}
	if err := p.addMarkers(drawn); err != nil {
		return "", fmt.Errorf("report: plot %q: %w", p.Title, err)
	}
	canvas := vgsvg.New(size.width, size.height)
	// The last label of the X axis reaches beyond the axis.
	drawn.Draw(draw.Crop(draw.New(canvas), 0, -12, 0, 0))
	var buf bytes.Buffer
	if _, err := canvas.WriteTo(&buf); err != nil {
		return "", fmt.Errorf("report: plot %q: %w", p.Title, err)
	}
	return embeddable(buf.Bytes(), p.Title), nil
}

func (p Plot) styleAxes(drawn *plot.Plot) {
	for _, style := range []*text.Style{
		&drawn.X.Label.TextStyle, &drawn.Y.Label.TextStyle, &drawn.X.Tick.Label, &drawn.Y.Tick.Label,
	} {
		style.Font.Variant, style.Color, style.Font.Size = "Sans", soft, 10
	}
	drawn.BackgroundColor = color.Transparent
	for _, axis := range []*plot.Axis{&drawn.X, &drawn.Y} {
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = soft, soft
		axis.Padding = 0
	}
	if p.LogY {
		drawn.Y.Tick.Marker = plot.TickerFunc(logTicks)
	} else {
		drawn.Y.Tick.Marker = plot.TickerFunc(linearTicks)
	}
	drawn.X.Tick.Marker = plot.TickerFunc(linearTicks)
	grid := plotter.NewGrid()
	grid.Horizontal.Color, grid.Vertical.Color = gridInk, color.Transparent
	drawn.Add(grid)
}

// LegendEntry is a series' name and colour, for the page: a legend in the drawing would lie on the points.
type LegendEntry struct {
	Name  string
	Color template.CSS
	// Marker is true for a vertical line.
	Marker bool
}

// Legend lists the named series that have points, each name once, and then the markers.
func (p Plot) Legend() []LegendEntry {
	var entries []LegendEntry
	colors := p.colors()
	seen := map[string]bool{"": true}
	for _, s := range p.Series {
		if seen[s.Name] || len(p.drawable(s.Points)) == 0 {
			continue
		}
		seen[s.Name] = true
		entries = append(entries, LegendEntry{s.Name, css(colors[s.Name]), false})
	}
	for i, m := range p.Markers {
		entries = append(entries, LegendEntry{m.Label, css(markerInk(i)), true})
	}
	return entries
}

// inkNames are the names that the page's style sheet has for the colours of drawings. It has two values for each, for
// light and dark screens.
var inkNames = map[color.NRGBA]string{
	soft: "soft", gridInk: "grid", markerInks[0]: "red", palette[0]: "grey", palette[1]: "blue", palette[2]: "orange",
	palette[3]: "green", palette[4]: "purple",
}

// translucent is the colour of dots, so that many of them show how dense they are.
func translucent(ink color.NRGBA) color.NRGBA {
	ink.A = 0xa0
	return ink
}

// svgColor is how vgsvg writes a colour. It rounds down what it multiplied with the opacity and divided again.
func svgColor(ink color.NRGBA) string {
	r, g, b, a := ink.RGBA()
	of := func(v uint32) int { return int(float64(v) * (255 / float64(a))) }
	return fmt.Sprintf("#%02X%02X%02X", of(r), of(g), of(b))
}

// css is the colour as the page calls it.
func css(ink color.NRGBA) template.CSS { return template.CSS("var(--" + inkNames[ink] + ")") }

func (p Plot) colors() map[string]color.NRGBA {
	colors := map[string]color.NRGBA{}
	for _, s := range p.Series {
		if _, known := colors[s.Name]; known {
			continue
		}
		hue := s.Hue - 1
		if hue < 0 {
			hue = len(colors)
		}
		colors[s.Name] = palette[hue%len(palette)]
	}
	return colors
}

func (p Plot) addSeries(drawn *plot.Plot) error {
	colors := p.colors()
	any := false
	for _, series := range p.Series {
		ink := colors[series.Name]
		points := p.drawable(series.Points)
		if len(points) == 0 {
			continue
		}
		any = true
		if series.Style == Dots {
			dots, err := plotter.NewScatter(points)
			if err != nil {
				return err
			}
			dots.Color = translucent(ink)
			dots.Radius, dots.Shape = 1.8, draw.CircleGlyph{}
			drawn.Add(dots)
			continue
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.Color, line.Width = ink, 1.4
		drawn.Add(line)
	}
	if !any {
		return ErrNoPoints
	}
	return nil
}

func (p Plot) drawable(points []Point) plotter.XYs {
	var xys plotter.XYs
	for _, pt := range points {
		if math.IsNaN(pt.X) || math.IsInf(pt.X, 0) || math.IsNaN(pt.Y) || math.IsInf(pt.Y, 0) || p.LogY && pt.Y <= 0 {
			continue
		}
		xys = append(xys, plotter.XY{X: pt.X, Y: pt.Y})
	}
	return xys
}

func (p Plot) addMarkers(drawn *plot.Plot) error {
	for i, m := range p.Markers {
		line, err := plotter.NewLine(plotter.XYs{{X: m.X, Y: drawn.Y.Min}, {X: m.X, Y: drawn.Y.Max}})
		if err != nil {
			return err
		}
		line.Color, line.Width = markerInk(i), 1.4
		line.Dashes = []vg.Length{4, 3}
		drawn.Add(line)
		drawn.X.Min, drawn.X.Max = math.Min(drawn.X.Min, m.X), math.Max(drawn.X.Max, m.X)
	}
	return nil
}

func markerInk(i int) color.NRGBA { return markerInks[i%len(markerInks)] }

// logBounds widens a range to 1, 2 or 5 times a power of ten, so that its ends have labels.
func logBounds(low, high float64) (float64, float64) {
	floor := func(v float64) float64 {
		decade := math.Pow(10, math.Floor(math.Log10(v)))
		for _, m := range []float64{5, 2} {
			if v >= m*decade {
				return m * decade
			}
		}
		return decade
	}
	low = floor(low)
	top := floor(high)
	for _, m := range []float64{1, 2, 2.5, 5, 10} {
		if top*m >= high*1.05 {
			return low, top * m
		}
	}
	return low, top * 10
}

func logTicks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for decade := math.Pow(10, math.Floor(math.Log10(low))); decade <= high; decade *= 10 {
		for _, m := range []float64{1, 2, 5} {
			// The slack is for powers of ten that are not exact.
			if v := m * decade; v >= low*0.999 && v <= high*1.001 {
				ticks = append(ticks, plot.Tick{Value: v, Label: formatTick(v)})
			}
		}
	}
	return ticks
}

// linearTicks puts about six labels at round numbers.
func linearTicks(low, high float64) []plot.Tick {
	rough := (high - low) / 6
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{1, 2, 5, 10} {
		if step*m >= rough {
			step *= m
			break
		}
	}
	var ticks []plot.Tick
	for i := math.Ceil(low / step); i*step <= high*(1+1e-12); i++ {
		ticks = append(ticks, plot.Tick{Value: i * step, Label: formatTick(i * step)})
	}
	return ticks
}

func formatTick(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

var (
	svgStart = regexp.MustCompile(`(?s)^.*?<svg[^>]*?width="([0-9.]+)pt" height="([0-9.]+)pt"[^>]*>`)
	svgFont  = regexp.MustCompile(`font-family:[^;"]*`)
)

// embeddable turns an SVG document into an element of a page: without prologue, as wide as its place, in the colours of
// the page, and in a font of the widths that gonum measured with, if the reader's machine has it.
func embeddable(document []byte, title string) template.HTML {
	start := `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 $1 $2" role="img" aria-label="` +
		strings.ReplaceAll(template.HTMLEscapeString(title), "$", "$$") + `">`
	element := svgStart.ReplaceAll(document, []byte(start))
	for ink := range inkNames {
		for _, drawn := range []color.NRGBA{ink, translucent(ink)} {
			element = bytes.ReplaceAll(element, []byte(svgColor(drawn)), []byte(css(ink)))
		}
	}
	element = svgFont.ReplaceAll(element, []byte(`font-family:Liberation Sans,Arial,Helvetica,sans-serif`))
	return template.HTML(element) // made by this package from numbers and from text that vgsvg escaped
}
