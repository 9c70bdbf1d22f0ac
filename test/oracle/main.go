package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

// tally counts what was tested, so that a search that tests nothing is seen.
type tally struct {
	rounds, judged, drills, promotions, unpromotable atomic.Int64
	// inSync are the promotions in the middle of a sync.
	inSync                                              atomic.Int64
	peaceful, relocations, disasters, reunions, crashes atomic.Int64
	// Sites that were put back to an earlier state, and those that the sites called a divergence.
	rollbacks, rollbacksDiverged atomic.Int64
	// Of group snapshots: taken, those of them at a secondary, refused there in a sync, asked for again after a power loss
	// in the middle, judged, and sets of changed blocks judged.
	// verifies are comparisons of both sites that were begun beside events; differences are those that were there, and
	// were found.
	circle                                                                                   circleTally
	verifies, differences                                                                    atomic.Int64
	snapshots, secondarySnapshots, refusedSnapshots, snapshotDrills, judgedSnapshots, deltas atomic.Int64
}

func (t *tally) String() string {
	return fmt.Sprintf(
		"%d rounds: %d ended in peace, %d relocated, %d in disaster, %d with the old primary back; %d promotions (%d in "+
			"the middle of a sync), %d refused before the first sync had ended, %d copies judged after a crash of the "+
			"secondary, %d rollbacks (%d diverged), %d drills, %d replicators killed; %d group snapshots (%d at a "+
			"secondary, %d refused there, %d in a drill), judged %d times, %d sets of changed blocks; %d comparisons, %d "+
			"changed bytes found",
		t.rounds.Load(), t.peaceful.Load(), t.relocations.Load(), t.disasters.Load(), t.reunions.Load(),
		t.promotions.Load(), t.inSync.Load(), t.unpromotable.Load(),
		t.judged.Load(), t.rollbacks.Load(), t.rollbacksDiverged.Load(), t.drills.Load(), t.crashes.Load(),
		t.snapshots.Load(), t.secondarySnapshots.Load(), t.refusedSnapshots.Load(),
		t.snapshotDrills.Load(), t.judgedSnapshots.Load(), t.deltas.Load(),
		t.verifies.Load(), t.differences.Load())
}

// failure is the first round that failed.
type failure struct {
	seed uint64
	err  error
}

func (f *failure) Error() string { return fmt.Sprintf("round with seed %d: %v", f.seed, f.err) }
func (f *failure) Unwrap() error { return f.err }

// search runs rounds with the seeds first, first+1, ... until all are done, until enough says so, or until one fails.
func search(ctx context.Context, first uint64, rounds, parallel int, t *tally, enough func() bool,
	round func(context.Context, uint64, *tally) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var next atomic.Uint64
	var mu sync.Mutex
	var found *failure
	var wg sync.WaitGroup
	for range parallel {
		wg.Go(func() {
			for ctx.Err() == nil && !enough() {
				i := next.Add(1) - 1
				if i >= uint64(rounds) {
					return
				}
				err := round(ctx, first+i, t)
				t.rounds.Add(1)
				if err == nil {
					continue
				}
				mu.Lock()
				if found == nil && ctx.Err() == nil { // a round that was interrupted has found nothing
					found = &failure{first + i, err}
				}
				mu.Unlock()
				cancel()
				return
			}
		})
	}
	wg.Wait()
	if found != nil {
		return found
	}
	return context.Cause(ctx)
}

// memParallel is how many rounds in memory run at a time: they wait more than they compute.
func memParallel() int { return 6 * runtime.GOMAXPROCS(0) }

func never() bool { return false }

// quiet keeps the engine's log away: it tells of every cut and crash.
func quiet() {
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	if os.Getenv("SLIPSTREAM_TEST_LOG") != "" {
		return
	}
	_ = flags.Set("logtostderr", "false")
	_ = flags.Set("stderrthreshold", "FATAL")
	klog.SetOutputBySeverity("INFO", io.Discard)
}

func run(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("oracle", flag.ContinueOnError)
	rounds := flags.Int("rounds", 100, "how many rounds")
	mode := flags.String("mode", "loop",
		"memory: the engine in this process on crashable file systems; circle: the same, through forks "+
			"and back, moves, resyncs, views and members; storm: the same, with folds in the middle of "+
			"syncs; rollback: the same, with disks put back to earlier states; loop: real processes on loop devices, "+
			"as root; loop-circle: circles on these")
	seed := flags.Uint64("seed", uint64(time.Now().UnixNano()), "of the first round; the others have the next ones")
	parallel := flags.Int("parallel", memParallel(), "rounds at a time in mode memory")
	binDir := flags.String("bin-dir", "bin", "keeper, csi-driver and replicator for the modes loop and loop-circle")
	fault := flags.String("bug", "",
		"a deliberate fault of package bug that mode memory has to find; see hack/faulty")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *fault != "" {
		if err := setBug(bug.Name(*fault)); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	t := &tally{}
	fmt.Fprintf(out, "%d rounds in mode %s, seed %d\n", *rounds, *mode, *seed)
	began := time.Now()
	var err error
	switch *mode {
	case "memory":
		err = search(ctx, *seed, *rounds, *parallel, t, never, memRound)
	case "storm":
		err = search(ctx, *seed, *rounds, *parallel, t, never, stormRound)
	case "rollback":
		err = search(ctx, *seed, *rounds, *parallel, t, never, rollbackRound)
	case "circle":
		err = search(ctx, *seed, *rounds, *parallel, t, never, circleRound)
	case "loop":
		err = loopSearch(ctx, *binDir, *seed, *rounds, t, never)
	case "loop-circle":
		err = deviceSearch(ctx, *binDir, func(s *deviceSites) error {
			return search(ctx, *seed, *rounds, 1, t, never, s.circle)
		})
	default:
		return fmt.Errorf("mode %q: it is memory, circle, storm, rollback, loop or loop-circle", *mode)
	}
	if err != nil {
		return fmt.Errorf("after %d rounds: %w", t.rounds.Load(), err)
	}
	if t.circle.circles.Load() > 0 {
		fmt.Fprintf(out, "%v\n", &t.circle)
	}
	fmt.Fprintf(out, "%v, in %v: no violation\n", t, time.Since(began).Round(time.Second/10))
	return nil
}

func main() {
	quiet()
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
