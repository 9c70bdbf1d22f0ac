package groups

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupDropShard() *cobra.Command {
	var lost bool
	cmd := &cobra.Command{
		Use:   "drop-shard NAME NUMBER",
		Short: "Take a shard out of a group over several nodes",
		Long: "NAME is the group on this node, at the primary site, and NUMBER the shard that leaves (slipctl group\n" +
			"status). It must have no volumes, and the copies must have an epoch of all shards; that is waited for.\n" +
			"Afterwards its group on its node can be deleted.\n\n" +
			"With --lost, a shard is given up whose node is gone for good. The other shards have epochs again. What was\n" +
			"written on the lost one since the last epoch is in none, and its copy at the other site stays as it is: to\n" +
			"keep its data, promote the group there instead.",
		Example: "  slipctl group drop-shard shop-node-a 2\n  slipctl group drop-shard shop-node-a 2 --lost --yes",
		Args:    frame.Args(cobra.ExactArgs(2)), ValidArgsFunction: frame.OneOf(c.GroupNames),
	}
	cmd.Flags().BoolVar(&lost, "lost", false, "the node of the shard is gone for good")
	consent := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		number, err := strconv.ParseUint(given[1], 10, 16)
		if err != nil {
			return frame.Usagef("%q is not the number of a shard", given[1])
		}
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			before, err := group(ctx, sidecar, given[0])
			if err != nil {
				return err
			}
			there := slices.Contains(before.GetShard().GetNumbers(), uint32(number))
			if lost && there {
				err := c.Confirm(consent, fmt.Sprintf("Shard %d is given up: its writes since the last epoch are lost, and it "+
					"cannot come back. Its node must never run again with it.", number),
					fmt.Sprintf("Give up shard %d?", number))
				if err != nil {
					return err
				}
			}
			// The call is made in any case: it also completes one that was interrupted.
			if _, err := sidecar.DropShard(ctx, &sidecarpb.DropShardRequest{Group: given[0], Shard: uint32(number),
				Lost: lost}); err != nil {
				return err
			}
			if !there {
				return status.Errorf(codes.NotFound, "the group of %s has no shard %d: nothing was dropped; `slipctl "+
					"group status %[1]s` shows its shards", given[0], number)
			}
			return c.Say(frame.Fields{"group": given[0], "shard": number, "changed": true},
				"shard %d is not in the group of %s any more", number, given[0])
		})
	}
	return cmd
}
