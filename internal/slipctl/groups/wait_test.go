package groups

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// busySidecar answers no call before its deadline.
type busySidecar struct{ sidecarpb.SidecarClient }

func (busySidecar) WatchGroup(ctx context.Context, _ *sidecarpb.WatchGroupRequest,
	_ ...grpc.CallOption) (grpc.ServerStreamingClient[sidecarpb.GroupStatus], error) {
	<-ctx.Done()
	return nil, status.Error(codes.DeadlineExceeded, "while waiting for connections to become ready")
}

// A wait that ends before the first answer has the status of a wait that --timeout ended.
func TestWaitEndsBeforeTheFirstAnswer(t *testing.T) {
	c := &cli{&frame.CLI{Out: io.Discard, Err: io.Discard}}
	err := c.waitFor(t.Context(), busySidecar{}, "shop", waitPromotable, time.Millisecond)
	if message, code := frame.Explain(err); code != 5 || !strings.Contains(message, "no answer within 1ms") {
		t.Fatalf("status %d: %s", code, message)
	}
}
