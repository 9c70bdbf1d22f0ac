// Package sidecarpb is the API between the driver, slipctl and the replicator of one node: generated code, and the
// words for its enums. Messages are not safe for concurrent writes.
package sidecarpb

import (
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ReasonNotReplicable is the reason of an error of AddVolume for a volume that is not attached through the shim.
const ReasonNotReplicable = "NOT_REPLICABLE"

const errorDomain = "slipstream.dev"

// Refusal returns an error with a reason that programs can read.
func Refusal(code codes.Code, reason, message string) error {
	s, err := status.New(code, message).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
	if err != nil {
		return status.Error(code, message)
	}
	return s.Err()
}

// Reason returns the reason of an error that Refusal made, or "".
func Reason(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain {
			return info.GetReason()
		}
	}
	return ""
}

// Unreadable reports that a group cannot be opened: nothing is known of its role and its volumes. Nil is no group.
func (g *GroupStatus) Unreadable() bool { return g != nil && g.GetRole() == Role_ROLE_UNSPECIFIED }

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
