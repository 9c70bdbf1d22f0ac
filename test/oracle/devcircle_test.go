package main

import (
	"context"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// TestLoopCircle is the search in circles on real processes and loop devices, and ten forks in a row in both
// directions.
func TestLoopCircle(t *testing.T) {
	testenv.RequireLoop(t)
	testenv.RequireFUSE(t)
	rounds, forks := 50, 10
	if testing.Short() {
		rounds, forks = 3, 2
	}
	ctx := context.Background()
	binDir := buildPrograms(ctx, t)
	err := deviceSearch(ctx, binDir, func(s *deviceSites) error {
		row, tally := &tally{}, &tally{}
		if err := s.forks(ctx, firstSeed(t), row, forks); err != nil {
			t.Errorf("%d forks in a row: %v", forks, err)
			return nil
		}
		t.Logf("in a row: %v", &row.circle)
		if err := search(ctx, firstSeed(t), rounds, 1, tally, never, s.circle); err != nil {
			t.Errorf("after %d rounds: %v", tally.rounds.Load(), err)
			return nil
		}
		c := &tally.circle
		t.Log(c)
		for what, n := range map[string]int64{
			"the group forked": c.forks.Load(), "the promoted site gave way": c.loserPromoted.Load(),
			"a tail was judged": c.tails.Load(), "the group was relocated": c.relocations.Load(),
			"an outage was longer than the journal": c.resyncs.Load(), "a view was judged": c.views.Load(),
			"a test failover was judged": c.testFailovers.Load(), "a bookmark was judged": c.bookmarks.Load(),
			"the group was suspended":     c.suspensions.Load(),
			"a changed byte was repaired": c.repairs.Load(), "a volume was removed": c.removed.Load(),
			"a volume was grown": c.grown.Load(), "a replicator was killed": c.kills.Load(),
		} {
			if n == 0 && !testing.Short() {
				t.Errorf("of %d rounds, in none %s: the search tests nothing of it", rounds, what)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCatchesALostTail shows that TestLoopCircle can fail.
func TestCatchesALostTail(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the programs with deliberate faults")
	}
	testenv.Catches(t, bug.YieldWithoutTail, "TestLoopCircle")
}
