package groups

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// promoteAt opens a group at a recovery point, undecided.
func (c *cli) promoteAt(ctx context.Context, sidecar sidecarpb.SidecarClient, name, at string,
	consent *frame.Consent) error {
	request := &sidecarpb.PromoteRequest{Group: name}
	if err := setPromotionPoint(request, at, time.Now()); err != nil {
		return err
	}
	before, err := group(ctx, sidecar, name)
	if err != nil {
		return err
	}
	if before.GetTrial() == nil && before.GetRole() == sidecarpb.Role_ROLE_SECONDARY {
		if err := c.Confirm(consent, pointText(before, at), "Open "+name+" at that point?"); err != nil {
			return err
		}
	}
	response, err := sidecar.Promote(ctx, request)
	if err != nil {
		return err
	}
	return c.ShowChange(response, before.GetTrial() == nil, func() error {
		t := response.GetStatus().GetTrial()
		fmt.Fprintf(c.Out, "group %s is open here as of ordinal %d, %s; %s past it are kept\n", name, t.GetOrdinal(),
			pointTime(t.UnixNanos), words.Count(t.GetUndoneWrites(), "write"))
		_, err := fmt.Fprintf(c.Out, "look at it; then stay there (slipctl group commit %[1]s) or go back (slipctl group "+
			"rollback %[1]s)\n", name)
		return err
	})
}

// setPromotionPoint reads the value of --at as that of a view is read.
func setPromotionPoint(r *sidecarpb.PromoteRequest, at string, now time.Time) error {
	var view sidecarpb.CreateViewRequest
	if err := setPoint(&view, at, now); err != nil {
		return err
	}
	switch p := view.Point.(type) {
	case *sidecarpb.CreateViewRequest_Ordinal:
		r.Point = &sidecarpb.PromoteRequest_Ordinal{Ordinal: p.Ordinal}
	case *sidecarpb.CreateViewRequest_AtUnixNanos:
		r.Point = &sidecarpb.PromoteRequest_AtUnixNanos{AtUnixNanos: p.AtUnixNanos}
	case *sidecarpb.CreateViewRequest_Bookmark:
		r.Point = &sidecarpb.PromoteRequest_Bookmark{Bookmark: p.Bookmark}
	default:
		return frame.Usagef("--at: the point is missing")
	}
	return nil
}

// pointText says what opening a point does.
func pointText(g *sidecarpb.GroupStatus, at string) string {
	peer, w := frame.OrDash(g.GetPeer()), &strings.Builder{}
	fmt.Fprintf(w, "Opening %s at %s, undecided:\n", g.GetName(), at)
	fmt.Fprintf(w, "  makes its %s writable here as they were at that point;\n",
		words.Count(len(g.GetVolumes()), "volume"))
	fmt.Fprintf(w, "  keeps all that is here now, up to ordinal %d, until you commit or roll back;\n",
		g.GetDurableOrdinal())
	fmt.Fprintf(w, "  takes nothing from %s meanwhile, and ends the history before the point.\n", peer)
	if g.GetConnected() {
		fmt.Fprintf(w, "%s is connected. To look only, open a view: `slipctl view create %s --at %s`.\n", peer,
			g.GetName(), at)
	}
	return w.String()
}

func (c *cli) groupCommit() *cobra.Command {
	var discard bool
	var consent *frame.Consent
	cmd := &cobra.Command{
		Use:   "commit NAME",
		Short: "Stay at the point that a group was promoted to",
		Long: "Stay at the point that `slipctl group promote NAME --at POINT` opened. What this site held past the point\n" +
			"is kept as snapshots first (`slipctl group tails NAME`), which copies the volumes. With --discard it is given\n" +
			"up. Then the peer is told: if it wrote past the point, one of the two sites yields.",
		Example: "  slipctl group commit shop\n  slipctl group commit shop --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := given[0]
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				if t := before.GetTrial(); t != nil {
					if err := c.Confirm(consent, commitText(before, discard), "Commit "+name+"?"); err != nil {
						return err
					}
				}
				response, err := sidecar.CommitTrial(ctx, &sidecarpb.CommitTrialRequest{Group: name, Discard: discard})
				if err != nil {
					return err
				}
				return c.Show(response, func() error { return c.printCommitted(name, response) })
			})
		},
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "give up what this site held past the point, and keep no snapshots")
	consent = frame.AddYes(cmd)
	return cmd
}

