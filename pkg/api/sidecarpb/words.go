// Package sidecarpb is the API between the driver, slipctl and the replicator of one node: generated code, and the
// words for its enums. Messages are not safe for concurrent writes.
package sidecarpb

import "strings"

// Word returns the role as people and JSON readers see it: "primary" or "secondary"; empty if it is unspecified.
func (r Role) Word() string { return word(r.String(), "ROLE_") }

// Word returns the state as people, JSON readers and metrics see it, such as "streaming"; empty if it is unspecified.
func (s GroupState) Word() string { return word(s.String(), "GROUP_STATE_") }

func word(name, prefix string) string {
	w := strings.ToLower(strings.TrimPrefix(name, prefix))
	if w == "unspecified" {
		return ""
	}
	return w
}
