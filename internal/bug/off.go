//go:build !slipstream_bugs

package bug

// Available reports whether this build can be made to misbehave.
const Available = false

// Enabled is false in ordinary builds.
func Enabled(Name) bool { return false }
