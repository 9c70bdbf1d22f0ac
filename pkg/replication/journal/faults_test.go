package journal

import (
	"testing"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
)

// TestFaultsAreCaught: the model finds records that a cursor has too early.
func TestFaultsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the journal with a deliberate fault")
	}
	testenv.Catches(t, bug.RecallVolatile, "TestModel")
}
