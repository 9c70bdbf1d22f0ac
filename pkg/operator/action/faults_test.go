package action_test

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestFaultsOfActionsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the operator with deliberate faults")
	}
	testenv.Catches(t, bug.AnyConfirmation, "TestConfirm")
	testenv.Catches(t, bug.ActUnrecorded, "TestRecordFirst")
}
