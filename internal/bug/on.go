//go:build slipstream_bugs

package bug

import (
	"os"
	"sync/atomic"
)

// Available reports whether this build can be made to misbehave.
const Available = true

var current atomic.Value

func init() { current.Store(Name(os.Getenv("SLIPSTREAM_BUG"))) }

// Enabled reports whether the fault was asked for.
func Enabled(n Name) bool { return current.Load() == n }

// Set switches to one fault, or to none with the empty name, within a test's process.
func Set(n Name) { current.Store(n) }
