package slipctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func (c *cli) groupPromote() *cobra.Command {
	var force bool
	var at string
	var timeout time.Duration
	var consent *consent
	cmd := &cobra.Command{
		Use:   "promote NAME",
		Short: "Make this site's copy of a group the primary",
		Long: "Without --force the command fails unless the peer was demoted and this site has all of its writes. It " +
			"loses " +
			"nothing.\n" +
			"It waits for what is on its way, up to --timeout. At a site that was demoted it takes the demotion " +
			"back, if the " +
			"peer\n" +
			"did not take over. With --force the group is promoted with the writes that have arrived, whatever the " +
			"peer does.\n" +
			"If the peer comes back with writes of its own, `slipctl group yield NAME` at one of the two sites makes " +
			"replication " +
			"exist\n" +
			"in the new direction.\n" +
			"With --at the group is opened at an earlier point that is still here (`slipctl group points NAME`), for a\n" +
			"disaster that is in the data. Nothing is decided by that: look at it, then stay there (`slipctl group commit " +
			"NAME`)\nor go back to all that had arrived (`slipctl group rollback NAME`).",
		Example: "  slipctl group promote shop\n  slipctl group promote shop --timeout 1m\n  slipctl group promote " +
			"shop --force\n  slipctl group promote shop --at -10m",
		Args: args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := given[0]
			if cmd.Flags().Changed("at") {
				if force || cmd.Flags().Changed("timeout") {
					return usagef("--at opens what is here, and needs neither --force nor --timeout")
				}
				return c.withSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
					return c.promoteAt(ctx, sidecar, name, at, consent)
				})
			}
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context,
				sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				if force && before.GetRole() != sidecarpb.Role_ROLE_PRIMARY {
					if err := c.confirm(consent, forceText(before), "Promote "+name+"?"); err != nil {
						return err
					}
				}
				response, err := sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: name, Force: force,
					TimeoutMillis: timeout.Milliseconds()})
				if err != nil {
					return err
				}
				return c.show(response, func() error {
					if isPrimary(before) {
						_, err := fmt.Fprintf(c.out, "group %s is primary here already; nothing changed\n", name)
						return err
					}
					fmt.Fprintf(c.out, "group %s is primary here, at ordinal "+
						"%d\n", name, response.GetStatus().GetHeadOrdinal())
					if loss := response.GetLoss(); loss != nil {
						return c.printLoss(loss)
					}
					return nil
				})
			})
		},
	}
	cmd.Flags().StringVar(&at, "at", "", strings.TrimSuffix(pointHelp, "; the newest point by default"))
	cmd.Flags().BoolVar(&force, "force", false, "promote without the peer; writes that have not arrived are lost")
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Second, "longest time to wait for what is on its way")
	consent = addYes(cmd)
	return cmd
}

// isPrimary reports whether a group takes writes here: neither demoted nor giving way.
func isPrimary(g *sidecarpb.GroupStatus) bool {
	return g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetTrial() == nil &&
		g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED &&
		g.GetState() != sidecarpb.GroupState_GROUP_STATE_YIELDING
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
	fmt.Fprintf(w, "  begins a new timeline: %s cannot go on with this group until one of the two sites "+
		"yields.\n", peer)
	if g.GetConnected() {
		fmt.Fprintf(w, "%s is connected. If it still works, this loses nothing: %s.\n", peer,
			core.Command{Site: peer, Verb: core.CommandRelocate, Name: g.GetName()})
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
		Use:   "demote NAME",
		Short: "Stop being primary, so that the peer can be promoted without loss",
		Long: "No volume of the group may be attached. All writes become durable here and are shipped to the peer.\n" +
			"`slipctl group relocate NAME` does this and promotes the peer.",
		Example: "  slipctl group demote shop",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context,
				sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.Demote(ctx, &sidecarpb.DemoteRequest{Group: given[0]})
				if err != nil {
					return err
				}
				return c.show(response, func() error {
					_, err := fmt.Fprintf(c.out, "group %s is demoted, its last ordinal is %d; %s goes on with "+
						"it\n", given[0],
						response.GetFinalOrdinal(), core.Command{Site: "the " +
							"peer", Verb: core.CommandPromote, Name: given[0]})
					return err
				})
			})
		},
	}
}
