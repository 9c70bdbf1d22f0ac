package groups

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// The conditions of group wait.
const (
	waitCopy       = "copy"
	waitCaughtUp   = "caught-up"
	waitConnected  = "connected"
	waitPromotable = "promotable"
)

// WaitInterval is the time between the statuses of a wait.
const WaitInterval = 200 * time.Millisecond

// holds reports whether a condition is true. A group that can only come there by another command is an error.
func holds(condition string, g *sidecarpb.GroupStatus) (bool, error) {
	streaming := g.GetState() == sidecarpb.GroupState_GROUP_STATE_STREAMING
	switch {
	case condition == waitPromotable && g.GetPromotable(), condition == waitConnected && g.GetConnected(),
		condition == waitCopy && streaming && g.GetPromotable(),
		condition == waitCaughtUp && streaming && g.LagOrdinals != nil && g.GetLagOrdinals() == 0:
		return true, nil
	}
	switch g.GetState() {
	case sidecarpb.GroupState_GROUP_STATE_FAILED, sidecarpb.GroupState_GROUP_STATE_DIVERGED,
		sidecarpb.GroupState_GROUP_STATE_IDLE, sidecarpb.GroupState_GROUP_STATE_DEMOTED,
		sidecarpb.GroupState_GROUP_STATE_SUSPENDED, sidecarpb.GroupState_GROUP_STATE_TRIAL:
		return false, status.Errorf(codes.FailedPrecondition, "group %s is %s: waiting does not change that; see "+
			"`slipctl group status %s`", g.GetName(), stateText(g), g.GetName())
	}
	return false, nil
}

func (c *cli) groupWait() *cobra.Command {
	var condition string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until a group has a whole copy, or has caught up",
		Long: "The conditions, with --for:\n" +
			"  copy        the copy is whole and follows\n" +
			"  caught-up   the copy is whole and lacks nothing that was written\n" +
			"  connected   the two sites are connected\n" +
			"  promotable  a forced promotion at this site would give one instant\n" +
			"The command shows the progress of a sync, its rate and the time left. It fails at once in a state that waiting\n" +
			"does not end.",
		Example: "  slipctl group wait shop\n  slipctl group wait shop --for caught-up --timeout 5m",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				return c.waitFor(ctx, sidecar, given[0], condition, timeout)
			})
		},
	}
	frame.AddEnum(cmd, cmd.Flags(), &condition, "for", "", "what to wait for", waitCopy, waitCaughtUp, waitConnected,
		waitPromotable)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "longest time to wait; 0: no limit")
	return cmd
}

// waitFor shows the progress on standard error, and the last status as the result.
func (c *cli) waitFor(ctx context.Context, sidecar sidecarpb.SidecarClient, name, condition string,
	timeout time.Duration) error {
	var meter syncMeter
	g, err := c.watchUntil(ctx, sidecar, name, condition, timeout,
		func(now time.Time, g *sidecarpb.GroupStatus) (bool, string, error) {
			meter.observe(now, g)
			done, err := holds(condition, g)
			return done, meter.text(), err
		})
	if err != nil {
		return err
	}
	return c.Show(g, func() error {
		_, err := fmt.Fprintf(c.Out, "group %s: %s, lag %s\n", name, stateText(g), lagCell(g, lagText(g)))
		return err
	})
}

// watchUntil watches a group until look says that it is done or returns an error, and returns the last status. About
// once a second it prints the status to standard error, with the text that look returns. what says what the group is
// when look is done, for the error after the timeout; 0 is no limit.
func (c *cli) watchUntil(ctx context.Context, sidecar sidecarpb.SidecarClient, name, what string, timeout time.Duration,
	look func(now time.Time, g *sidecarpb.GroupStatus) (done bool, text string, err error)) (*sidecarpb.GroupStatus,
	error) {
	watching := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		watching, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	// The end of the time is noticed here or, a little earlier, by the other side, which then ends the stream.
	late := func(err error) bool {
		code := status.Code(err)
		return timeout > 0 && ctx.Err() == nil && (watching.Err() != nil || code == codes.DeadlineExceeded ||
			code == codes.Canceled || errors.Is(err, io.EOF))
	}
	var last *sidecarpb.GroupStatus
	var shown time.Time
	stream, err := sidecar.WatchGroup(watching, &sidecarpb.WatchGroupRequest{Name: name,
		IntervalMillis: WaitInterval.Milliseconds()})
	if err != nil && late(err) {
		return nil, frame.Latef("group %s: no answer within %v, so it is not known whether it is %s", name, timeout, what)
	}
	if err != nil {
		return nil, err
	}
	for {
		g, err := stream.Recv()
		if late(err) {
			return nil, frame.Latef("group %s is not %s after %v: %s", name, what, timeout, stateText(last))
		}
		if err != nil {
			return nil, err
		}
		last = g
		now := time.Now()
		done, text, err := look(now, g)
		if err != nil || done {
			return g, err
		}
		if now.Sub(shown) >= time.Second {
			shown = now
			fmt.Fprintln(c.Err, statusLine(now, g, text))
		}
	}
}
