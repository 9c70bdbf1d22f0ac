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
	rounds := int64(30)
	if testing.Short() {
		rounds = 3
	}
	ctx := context.Background()
	binDir := t.TempDir()
	if err := testsite.Build(ctx, binDir); err != nil {
		t.Fatal(err)
	}
	tally := &tally{}
	events := happened{
		"a promotion was judged": &tally.promotions, "the group was relocated": &tally.relocations,
		"a process was killed": &tally.crashes, "a snapshot was judged": &tally.snapshots,
		"a snapshot of the secondary was judged": &tally.secondarySnapshots,
	}
	if testing.Short() {
		clear(events)
	}
	enough := func() bool { return !events.goOn(tally.rounds.Load(), rounds) }
	if err := loopSearch(ctx, binDir, firstSeed(t), extraRounds*int(rounds), tally, enough); err != nil {
		t.Fatalf("after %d rounds: %v", tally.rounds.Load(), err)
	}
	t.Log(tally)
	events.check(t, tally.rounds.Load())
}
