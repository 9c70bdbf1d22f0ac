package replication

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// The tests of leaving, joining, changing settings and roles, and of missing files, can fail: with a deliberate fault
// built in, they do.
func TestFaultsOfMovingAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.LeaveUnapplied:     "TestCrashWhileMoving",
		bug.KeepOldCopy:        "TestCopyGoesToTheNextGroup",
		bug.ReviveMembers:      "TestSyncAfterComingAndGoing",
		bug.ModifyVolatile:     "TestCrashWhileModifying",
		bug.NoShipLimit:        "TestShipRate",
		bug.FollowOldCall:      "TestOldCall",
		bug.FailWithoutSpace:   "TestServesAgainWithSpace",
		bug.SkipPeerCheck:      "TestStrangerChangesNothing",
		bug.MissingIsEmpty:     "TestEveryFileIsKnown",
		bug.VerifyOtherOrdinal: "TestVerifyUnderLoad",
		bug.VerifySkips:        "TestVerifyFindsAFlippedByte",
		bug.EndElsewhere:       "TestPowerLossesOfAnEmptyJournal",
		bug.DeleteLastCopy:     "TestRemovedCopies",
		bug.TrustExtents:       "TestExtentsOfLostWritesAreCopiedAnew",
		bug.KeepNothing:        "TestPreservedImages",
		bug.RollBackInPart:     "TestPreservedSurvivesPowerLossAnywhere",
	} {
		testenv.Catches(t, fault, test)
	}
}

// The tests of the way back after a fork, and of planned moves, can fail: with a deliberate fault built in, they do.
func TestFaultsOfYieldingAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.YieldWithoutRanges: "TestYield",
		bug.YieldWithoutTail:   "TestForksInARow",
		bug.FollowYielding:     "TestBothYield",
		bug.TakeOverUnasked:    "TestRelocateRefused",
		bug.ExpireNewest:       "TestTailPolicy",
	} {
		testenv.Catches(t, fault, test)
	}
}

// The test of the bound of holds can fail: with a deliberate fault built in, it does.
func TestFaultsOfHoldsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	testenv.Catches(t, bug.MarkAfterExpiry, "TestLateCommitHasNoMark")
}

// The tests of views can fail: with a deliberate fault built in, they do.
func TestFaultsOfViewsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.ViewAfterApply:     "TestViewModel",
		bug.ViewForgetsRecords: "TestViewModel",
		bug.ViewForgetsExtents: "TestViewSurvivesPowerLossAnywhere",
	} {
		testenv.Catches(t, fault, test)
	}
}
