package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// env is the configuration of a run.
type env struct {
	binDir, tempDir string
	resultsDir      string
	progress        io.Writer
	verbose         bool
	began           time.Time
	// setting is where the two sites run.
	setting setting
	// mode is the command that is run, and commit what the measured programs were built from.
	mode, commit string

	// cell is how long one measurement takes, and rounds how often it is repeated.
	cell   time.Duration
	rounds int
	// budget is for the whole run: after two rounds a stage is cut short that would overdraw its share; 0 is none.
	budget time.Duration
	// sizes of what is measured on.
	deviceBytes, databaseBytes, journalBytes int64
	// scale is pgbench's: 15 MiB each.
	scale int
	// lagDuration and memoryDuration are how long the load runs under which lag and memory are watched.
	lagDuration, memoryDuration time.Duration
	// unappliedBytes is how much lies in the journal when a site is restarted, and when one is promoted.
	unappliedBytes int64
	// applyInterval is the replicators'; 0 is their default.
	applyInterval time.Duration
	// peers says whether qemu-storage-daemon is measured, and short that only the main comparisons are.
	peers, short bool
	// wantedVariants are those that are measured beside the plain one.
	wantedVariants *regexp.Regexp
}

// quick sizes the environment for a few minutes.
func (e *env) quick() {
	e.cell, e.rounds = 1200*time.Millisecond, 3
	e.deviceBytes, e.databaseBytes, e.journalBytes = 256<<20, 400<<20, 1<<30
	e.scale = 10
	e.budget = 330 * time.Second
	// A cell has to be longer than this, or records would be applied off the clock only. More often than by default is
	// less coalesced, so this errs against replication.
	e.applyInterval = 500 * time.Millisecond
	e.short = true
}

// full sizes the environment for numbers to be relied on.
func (e *env) full() {
	e.cell, e.rounds = 5*time.Second, 5
	e.lagDuration, e.memoryDuration = 30*time.Second, 10*time.Minute
	e.unappliedBytes = 1 << 30
	e.deviceBytes, e.databaseBytes, e.journalBytes = 512<<20, 1<<30, 1<<30
	e.scale = 20
	e.peers = true
}

func (e *env) say(format string, args ...any) {
	fmt.Fprintf(e.progress, "[%6.1fs] %s\n", time.Since(e.began).Seconds(), fmt.Sprintf(format, args...))
}

func (e *env) detail(format string, args ...any) {
	if e.verbose {
		e.say("  "+format, args...)
	}
}

// withPair runs something on two fresh sites and takes them away again.
func (e *env) withPair(ctx context.Context, use func(context.Context, *testsite.Pair) error) error {
	return e.withPairIn(ctx, e.tempDir, nil, use)
}

// withPairIn does so below a directory. configure, if there is one, changes the sites before they start.
func (e *env) withPairIn(ctx context.Context, parent string, configure func(*testsite.Pair),
	use func(context.Context, *testsite.Pair) error) (err error) {
	options := testsite.Options{BinDir: e.binDir, Parent: parent}
	if e.applyInterval > 0 {
		options.ReplicatorArgs = append(options.ReplicatorArgs, "--apply-interval", e.applyInterval.String())
	}
	if e.setting == twoHosts {
		s, splitErr := splitMachine()
		if splitErr != nil {
			return splitErr
		}
		defer func() { err = errors.Join(err, s.end()) }() // after the sites have ended
	}
	pair, err := testsite.New(options)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.keepLogs(pair))
		}
		err = errors.Join(err, pair.Close())
	}()
	if configure != nil {
		configure(pair)
	}
	if e.setting == twoHosts {
		if err := moveSecondary(pair.B); err != nil {
			return err
		}
	}
	startCtx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := pair.Start(startCtx); err != nil {
		return err
	}
	if e.setting == twoHosts {
		if err := confineSecondary(pair.B); err != nil {
			return err
		}
	}
	return use(ctx, pair)
}

// keepLogs copies what the sites' processes logged to the results, before it is removed with them.
func (e *env) keepLogs(pair *testsite.Pair) error {
	dir := filepath.Join(e.resultsDir, "logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, s := range []*testsite.Site{pair.A, pair.B} {
		for _, program := range testsite.Programs {
			text, err := os.ReadFile(s.LogPath(program))
			if err != nil {
				continue // it was never started
			}
			if err := os.WriteFile(filepath.Join(dir, s.Config.Name+"-"+program+".log"), text, 0o644); err != nil {
				return err
			}
		}
	}
	e.say("the sites' logs are in %s", dir)
	return nil
}

// beds makes a bed for each of the variants.
func (e *env) beds(ctx context.Context, pair *testsite.Pair, o bedOptions, variants ...variant) ([]*bed, error) {
	var beds []*bed
	for i, v := range variants {
		if !v.isPlain() && !e.wantedVariants.MatchString(string(v)) {
			continue
		}
		named := o
		named.name = fmt.Sprintf("%s-%d", o.name, i)
		var b *bed
		var err error
		if v == plain {
			b, err = e.plainBed(ctx, pair, named)
		} else {
			b, err = e.slipstreamBed(ctx, pair, v, named)
		}
		if err != nil {
			return nil, fmt.Errorf("preparing %s: %w", v, err)
		}
		beds = append(beds, b)
	}
	return beds, nil
}
