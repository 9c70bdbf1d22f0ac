//go:build !slipstream_bugs

package host

import "google.golang.org/grpc"

// withKillSteps returns sys. In a build with the tag slipstream_bugs it has a driver killed at a step of a test's
// choice.
func withKillSteps(sys System) System { return sys }

// KillStepCalls returns nothing. In a build with the tag slipstream_bugs it counts calls of the replicator as steps.
func KillStepCalls() []grpc.UnaryClientInterceptor { return nil }
