package slipctl

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupPromote() *cobra.Command {
	var force bool
	var consent *consent
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "Make this site's copy of a group the primary",
		Long: "Without --force the command fails unless the peer was demoted and this site has all of its writes. It loses " +
			"nothing\n" +
			"and does not wait. With --force the group is promoted with the writes that have arrived, whatever the peer does.",
		Example: "  slipctl group promote shop\n  slipctl group promote shop --force",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := given[0]
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				if force {
					before, err := group(ctx, sidecar, name)
					if err != nil {
						return err
					}
					if before.GetRole() != sidecarpb.Role_ROLE_PRIMARY {
						if err := c.confirm(consent, forceText(before), "Promote "+name+"?"); err != nil {
							return err
						}
					}
				}
				response, err := sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: name, Force: force})
				if err != nil {
					return err
				}
				return c.show(response, func() error {
					fmt.Fprintf(c.out, "group %s is primary here, at ordinal %d\n", name, response.GetStatus().GetHeadOrdinal())
					if loss := response.GetLoss(); loss != nil {
						return c.printLoss(loss)
					}
					return nil
				})
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "promote without the peer; writes that have not arrived are lost")
	consent = addYes(cmd)
	return cmd
}

// forceText says what a forced promotion will do, from what is known before it.
func forceText(g *sidecarpb.GroupStatus) string {
	peer, w := orDash(g.GetPeer()), &strings.Builder{}
	fmt.Fprintf(w, "A forced promotion of %s:\n", g.GetName())
	if b := g.GetBeforeSync(); b != nil {
		fmt.Fprintf(w, "  opens the copy as it was before the sync that runs (%s), at ordinal %d, one instant for all of "+
			"its volumes of then;\n", whenText(b.GetUnixNanos()), b.GetOrdinal())
	} else {
		fmt.Fprintf(w, "  opens the copy as of ordinal %d, one instant for all of its %d volumes;\n", g.GetDurableOrdinal(),
			len(g.GetVolumes()))
	}
	fmt.Fprintf(w, "  gives up what %s wrote after that: %s; when it was last heard: %s, %s;\n", peer, lossAhead(g),
		orUnknown(g.LagOrdinals, formatCount("writes")), orUnknown(g.LagBytes, formatBytes))
	fmt.Fprintf(w, "  begins a new timeline: %s cannot go on with this group until one of the two yields.\n", peer)
	if g.GetConnected() {
		fmt.Fprintf(w, "%s is connected. If it still works, `slipctl group demote %s` there and a promotion without --force "+
			"lose nothing.\n", peer, g.GetName())
	}
	if !g.GetPromotable() {
		fmt.Fprintf(w, "The copy is not of one instant now (%s), so the promotion will be refused.\n",
			orDash(g.GetStateReason()))
	}
	return w.String()
}

// lossAhead says how much time's worth of writes a forced promotion gives up.
func lossAhead(g *sidecarpb.GroupStatus) string {
	if g.LagSeconds == nil {
		return "for how long it may have written is unknown"
	}
	return "at most what it wrote in the last " + formatSeconds(g.GetLagSeconds())
}

func (c *cli) groupDemote() *cobra.Command {
	return &cobra.Command{
		Use:     "demote NAME",
		Short:   "Stop being primary, so that the peer can be promoted without loss",
		Long:    "No volume of the group may be attached. All writes become durable here and are shipped to the peer.",
		Example: "  slipctl group demote shop",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.Demote(ctx, &sidecarpb.DemoteRequest{Group: given[0]})
				if err != nil {
					return err
				}
				return c.show(response, func() error {
					_, err := fmt.Fprintf(c.out, "group %s is demoted, its last ordinal is %d; promote it at the peer\n", given[0],
						response.GetFinalOrdinal())
					return err
				})
			})
		},
	}
}
