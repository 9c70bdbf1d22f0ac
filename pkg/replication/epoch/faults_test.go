package epoch

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// The search and the simulation can fail: with a deliberate fault built in, they do.
func TestFaultsOfEpochsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.ReleaseBeforeReady: "TestSearchCuts",
		bug.MarkAfterRelease:   "TestSearchCuts",
		bug.ObeyEarlierLife:    "TestSearchCuts",
		bug.PromoteIncomplete:  "TestSearchPromotions",
		bug.ObeyEveryCollector: "TestSearchPromotions",
		bug.DemoteUncovered:    "TestSearchDemotions",
	} {
		testenv.Catches(t, fault, test)
	}
}
