package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"text/tabwriter"
	"time"
)

// selection says what is measured.
type selection struct{ stages, loads, settings *regexp.Regexp }

// step is what runs in one go.
type step struct {
	name    string
	setting setting
	loads   int
	// takes is an estimate.
	takes time.Duration
	run   func(context.Context) error
}

// What the estimates are made of, as measured on the machine of docs/performance.md.
const (
	pairTakes   = 8 * time.Second        // two sites start and end
	volumeTakes = 500 * time.Millisecond // a volume is made, attached and taken away
	settleTakes = time.Second            // before and after a measurement
	fillRate    = 150 << 20              // bytes in a second, through the journals of both sites
)

// steps are those that the mode has and that are selected. take gets what each has measured.
func (e *env) steps(sel selection, take func(*piece) error) []step {
	var steps []step
	for _, s := range e.stages() {
		if !sel.settings.MatchString(string(s.setting)) {
			continue
		}
		s.comparisons = slices.DeleteFunc(s.comparisons, func(c *comparison) bool {
			return !sel.loads.MatchString(c.name) || !sel.stages.MatchString(s.name) && !sel.stages.MatchString(c.name)
		})
		if len(s.comparisons) > 0 {
			steps = append(steps, step{s.name, s.setting, len(s.comparisons), e.estimate(s),
				func(ctx context.Context) error { return e.runStage(ctx, s, take) }})
		}
	}
	if e.short {
		return steps
	}
	single := func(name string, takes time.Duration, measure func(context.Context, *piece) error) {
		if !sel.stages.MatchString(name) || !sel.settings.MatchString(string(oneMachine)) {
			return
		}
		steps = append(steps, step{name, oneMachine, 1, takes, func(ctx context.Context) error {
			p := e.newPiece(name)
			err := measure(ctx, p)
			return errors.Join(err, take(p))
		}})
	}
	for _, l := range lines() {
		single("lag, "+l.name, e.lagDuration+time.Minute,
			func(ctx context.Context, p *piece) error { return e.measureLag(ctx, l, p) })
	}
	single("analytics", time.Minute+2*time.Duration(e.rounds)*(e.lagDuration+5*time.Second), e.measureAnalytics)
	single("calls", 2*time.Minute, e.measureCalls)
	single("failover", time.Minute, e.measureFailover)
	single("memory", e.memoryDuration+30*time.Second, e.measureMemory)
	single(nodesName, 30*time.Second+2*time.Duration(e.rounds)*(e.cell+4*time.Second), e.measureNodes)
	single("scale of a node", 100*time.Second, e.measureScale)
	return steps
}

// runStage measures a stage. What was measured before an error was measured all the same.
func (e *env) runStage(ctx context.Context, s *stage, take func(*piece) error) error {
	pieces := make([]*piece, len(s.comparisons))
	for i, c := range s.comparisons {
		pieces[i] = e.newPiece(c.name)
		pieces[i].Setting = s.setting
	}
	errs := []error{e.measureStage(ctx, s)}
	for i, c := range s.comparisons {
		pieces[i].fill(c)
		errs = append(errs, take(pieces[i]))
	}
	return errors.Join(errs...)
}

// fixed is a load that has an amount of work in place of a time.
type fixed interface{ takes() time.Duration }

// estimate is how long a stage takes without a budget.
func (e *env) estimate(s *stage) time.Duration {
	beds := slices.Clone(s.variants)
	if s.peers {
		beds = append(beds, peerAlone, peer, peerSync)
	}
	beds = slices.DeleteFunc(beds, func(v variant) bool {
		return !v.isPlain() && !e.wantedVariants.MatchString(string(v))
	})
	seconds := float64(s.volumes) * float64(s.sizeBytes) / fillRate
	volumes := time.Duration(s.volumes)*volumeTakes + time.Duration(seconds*float64(time.Second))
	takes := pairTakes + time.Duration(len(beds))*volumes
	for _, c := range s.comparisons {
		cell := e.cell
		if l, ok := c.load.(fixed); ok {
			cell = l.takes()
		}
		for _, v := range beds {
			if c.runsOn(v) {
				takes += time.Duration(e.rounds) * (cell + settleTakes)
			}
		}
	}
	return takes
}

// leastRounds and leastCell are what --within leaves: a median of fewer rounds, and a shorter measurement, say little.
const (
	leastRounds = 3
	leastCell   = 2 * time.Second
)

// fit chooses rounds and the length of a measurement, so that the selected steps take no longer than d. Rounds go
// first: a shorter measurement has less of what is put off in it.
func (e *env) fit(d time.Duration, sel selection) error {
	for {
		total := together(e.steps(sel, nil))
		switch {
		case total <= d:
			return nil
		case e.rounds > leastRounds:
			e.rounds--
		case e.cell > leastCell:
			e.cell = max(leastCell, e.cell-time.Second)
		default:
			return fmt.Errorf("%d rounds of %v take %v, longer than %v: choose fewer rows with --only, --variants or "+
				"--settings", e.rounds, e.cell, total.Round(time.Minute), d)
		}
	}
}

func together(steps []step) (total time.Duration) {
	for _, s := range steps {
		total += s.takes
	}
	return total
}

// writePlan prints what will be measured, and how long it takes.
func (e *env) writePlan(w io.Writer, steps []step) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "stage\tsetting\tloads\tminutes, estimated")
	for _, s := range steps {
		fmt.Fprintf(t, "%s\t%s\t%d\t%.1f\n", s.name, s.setting, s.loads, s.takes.Minutes())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	total := together(steps)
	if e.budget > 0 {
		total = min(total, e.budget)
	}
	_, err := fmt.Fprintf(w, "Together about %.0f minutes, until %s; %d rounds of %v.\n", total.Minutes(),
		time.Now().Add(total).Format("15:04"), e.rounds, e.cell)
	return err
}
