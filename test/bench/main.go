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
	if len(os.Args) == 4 && os.Args[1] == guardArgument {
		if err := runGuard(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
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
	quick := flags.Bool("quick", false, "only the comparisons with plain volumes, in a few minutes")
	binDir := flags.String("bin-dir", "bin", "`directory` of csi-driver and replicator")
	flags.StringVar(&e.tempDir, "temp-dir", "",
		"`directory` whose file system takes images and journals; default the system's")
	flags.StringVar(&e.resultsDir, "results", "bench-results",
		"`directory` for summary.json, results.json, table.md and report.html")
	only := flags.String("only", "", "`regexp` of names of stages or loads: only those")
	list := flags.Bool("list", false, "print what would be measured, and how long it takes, and end")
	within := flags.Duration("within", 0,
		"fewer rounds and shorter measurements, so that the run takes about that long; 0 is those of the mode")
	publish := flags.Bool("publish", false, "put the results that are there into the documents, and measure nothing")
	docsDir := flags.String("docs", ".", "`directory` of README.md and docs, for --publish")
	loads := flags.String("loads", "", "`regexp` of names of loads: only those")
	variants := flags.String("variants", "", "`regexp` of what the loads run on beside the plain volumes: only those")
	settings := flags.String("settings", "", "`regexp` of settings, one machine or two hosts: only those")
	cell := flags.Duration("duration", 0, "of one measurement; default that of the mode")
	rounds := flags.Int("rounds", 0, "of each comparison; default those of the mode")
	lagDuration := flags.Duration("lag-duration", 0, "of the load on each line; default that of the mode")
	memoryDuration := flags.Duration("memory-duration", 0,
		"of the load under which memory is watched; default that of the mode")
	merge := flags.Bool("merge", false,
		"add to the results that are there, in place of earlier ones of the same load or stage")
	flags.BoolVar(&e.verbose, "v", false, "print every measurement")
	if err := flags.Parse(args); err != nil {
		return err
	}
	wanted, err := regexp.Compile(*only)
	if err != nil {
		return fmt.Errorf("--only: %w", err)
	}
	wantedLoads, err := regexp.Compile(*loads)
	if err != nil {
		return fmt.Errorf("--loads: %w", err)
	}
	if e.wantedVariants, err = regexp.Compile(*variants); err != nil {
		return fmt.Errorf("--variants: %w", err)
	}
	wantedSettings, err := regexp.Compile(*settings)
	if err != nil {
		return fmt.Errorf("--settings: %w", err)
	}
	if flags.NArg() > 0 || *rounds < 0 || *cell < 0 || *lagDuration < 0 || *memoryDuration < 0 || *within < 0 {
		return errors.New("no arguments are expected, and no negative numbers: see --help")
	}
	if e.binDir, err = filepath.Abs(*binDir); err != nil {
		return err
	}
	if *publish {
		return publishResults(e.resultsDir, *docsDir)
	}
	r := &results{Machine: report.Machine()}
	if *merge {
		if err := r.merge(e.resultsDir); err != nil {
			return err
		}
	}
	if e.commit, err = commitOf(ctx, e.binDir); err != nil {
		return fmt.Errorf("%w: make build makes it", err)
	}
	e.mode = "bench"
	if *quick {
		e.mode = "bench-quick"
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

	sel := selection{stages: wanted, loads: wantedLoads, settings: wantedSettings}
	if *within > 0 {
		if err := e.fit(*within, sel); err != nil {
			return err
		}
	}
	something := false
	steps := e.steps(sel, func(p *piece) error {
		if p = p.end(); p == nil {
			return nil
		}
		r.take(p)
		something = true
		_, err := r.writeFiles(e.resultsDir) // what comes next may not end
		return err
	})
	if *list {
		return e.writePlan(stdout, steps)
	}
	if err := e.writePlan(stderr, steps); err != nil {
		return err
	}
	var errs []error
	for _, s := range steps {
		if err := s.run(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stage %s: %w", s.name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if something {
		errs = append(errs, r.writeTable(stdout))
		if e.verbose && len(r.costs()) > 0 {
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
		apply = fmt.Sprintf(
			"after %v instead of the replicator's default interval, so that applying falls into the short measurements",
			e.applyInterval)
	}
	return []string{
		fmt.Sprintf(
			"%d rounds of %v for each load and variant, in turn. A ratio is the median over the rounds of the "+
				"quotient with the baseline's measurement of the same round. The baseline of a load is the better of a "+
				"buffered loop device and the driver's plain volume, and of raw loads without a flush the latter.",
			e.rounds, e.cell),
		fmt.Sprintf(
			"One machine: replicated volumes have a live secondary on the same processors and the same disk. Two hosts: "+
				"loads, primary and the kernel's workers have processor 0, the secondary has processor 1 and its pool in "+
				"memory. Durable records are applied to the images %s. Between measurements everything put off is finished "+
				"off the clock.", apply),
		fmt.Sprintf(
			"fio works on raw devices of %d MiB with direct I/O, depth by jobs where each write is flushed; pgbench "+
				"on ext4 at scale %d. All images were written in full before.",
			e.deviceBytes>>20, e.scale),
	}
}
