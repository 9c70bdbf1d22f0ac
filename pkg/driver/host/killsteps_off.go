//go:build !slipstream_bugs

package host

import "google.golang.org/grpc"

// mortal and mortalCalls have a driver killed at a step of a test's choice; see the build with the tag slipstream_bugs.
// Here they are nothing.
func withKillSteps(sys System) System              { return sys }
func KillStepCalls() []grpc.UnaryClientInterceptor { return nil }
