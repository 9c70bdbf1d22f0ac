package groups

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupSuspend() *cobra.Command {
	return &cobra.Command{
		Use:   "suspend NAME",
		Short: "Stop the replication of a group until it is resumed",
		Long: "The application is not disturbed. What it writes is kept for the peer, in the journal or, when that\n" +
			"is full, in the change map. With --journal-full stall, writers wait when the journal is full. The\n" +
			"copy stays promotable. Of a shard, suspend and resume are for the whole group, from any node.",
		Example: "  slipctl group suspend shop",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.Suspend(ctx, &sidecarpb.SuspendRequest{Group: given[0]})
				if err != nil {
					return err
				}
				text := "group %s is suspended; slipctl group resume %[1]s continues"
				if !response.GetChanged() {
					text = "group %s is suspended already; nothing changed"
				}
				return c.Say(frame.Fields{"group": given[0], "changed": response.GetChanged()}, text, given[0])
			})
		},
	}
}

func (c *cli) groupResume() *cobra.Command {
	return &cobra.Command{
		Use:     "resume NAME",
		Short:   "Continue the replication of a suspended group",
		Example: "  slipctl group resume shop",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.Resume(ctx, &sidecarpb.ResumeRequest{Group: given[0]})
				if err != nil {
					return err
				}
				text := "group %s replicates again"
				if !response.GetChanged() {
					text = "group %s is not suspended; nothing changed"
				}
				return c.Say(frame.Fields{"group": given[0], "changed": response.GetChanged()}, text, given[0])
			})
		},
	}
}
