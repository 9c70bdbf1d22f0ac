package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/slipstream-storage/slipstream/internal/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := runBench(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runBench(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	e := &env{progress: stderr, began: time.Now()}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	quick := flags.Bool("quick", false, "only the comparisons with a plain loop device, in a few minutes")
	binDir := flags.String("bin-dir", "bin", "`directory` of csi-driver and replicator")
	flags.StringVar(&e.tempDir, "temp-dir", "", "`directory` whose file system takes images and journals; default the system's")
	flags.StringVar(&e.resultsDir, "results", "bench-results", "`directory` for summary.json, results.json, table.md and report.html")
	only := flags.String("only", "", "`regexp` of names of stages: only those")
	cell := flags.Duration("duration", 0, "of one measurement; default that of the mode")
	rounds := flags.Int("rounds", 0, "of each comparison; default those of the mode")
	lagDuration := flags.Duration("lag-duration", 0, "of the load on each line; default that of the mode")
	memoryDuration := flags.Duration("memory-duration", 0, "of the load under which memory is watched; default that of the mode")
	flags.BoolVar(&e.verbose, "v", false, "print every measurement")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	if flags.NArg() > 0 || *rounds < 0 || *cell < 0 || *lagDuration < 0 || *memoryDuration < 0 {
		return errors.New("no arguments are expected, and no negative numbers: see --help")
	}
	if e.binDir, err = filepath.Abs(*binDir); err != nil {
		return err
	}
	r := &results{Began: e.began, Machine: report.Machine(), Mode: "bench"}
	if *quick {
		r.Mode = "bench-quick"
		e.quick()
	} else {
		e.full()
	}
	if *cell > 0 {
		e.cell = *cell
	}
	if *rounds > 0 {
		e.rounds = *rounds
	}
	if *lagDuration > 0 {
		e.lagDuration = *lagDuration
	}
	if *memoryDuration > 0 {
		e.memoryDuration = *memoryDuration
	}
	r.Method = e.method()

	type step struct {
		name string
		run  func(context.Context) error
	}
	var steps []step
	stages := []*stage{e.postgresStage(), e.fioStage(), e.manyStage(), e.separateStage()}
	if !*quick {
		stages = append(stages, e.growthStages(r)...)
	}
	for _, s := range stages {
		steps = append(steps, step{s.name, func(ctx context.Context) error {
			err := e.measureStage(ctx, s)
			// What was measured before an error was measured all the same.
			r.include(s.comparisons)
			return err
		}})
	}
	if !*quick {
		steps = append(steps,
			step{"lag", func(ctx context.Context) error { return e.measureLag(ctx, r) }},
			step{"calls", func(ctx context.Context) error { return e.measureCalls(ctx, r) }},
			step{"failover", func(ctx context.Context) error { return e.measureFailover(ctx, r) }},
			step{"memory", func(ctx context.Context) error { return e.measureMemory(ctx, r) }})
	}
	var errs []error
	for _, s := range steps {
		if !wanted.MatchString(s.name) {
			continue
		}
		if err := s.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stage %s: %w", s.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	r.Took = time.Since(e.began).Seconds()
	if len(r.Rows) > 0 || len(r.Calls) > 0 {
		errs = append(errs, r.writeTable(stdout))
		if e.verbose && len(r.Costs) > 0 {
			errs = append(errs, r.writeCosts(stdout))
		}
		written, err := r.writeFiles(e.resultsDir)
		errs = append(errs, err)
		e.say("written: %v", written)
	}
	return errors.Join(errs...)
}

// method is what a reader of the results has to know.
func (e *env) method() []string {
	apply := "after the replicator's default interval"
	if e.applyInterval > 0 {
		apply = fmt.Sprintf("after %v instead of the replicator's default interval, so that applying falls into the short measurements", e.applyInterval)
	}
	return []string{
		fmt.Sprintf("%d rounds of %v for each load and variant, in turn. A ratio is the median over the rounds of the quotient with the plain loop device's measurement of the same round.", e.rounds, e.cell),
		fmt.Sprintf("Replicated volumes have a live secondary on the same machine and the same disk. Durable records are applied to the images %s. "+
			"Between measurements everything put off is finished off the clock.", apply),
		fmt.Sprintf("fio works on raw devices of %d MiB with direct I/O, depth by jobs where each write is flushed; pgbench on ext4 at scale %d. All images were written in full before.",
			e.deviceBytes>>20, e.scale),
	}
}
