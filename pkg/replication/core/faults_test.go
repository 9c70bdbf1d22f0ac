package core

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// The simulation and the scripts can fail: with a deliberate fault built in, they do.
func TestFaultsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the core with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.ReleaseUnacknowledged: "TestSimulation",
		bug.PromoteAwaiting:       "TestSimulation",
		bug.FollowFork:            "TestSimulation",
		bug.FollowYielding:        "TestSimulation",
		bug.NoteLateHello:         "TestSimulation",
		bug.ForgetLoss:            "TestSimulation",
		bug.TakeOverUnasked:       "TestSimulation",
		bug.CountOwnSessions:      "TestScripts",
	} {
		testenv.Catches(t, fault, test)
	}
}
