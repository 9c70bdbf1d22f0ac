package main

import (
	"context"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// TestShards runs groups over two and three nodes, on real processes and loop devices.
func TestShards(t *testing.T) {
	testenv.RequireLoop(t)
	testenv.RequireFUSE(t)
	rounds := map[int]int{2: 20, 3: 10}
	if testing.Short() {
		rounds = map[int]int{2: 2}
	}
	ctx := context.Background()
	binDir := buildPrograms(ctx, t)
	first := firstSeed(t)
	for nodes, n := range rounds {
		sites, err := startShardSites(ctx, binDir, nodes)
		if err != nil {
			t.Fatal(err)
		}
		recovered := uint64(0)
		for i := range n {
			result, err := sites.round(ctx, first+uint64(i))
			if err != nil {
				t.Errorf("%d nodes: %v", nodes, err)
				break
			}
			recovered += result.recovered
			t.Logf("%d nodes, seed %d: %d of %d writes", nodes, first+uint64(i), result.recovered, result.answered)
		}
		if err := sites.close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			return
		}
		if recovered == 0 {
			t.Errorf("%d nodes: nothing was recovered, so nothing was tested", nodes)
		}
	}
}

// TestShardsCatches shows that TestShards can fail.
func TestShardsCatches(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the programs with deliberate faults")
	}
	for _, fault := range []bug.Name{bug.AnswerInEpoch, bug.PromoteAnywhere} {
		testenv.Catches(t, fault, "TestShards")
	}
}
