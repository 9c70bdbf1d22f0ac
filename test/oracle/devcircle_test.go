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
	rounds, forks := int64(50), 10
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
		c := &tally.circle
		events := happened{
			"the group forked": &c.forks, "the promoted site gave way": &c.loserPromoted, "a tail was judged": &c.tails,
			"the group was relocated": &c.relocations, "an outage was longer than the journal": &c.resyncs,
			"a view was judged": &c.views, "a test failover was judged": &c.testFailovers, "a bookmark was judged": &c.bookmarks,
			"the group was suspended": &c.suspensions, "a changed byte was repaired": &c.repairs,
			"a volume was removed": &c.removed, "a volume was grown": &c.grown, "a replicator was killed": &c.kills,
		}
		if testing.Short() {
			clear(events)
		}
		enough := func() bool { return !events.goOn(tally.rounds.Load(), rounds) }
		if err := search(ctx, firstSeed(t), extraRounds*int(rounds), 1, tally, enough, s.circle); err != nil {
			t.Errorf("after %d rounds: %v", tally.rounds.Load(), err)
			return nil
		}
		t.Log(c)
		events.check(t, tally.rounds.Load())
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
