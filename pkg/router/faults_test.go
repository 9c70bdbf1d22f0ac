package router

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

func TestFaultsOfAddonsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the controller with deliberate faults")
	}
	testenv.Catches(t, bug.ForceReachable, "TestAddonsForce")
	testenv.Catches(t, bug.UndoAtSecondary, "TestAddonsRelocate")
}

func TestFaultsOfGroupSnapshotsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the controller with deliberate faults")
	}
	testenv.Catches(t, bug.OpenAnywhere, "TestGroupSnapshotOverNodes")
}
