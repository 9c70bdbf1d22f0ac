package frame

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Short bounds a call that is expected to be short. Calls that wait for disks, such as promotion and demotion, have
// Long.
const (
	Short = 20 * time.Second
	Long  = 10 * time.Minute
)

// WithSidecar connects to the replicator, or to those of a site in Kubernetes, for one call. The call fails at once if
// nothing listens at the endpoint.
func (c *CLI) WithSidecar(ctx context.Context, timeout time.Duration,
	call func(context.Context, sidecarpb.SidecarClient) error) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if c.Kube.Set() {
		return c.withCluster(ctx, call)
	}
	// No TLS: the endpoint is a Unix socket.
	conn, err := grpc.NewClient(c.Sidecar, append(sidecarclient.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		return Usagef("--sidecar %q: %v (it is written as unix:///run/slipstream/replicator.sock)", c.Sidecar, err)
	}
	defer conn.Close()
	return answered(conn, call(ctx, sidecarpb.NewSidecarClient(conn)), "no replicator answers at "+c.Sidecar,
		"Is it running? Its --endpoint is what --sidecar or SLIPSTREAM_SIDECAR has to name here.")
}

// answered tells a program that does not answer from one that answers that something else does not. Both are
// Unavailable.
func answered(conn *grpc.ClientConn, err error, what, hint string) error {
	if status.Code(err) != codes.Unavailable || conn.GetState() == connectivity.Ready {
		return err
	}
	return fmt.Errorf("%s: %s\n%s", what, status.Convert(err).Message(), hint)
}
