package groups

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func (c *cli) groupPromote() *cobra.Command {
	var force bool
	var at string
	var timeout time.Duration
	var consent *frame.Consent
	var without []uint
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
			"NAME`)\nor go back to all that had arrived (`slipctl group rollback NAME`).\n" +
			"Of a shard the whole group is promoted. A copy whose node is lost is left out with --force and --without, and\n" +
			"is not part of the group any more.",
		Example: "  slipctl group promote shop\n  slipctl group promote shop --timeout 1m\n  slipctl group promote " +
			"shop --force\n  slipctl group promote shop --at -10m",
		Args: frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := given[0]
			if cmd.Flags().Changed("at") {
				if force || cmd.Flags().Changed("timeout") || len(without) > 0 {
					return frame.Usagef("--at opens what is here, and needs neither --force nor --timeout")
				}
				return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
					return c.promoteAt(ctx, sidecar, name, at, consent)
				})
			}
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context,
				sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				if force && before.GetRole() != sidecarpb.Role_ROLE_PRIMARY {
					if err := c.Confirm(consent, forceText(before), "Promote "+name+"?"); err != nil {
						return err
					}
				}
				response, err := sidecar.Promote(ctx, &sidecarpb.PromoteRequest{Group: name, Force: force,
					TimeoutMillis: timeout.Milliseconds(), Without: numbersOf(without)})
				if err != nil {
					return err
				}
				return c.ShowChange(response, !isPrimary(before), func() error {
					if isPrimary(before) {
						_, err := fmt.Fprintf(c.Out, "group %s is primary here already; nothing changed\n", name)
						return err
					}
					fmt.Fprintf(c.Out, "group %s is primary here, at ordinal "+
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
	cmd.Flags().UintSliceVar(&without, "without", nil, "with --force: numbers of the shards whose copies are "+
		"lost for good")
	consent = frame.AddYes(cmd)
	return cmd
}

func numbersOf(list []uint) (numbers []uint32) {
	for _, n := range list {
		numbers = append(numbers, uint32(min(n, math.MaxUint32)))
	}
	return numbers
}

// isPrimary reports whether a group takes writes here: neither demoted nor giving way.
func isPrimary(g *sidecarpb.GroupStatus) bool {
	return g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetTrial() == nil &&
		g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED &&
		g.GetState() != sidecarpb.GroupState_GROUP_STATE_YIELDING
}

// forceText says what a forced promotion will do, from what is known before it.
func forceText(g *sidecarpb.GroupStatus) string {
	peer, w := frame.OrDash(g.GetPeer()), &strings.Builder{}
	fmt.Fprintf(w, "A forced promotion of %s:\n", g.GetName())
	if b := g.GetBeforeSync(); b != nil {
		fmt.Fprintf(w, "  opens the copy as it was before the sync that runs (%s), at ordinal %d, one instant for all of "+
			"its volumes of then;\n", frame.WhenText(b.GetUnixNanos()), b.GetOrdinal())
	} else {
		fmt.Fprintf(w, "  opens the copy as of ordinal %d, one instant for all of its %s;\n", g.GetDurableOrdinal(),
			words.Count(len(g.GetVolumes()), "volume"))
	}
	fmt.Fprintf(w, "  gives up what %s wrote after that: %s; when it was last heard: %s, %s;\n", peer, lossAhead(g),
		frame.OrUnknown(g.LagOrdinals, frame.FormatCount("write")), frame.OrUnknown(g.LagBytes, frame.FormatBytes))
	fmt.Fprintf(w, "  begins a new timeline: %s cannot go on with this group until one of the two sites "+
		"yields.\n", peer)
	if g.GetConnected() {
		fmt.Fprintf(w, "%s is connected. If it still works, this loses nothing: %s.\n", peer,
			core.Command{Site: peer, Verb: core.CommandRelocate, Name: g.GetName()})
	}
	if !g.GetPromotable() {
		fmt.Fprintf(w, "The copy is not of one instant now (%s), so the promotion will be refused.\n",
			frame.OrDash(g.GetStateReason()))
	}
	return w.String()
}

// lossAhead says how much time's worth of writes a forced promotion gives up.
func lossAhead(g *sidecarpb.GroupStatus) string {
	if g.LagSeconds == nil {
		return "for how long it may have written is unknown"
	}
	return "at most what it wrote in the last " + frame.FormatSeconds(g.GetLagSeconds())
}

func (c *cli) groupDemote() *cobra.Command {
	return &cobra.Command{
		Use:   "demote NAME",
		Short: "Stop being primary, so that the peer can be promoted without loss",
		Long: "No volume of the group may be attached. All writes become durable here and are shipped to the peer.\n" +
			"`slipctl group relocate NAME` does this and promotes the peer.\n" +
			"Of a shard it demotes the whole group, from any node. The copies of all shards must be whole and connected. If\n" +
			"it stops at a shard, no shard takes writes: repeat it, or take it back with `slipctl group promote NAME`.",
		Example: "  slipctl group demote shop",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context,
				sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, given[0])
				if err != nil {
					return err
				}
				response, err := sidecar.Demote(ctx, &sidecarpb.DemoteRequest{Group: given[0]})
				if err != nil {
					return err
				}
				changed := before.GetRole() != sidecarpb.Role_ROLE_SECONDARY &&
					before.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED
				return c.ShowChange(response, changed, func() error {
					if before.GetRole() == sidecarpb.Role_ROLE_SECONDARY {
						_, err := fmt.Fprintf(c.Out, "group %s is secondary here and follows %s; nothing changed\n", given[0],
							frame.OrDash(before.GetPeer()))
						return err
					}
					next := core.Command{Site: "the peer", Verb: core.CommandPromote, Name: given[0]}
					if response.FinalEpoch != nil {
						_, err := fmt.Fprintf(c.Out, "all shards of the group of %s are demoted at epoch %d, which has everything; %s "+
							"goes on with it\n", given[0], response.GetFinalEpoch(), next)
						return err
					}
					_, err := fmt.Fprintf(c.Out, "group %s is demoted, its last ordinal is %d; %s goes on with it\n", given[0],
						response.GetFinalOrdinal(), next)
					return err
				})
			})
		},
	}
}
