package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/report"
	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// measureMemory watches the replicators' resident memory while eight volumes of one group are written to.
func (e *env) measureMemory(ctx context.Context, p *piece) error {
	e.say("memory, %v under load", e.memoryDuration)
	return e.withPair(ctx, func(ctx context.Context, pair *testsite.Pair) error {
		beds, err := e.beds(ctx, pair, bedOptions{name: "memory", volumes: 8, sizeBytes: e.deviceBytes / 4}, replicated)
		if err != nil {
			return err
		}
		b := beds[0]
		pids := []int{b.here[0], b.there[0]}
		stop := watchMemory(pids)
		_, err = fsyncEach.run(ctx, b, e.memoryDuration, 0)
		series := stop()
		if err != nil {
			return err
		}
		figure := report.Plot{Title: "Resident memory of the replicators", X: "time (s)", Y: "MiB"}
		for i, where := range []string{"primary", "secondary"} {
			figure.Series = append(figure.Series, report.Series{Name: where, Style: report.Line, Points: series[i]})
			_, peak, err := residentBytes(pids[i])
			if err != nil {
				return err
			}
			p.Rows = append(p.Rows,
				measured(fmt.Sprintf("resident memory, 8 volumes under load for %v, %s's replicator, peak",
					e.memoryDuration, where),
					[]float64{peak / (1 << 20)}, "MiB", memoryVolumes, ""))
			growth, err := growth(series[i])
			if err != nil {
				return err
			}
			p.Rows = append(p.Rows,
				measured(fmt.Sprintf("resident memory, %s's replicator, last fifth of %v against the second", where,
					e.memoryDuration),
					[]float64{growth}, "times", flatGrowth, ""))
		}
		p.Figures = append(p.Figures, report.Figure{Plot: figure,
			Caption: "Under 4 KiB random writes with a flush each on eight volumes of one group."})
		return nil
	})
}

// flatGrowth is what still counts as flat: the garbage collector's saw teeth are in the medians.
const flatGrowth = 1.1

// growth is the median of the last fifth by that of the second, when buffers have found their sizes.
func growth(points []report.Point) (float64, error) {
	fifth := len(points) / 5
	if fifth == 0 {
		return 0, errors.New("too few samples of the memory to say whether it grows")
	}
	values := func(from, to int) []float64 {
		var v []float64
		for _, p := range points[from:to] {
			v = append(v, p.Y)
		}
		return v
	}
	return median(values(len(points)-fifth, len(points))) / median(values(fifth, 2*fifth)), nil
}

// watchMemory samples processes until stop, which returns a series for each: MiB over seconds.
func watchMemory(pids []int) (stop func() [][]report.Point) {
	series := make([][]report.Point, len(pids))
	done := make(chan struct{})
	var running sync.WaitGroup
	began := time.Now()
	running.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for i, pid := range pids {
				if now, _, err := residentBytes(pid); err == nil { // one that has ended fails the load
					series[i] = append(series[i], report.Point{X: time.Since(began).Seconds(), Y: now / (1 << 20)})
				}
			}
		}
	})
	return func() [][]report.Point {
		close(done)
		running.Wait()
		return series
	}
}

// scrape is the sum of a Prometheus metric over its labels.
func scrape(ctx context.Context, address, name string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var sum float64
	found := false
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
			continue
		}
		value, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s: %w", name, err)
		}
		sum += value
		found = true
	}
	if !found {
		return 0, errors.Join(fmt.Errorf("%s has no metric %s", address, name), lines.Err())
	}
	return sum, lines.Err()
}
