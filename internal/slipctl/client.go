package slipctl

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// callTimeout bounds a call that is expected to be short. Calls that wait for disks, such as promotion and demotion,
// have longerTimeout.
const (
	callTimeout   = 20 * time.Second
	longerTimeout = 10 * time.Minute
)

// withSidecar connects to the replicator, or to those of a site in Kubernetes, for one call. The call fails at once if
// nothing listens at the endpoint.
func (c *cli) withSidecar(ctx context.Context, timeout time.Duration,
	call func(context.Context, sidecarpb.SidecarClient) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if c.kube.set() {
		return c.withCluster(ctx, call)
	}
	// No TLS: the endpoint is a Unix socket.
	conn, err := grpc.NewClient(c.sidecar, append(sidecarclient.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return usagef("--sidecar %q: %v (it is written as unix:///run/slipstream/replicator.sock)", c.sidecar, err)
	}
	defer conn.Close()
	return call(ctx, sidecarpb.NewSidecarClient(conn))
}
