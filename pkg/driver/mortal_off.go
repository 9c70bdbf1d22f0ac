//go:build !slipstream_bugs

package driver

import "google.golang.org/grpc"

// mortal and mortalCalls have a driver killed at a step of a test's choice; see the build with the tag slipstream_bugs. Here they
// are nothing.
func mortal(sys system) system                   { return sys }
func mortalCalls() []grpc.UnaryClientInterceptor { return nil }
