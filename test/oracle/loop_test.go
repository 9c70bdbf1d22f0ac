package main

import (
	"context"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// TestLoop is the search on real processes and loop devices.
func TestLoop(t *testing.T) {
	testenv.RequireLoop(t)
	testenv.RequireFUSE(t)
	rounds := 30
	if testing.Short() {
		rounds = 3
	}
	ctx := context.Background()
	binDir := t.TempDir()
	if err := testsite.Build(ctx, binDir); err != nil {
		t.Fatal(err)
	}
	tally := &tally{}
	if err := loopSearch(ctx, binDir, firstSeed(t), rounds, tally); err != nil {
		t.Fatalf("after %d rounds: %v", tally.rounds.Load(), err)
	}
	t.Log(tally)
	if !testing.Short() && (tally.promotions.Load() == 0 || tally.relocations.Load() == 0 || tally.crashes.Load() == 0 ||
		tally.snapshots.Load() == 0 || tally.secondarySnapshots.Load() == 0) {
		t.Errorf("%v: the search tests nothing of it", tally)
	}
}
