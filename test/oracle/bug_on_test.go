//go:build slipstream_bugs

package main

import (
	"context"
	"errors"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

// TestCatches shows that the search can fail: each deliberate fault is found, and without one nothing is.
func TestCatches(t *testing.T) {
	t.Cleanup(func() { _ = setBug("") })
	const most = 600 // rounds
	for _, fault := range []bug.Name{
		"", bug.SwapRecords, bug.ApplyBeforeDurable, bug.AckBeforeDurable, bug.PromoteInSync, bug.FlushNothing,
		bug.RecallVolatile,
		bug.ForgetFolded, bug.FoldUnordered, bug.TrustOrdinals, bug.FollowAnyone, bug.MiscountLoss,
		bug.CutAfterApply, bug.CutTwoOrdinals, bug.ForgetChanges, bug.KeepNothing, bug.RollBackInPart,
		bug.VerifySkips, bug.YieldWithoutRanges, bug.YieldWithoutTail, bug.ViewAfterApply,
	} {
		name, rounds := string(fault), most
		if fault == "" {
			name, rounds = "none", 60
		}
		t.Run(name, func(t *testing.T) {
			if err := setBug(fault); err != nil {
				t.Fatal(err)
			}
			tally, round := &tally{}, memRound
			switch fault {
			case bug.FoldUnordered:
				round = stormRound // one in 50 of these shows it
			case bug.TrustOrdinals:
				round = rollbackRound
			case bug.YieldWithoutRanges, bug.YieldWithoutTail, bug.ViewAfterApply:
				round = circleRound
			}
			err := search(context.Background(), firstSeed(t), rounds, memParallel(), tally, never, round)
			var v *violation
			switch {
			case fault == "" && err != nil:
				t.Fatal(err)
			case fault == "":
			case err == nil:
				t.Fatalf("not caught in %d rounds: %v", rounds, tally)
			case !errors.As(err, &v):
				t.Fatalf("not caught, but failed after %d rounds: %v", tally.rounds.Load(), err)
			default:
				t.Logf("caught in round %d: %.300s", tally.rounds.Load(), v.what)
			}
		})
	}
}
