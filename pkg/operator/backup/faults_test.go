package backup

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestFaultsOfWaitingAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the operator with deliberate faults")
	}
	testenv.Catches(t, bug.TakeForeignClaim, "TestForeignObjects")
	testenv.Catches(t, bug.AcceptAnyNamespace, "TestRefused")
	testenv.Catches(t, bug.RemoveAtFirstLook, "TestLeft")
}
