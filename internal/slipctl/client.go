package slipctl

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// callTimeout bounds a call that is expected to be short; promotion and demotion have longerTimeout, because they wait
// for disks and, when planned, for what is on its way.
const (
	callTimeout   = 20 * time.Second
	longerTimeout = 10 * time.Minute
)

// withSidecar dials the replicator, or those of a site in Kubernetes, for one call. An endpoint that nobody listens at fails the call at once.
func (c *cli) withSidecar(ctx context.Context, timeout time.Duration, call func(context.Context, sidecarpb.SidecarClient) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if c.kube.set() {
		return c.withCluster(ctx, call)
	}
	conn, err := grpc.NewClient(c.sidecar, append(sidecarclient.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...) // a Unix socket
	if err != nil {
		return usagef("--sidecar %q: %v (it is written as unix:///run/slipstream/replicator.sock)", c.sidecar, err)
	}
	defer conn.Close()
	return call(ctx, sidecarpb.NewSidecarClient(conn))
}
