package shim

import (
	"testing"
	"time"
)

// SetElsewhere shortens what Server.Unmount waits for other mount namespaces, for one test.
func SetElsewhere(t *testing.T, wait, patience time.Duration) {
	oldWait, oldPatience := endWait, elsewherePatience
	endWait, elsewherePatience = wait, patience
	t.Cleanup(func() { endWait, elsewherePatience = oldWait, oldPatience })
}
