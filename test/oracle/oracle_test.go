package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/bug/inject"
	"github.com/slipstream-storage/slipstream/internal/testsite"
)

func TestMain(m *testing.M) {
	flag.Parse()
	quiet()
	debug.SetGCPercent(400) // most of what a round allocates dies with it
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var seedFlag = flag.Uint64("seed", 0, "of the first round; 0 draws one")

func firstSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d; repeat a round with: go run ./test/oracle --mode memory (or loop) --rounds 1 --seed <its seed>", seed)
	return seed
}

// TestMemory is the search for violations on the engine in memory. How many more rounds than the least there are is a
// matter of the machine.
func TestMemory(t *testing.T) {
	// Circles cover disasters, moves and comparisons, too: what is left for these rounds are writers side by side,
	// snapshots, and disks that are put back.
	least, budget := int64(1000), 20*time.Second
	if testing.Short() {
		least, budget = 100, 5*time.Second
	}
	tally := &tally{}
	events := happened{
		"rounds ended in disaster": &tally.disasters, "old primaries came back": &tally.reunions,
		"rounds were relocated": &tally.relocations, "promotions were judged": &tally.promotions,
		"promotions were refused before the first sync had ended": &tally.unpromotable,
		"a copy was promoted in the middle of a sync":             &tally.inSync,
		"copies were judged after a crash":                        &tally.judged,
		"both sites were compared beside events":                  &tally.verifies,
		"a changed byte was found":                                &tally.differences,
		"disks were put back":                                     &tally.rollbacks,
		"a disk that was put back made the sites diverge":         &tally.rollbacksDiverged,
	}
	deadline := time.Now().Add(budget)
	enough := func() bool { return !events.goOn(tally.rounds.Load(), least) && time.Now().After(deadline) }
	const endless = 1 << 30
	if err := search(context.Background(), firstSeed(t), endless, memParallel(), tally, enough, memRound); err != nil {
		t.Fatalf("after %d rounds: %v", tally.rounds.Load(), err)
	}
	t.Log(tally)
	events.check(t, tally.rounds.Load())
}

var circlesFlag = flag.Int64("circles", 2000, "how many rounds TestCircle runs; a fifth on a slow machine")

// TestCircle is the search in circles: forks and ways back, moves, resyncs, views, members, suspensions, comparisons.
func TestCircle(t *testing.T) {
	rounds := *circlesFlag
	if testing.Short() {
		rounds = 40
	}
	tally := &tally{}
	c := &tally.circle
	events := happened{
		"the group forked": &c.forks, "the promoted site gave way": &c.loserPromoted, "a tail was judged": &c.tails,
		"the group was relocated": &c.relocations, "an outage was longer than the journal": &c.resyncs,
		"a promotion was judged": &c.drills, "a promotion in the middle of a sync was judged": &c.drillsInSync,
		"a view was opened": &c.views, "a view was judged again": &c.viewsLater, "a failover was tested": &c.testFailovers,
		"a bookmark was set": &c.bookmarks, "the group was suspended": &c.suspensions,
		"a changed byte was repaired": &c.repairs, "a volume was removed": &c.removed, "a volume was grown": &c.grown,
		"a site was killed": &c.kills, "a site lost power": &c.powerLosses,
	}
	// Many tests beside it make a round take ten times as long.
	const patient = 4 * time.Minute
	late := time.Now().Add(patient)
	enough := func() bool {
		least := rounds
		if time.Now().After(late) {
			least /= 5
		}
		return !events.goOn(tally.rounds.Load(), least)
	}
	const endless = 1 << 30
	if err := search(context.Background(), firstSeed(t), endless, memParallel(), tally, enough, circleRound); err != nil {
		t.Fatalf("after %d rounds: %v", tally.rounds.Load(), err)
	}
	t.Logf("%d rounds: %v", tally.rounds.Load(), c)
	events.check(t, tally.rounds.Load())
}

// buildPrograms builds the programs of a site, with the deliberate faults if this test has them, and returns their
// directory.
func buildPrograms(ctx context.Context, t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var flags []string
	if bug.Available {
		var err error
		if flags, err = inject.Flags(t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if err := testsite.Build(ctx, dir, flags...); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestFaultsAreCaught runs the searches of bug_on_test.go, which need a build that can be made to misbehave.
func TestFaultsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	flags, err := inject.Flags(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", slices.Concat([]string{"test"}, flags,
		[]string{"-count=1", "-v", "-run", "^TestCatches$", "."})...)
	cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG=")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
}

func TestSearchStopsAtTheFirstFailure(t *testing.T) {
	wrong := errors.New("wrong")
	done := &tally{}
	err := search(context.Background(), 100, 50, 1, done, never, func(_ context.Context, seed uint64, _ *tally) error {
		if seed == 107 {
			return wrong
		}
		return nil
	})
	var f *failure
	if !errors.As(err, &f) || f.seed != 107 || !errors.Is(err, wrong) || done.rounds.Load() != 8 {
		t.Fatalf("%v after %d rounds", err, done.rounds.Load())
	}
}
