package main

import (
	"math"
	"testing"
)

func TestHistogram(t *testing.T) {
	h := histogram{}
	for _, line := range []string{
		`# TYPE hold histogram`,
		`hold_bucket{group="a",shard="0",le="0.001"} 5`,
		`hold_bucket{group="a",shard="0",le="0.002"} 9`,
		`hold_bucket{group="a",shard="0",le="+Inf"} 10`,
		`hold_sum{group="a",shard="0"} 1`,
		`hold_bucket{group="b",shard="1",le="0.001"} 5`,
		`hold_bucket{group="b",shard="1",le="0.002"} 9`,
		`hold_bucket{group="b",shard="1",le="+Inf"} 10`,
		`other_bucket{le="+Inf"} 100`,
	} {
		if err := h.parse(line, "hold"); err != nil {
			t.Fatal(err)
		}
	}
	for q, want := range map[float64]float64{0.25: 0.0005, 0.5: 0.001, 0.7: 0.0015, 0.99: 0.002} {
		if got := h.quantile(q); h.count() != 20 || math.Abs(got-want) > 1e-9 {
			t.Errorf("the quantile %v of %v is %v, want %v", q, h, got, want)
		}
	}
	if rest := h.minus(histogram{0.001: 10}); rest[0.001] != 0 || rest.count() != 20 || h[0.001] != 10 {
		t.Errorf("the difference is %v, of %v", rest, h)
	}
	if !math.IsNaN((histogram{}).quantile(0.5)) {
		t.Error("a quantile of nothing")
	}
	if err := h.parse(`hold_bucket{le="x"} 1`, "hold"); err == nil {
		t.Error("a bound that is no number")
	}
}

func TestNodesRow(t *testing.T) {
	r := nodesRow(map[variant]map[int]float64{oneGroup: {0: 98, 1: 95, 2: 198}, twoGroups: {0: 100, 1: 100, 2: 200}})
	if *r.Ratio != 0.98 || !*r.Met || r.Spread != [2]float64{0.95, 0.99} || r.Value != 98 || r.Baseline != 100 {
		t.Errorf("%+v", r)
	}
	p := &piece{Name: nodesName, Rows: []row{r}}
	if lines := (&results{Pieces: []*piece{p}}).lines(); len(lines) != 1 || !lines[0].ratio {
		t.Errorf("the table has %+v", lines)
	}
}
