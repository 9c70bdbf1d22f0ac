package shards

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// The tests of the order across nodes can fail: with a deliberate fault built in, they do.
func TestFaultsOfShardsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.AnswerInEpoch:   "TestOrderAcrossNodes",
		bug.PromoteAnywhere: "TestOrderAcrossNodes",
		bug.OpenAnywhere:    "TestViewsShowOneEpoch",
		bug.ForgetDecision:  "TestPromotionOutlivesItsCollector",
	} {
		testenv.Catches(t, fault, test)
	}
	testenv.Catches(t, bug.ForgetSeparate, "TestDisasterBeforeTheFirstEpoch")
}