func commitText(g *sidecarpb.GroupStatus, discard bool) string {
	t, peer, w := g.GetTrial(), frame.OrDash(g.GetPeer()), &strings.Builder{}
	fmt.Fprintf(w, "Group %s stays at ordinal %d, %s:\n", g.GetName(), t.GetOrdinal(), pointTime(t.UnixNanos))
	past := fmt.Sprintf("%s in %s past the point", words.Count(t.GetUndoneWrites(), "write"),
		frame.FormatBytes(t.GetUndoneBytes()))
	switch {
	case t.HeldOrdinal == nil:
		fmt.Fprintf(w, "  what this site held past the point is lost;\n")
	case discard:
		fmt.Fprintf(w, "  %s are given up: they were here, and nothing of them is kept;\n", past)
	default:
		fmt.Fprintf(w, "  %s are kept as snapshots of the volumes at ordinal %d;\n", past, t.GetHeldOrdinal())
	}
	fmt.Fprintf(w, "  %s cannot go on with this group until one of the two sites yields.\n", peer)
	return w.String()
}

func (c *cli) printCommitted(name string, r *sidecarpb.CommitTrialResponse) error {
	if !r.GetChanged() {
		return c.nothingToDecide(name)
	}
	fmt.Fprintf(c.Out, "group %s is primary here, at ordinal %d\n", name, r.GetStatus().GetLoss().GetRecoveredOrdinal())
	if r.GetTailId() != "" {
		fmt.Fprintf(c.Out, "what was held past it is %s\n", r.GetTailId())
	}
	return c.printLoss(r.GetStatus().GetLoss())
}

func (c *cli) nothingToDecide(name string) error {
	_, err := fmt.Fprintf(c.Out, "group %s is not open at a point here; nothing changed\n", name)
	return err
}

func (c *cli) groupRollBack() *cobra.Command {
	var consent *frame.Consent
	cmd := &cobra.Command{
		Use:   "rollback NAME",
		Short: "Go back from the point that a group was promoted to",
		Long: "Go back to what this site held before `slipctl group promote NAME --at POINT`. The group is secondary\n" +
			"again, with everything that had arrived, and follows its peer. What was written here since is lost. No volume\n" +
			"of the group may be attached.",
		Example: "  slipctl group rollback shop\n  slipctl group rollback shop --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := given[0]
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				if t := before.GetTrial(); t != nil {
					text := fmt.Sprintf("Group %s goes back from ordinal %d to what it held, ordinal %d, and is "+
						"secondary again.\nWhat was written here since %s is lost.\n", name, t.GetOrdinal(), t.GetHeldOrdinal(),
						frame.WhenText(t.GetSinceUnixNanos()))
					if err := c.Confirm(consent, text, "Roll "+name+" back?"); err != nil {
						return err
					}
				}
				response, err := sidecar.RollBackTrial(ctx, &sidecarpb.RollBackTrialRequest{Group: name})
				if err != nil {
					return err
				}
				return c.Show(response, func() error {
					if !response.GetChanged() {
						return c.nothingToDecide(name)
					}
					_, err := fmt.Fprintf(c.Out, "group %s is secondary here again, at ordinal %d, and follows %s\n", name,
						response.GetStatus().GetDurableOrdinal(), frame.OrDash(response.GetStatus().GetPeer()))
					return err
				})
			})
		},
	}
	consent = frame.AddYes(cmd)
	return cmd
}

// trialLine is a trial in the status of a group.
func trialLine(t *sidecarpb.TrialStatus) string {
	text := fmt.Sprintf("as of ordinal %d, %s, since %s", t.GetOrdinal(), pointTime(t.UnixNanos),
		frame.WhenText(t.GetSinceUnixNanos()))
	if t.HeldOrdinal == nil {
		return text + "; what was held before is lost"
	}
	return text + fmt.Sprintf("; a rollback goes to ordinal %d", t.GetHeldOrdinal())
}
