package operator

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestFaultsOfTheOperatorAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the operator with deliberate faults")
	}
	testenv.Catches(t, bug.LeaveAtFirstLook, "TestClaimDeleted")
	testenv.Catches(t, bug.LeaveWithoutVolume, "TestObjectsLost")
	testenv.Catches(t, bug.TakeAnyGroup, "TestNotAdmitted")
	testenv.Catches(t, bug.ChangeRemote, "TestRemoteChange")
	testenv.Catches(t, bug.JoinByName, "TestNamespaceMadeAgain")
	testenv.Catches(t, bug.UndoKept, "TestLabelRemoved")
	testenv.Catches(t, bug.WaitForPeer, "TestPeerAway")
	testenv.Catches(t, bug.WriteAnyway, "TestQuiet")
	testenv.Catches(t, bug.UnrecordedNumbers, "TestTwoOperators")
}
