package groups

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

func (c *cli) groupYield() *cobra.Command {
	var wait bool
	var timeout time.Duration
	var consent *frame.Consent
	cmd := &cobra.Command{
		Use:   "yield NAME",
		Short: "Give way to the peer after a forced promotion, and follow it",
		Long: "After a forced promotion both sites can have writes that the other lacks. Give this command at the " +
			"site that " +
			"gives way.\n" +
			"It says what is kept and what is undone, and asks. The writes of this site past the fork are kept as " +
			"snapshots\n" +
			"(`slipctl group tails`), then undone: only what the two sites wrote since the fork is copied. After " +
			"that " +
			"replication\n" +
			"exists in the new direction.\n" +
			"The command can be repeated; a repetition goes on where it was interrupted. Until the peer has called,\n" +
			"`slipctl group promote NAME --force` takes it back.",
		Example: "  slipctl group yield shop\n  slipctl group yield shop --yes --wait --timeout 10m",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			if cmd.Flags().Changed("timeout") && !wait {
				return frame.Usagef("--timeout is for --wait: give both")
			}
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				return c.yield(ctx, sidecar, given[0], consent, wait, timeout)
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until this site is a whole copy of the peer")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "longest time to wait, with --wait; 0: no limit")
	consent = frame.AddYes(cmd)
	return cmd
}

func (c *cli) yield(ctx context.Context, sidecar sidecarpb.SidecarClient, name string, consent *frame.Consent,
	wait bool,
	timeout time.Duration) error {
	plan, err := sidecar.Yield(ctx, &sidecarpb.YieldRequest{Group: name, DryRun: true})
	if err != nil {
		return err
	}
	if undoes(plan) {
		if err := c.Confirm(consent, yieldText(plan), "Yield "+name+"?"); err != nil {
			return err
		}
	}
	response, err := sidecar.Yield(ctx, &sidecarpb.YieldRequest{Group: name})
	if err != nil {
		return err
	}
	if plan.GetYield().GetStage() == "done" && !wait {
		return c.ShowChange(response, false, func() error {
			_, err := fmt.Fprintf(c.Out, "group %s gave way already and follows %s; nothing changed\n", name,
				response.GetStatus().GetPeer())
			return err
		})
	}
	if !wait {
		return c.ShowChange(response, undoes(plan), func() error { return c.printYielded(response) })
	}
	if !c.Structured() {
		fmt.Fprintln(c.Err, keptText(response))
	}
	return c.awaitYield(ctx, sidecar, name, undoes(plan), timeout)
}

// yieldText says what a yield keeps and what it undoes.
func yieldText(plan *sidecarpb.YieldResponse) string {
	g, w := plan.GetStatus(), &strings.Builder{}
	for _, part := range yieldParts(plan) {
		yieldPartText(w, part, g.GetPeer())
	}
	return w.String()
}

// yieldParts are what gives way: a group, or all shards of one.
func yieldParts(r *sidecarpb.YieldResponse) []*sidecarpb.ShardYield {
	if len(r.GetShards()) > 0 {
		return r.GetShards()
	}
	return []*sidecarpb.ShardYield{{GroupName: r.GetStatus().GetName(), Yield: r.GetYield()}}
}

// undoes reports whether a yield would undo something that is not being undone yet.
func undoes(plan *sidecarpb.YieldResponse) bool {
	return slices.ContainsFunc(yieldParts(plan), func(part *sidecarpb.ShardYield) bool {
		y := part.GetYield()
		return y != nil && y.GetStage() == "" && y.GetHeadOrdinal() > y.GetForkOrdinal()
	})
}

func yieldPartText(w *strings.Builder, part *sidecarpb.ShardYield, peer string) {
	y, where := part.GetYield(), ""
	if part.GetNode() != "" {
		where = " on node " + part.GetNode()
	}
	fmt.Fprintf(w, "Group %s%s gives way to %s:\n", part.GetGroupName(), where, frame.OrDash(peer))
	if y == nil {
		fmt.Fprintf(w, "  nothing was written here past the fork;\n")
		return
	}
	fmt.Fprintf(w, "  undone here: ordinals %d to %d, %s%s in %s%s;\n", y.GetForkOrdinal()+1, y.GetHeadOrdinal(),
		atLeast(y.GetPartial()), words.Count(y.GetWrites(), "write"), frame.FormatBytes(y.GetBytes()), tailTimes(y))
	fmt.Fprintf(w, "  kept before that: a snapshot of each of %s, %s in size, see `slipctl group tails`;\n",
		words.Count(len(y.GetVolumeIds()), "volume"), frame.FormatBytes(uint64(max(y.GetSizeBytes(), 0))))
	fmt.Fprintf(w, "  copied then: what the two sites wrote since ordinal %d.\n", y.GetForkOrdinal())
}

func atLeast(partial bool) string {
	if partial {
		return "at least "
	}
	return ""
}

func tailTimes(y interface {
	GetFirstUnixNanos() int64
	GetLastUnixNanos() int64
}) string {
	if y.GetFirstUnixNanos() == 0 {
		return ""
	}
	stamp := func(n int64) string { return time.Unix(0, n).Format(time.RFC3339) }
	return fmt.Sprintf(", written from %s to %s", stamp(y.GetFirstUnixNanos()), stamp(y.GetLastUnixNanos()))
}

func keptText(response *sidecarpb.YieldResponse) string {
	var lines []string
	for _, part := range yieldParts(response) {
		lines = append(lines, keptPartText(part.GetGroupName(), part.GetYield(), response))
	}
	return strings.Join(lines, "\n")
}

func keptPartText(name string, y *sidecarpb.YieldStatus, response *sidecarpb.YieldResponse) string {
	if y == nil || y.GetHeadOrdinal() == y.GetForkOrdinal() {
		return fmt.Sprintf("group %s wrote nothing past the fork here; it follows "+
			"%s", name, response.GetStatus().GetPeer())
	}
	text := fmt.Sprintf("group %s: ordinals %d to %d are kept as snapshots; it follows %s", name, y.GetForkOrdinal()+1,
		y.GetHeadOrdinal(), response.GetStatus().GetPeer())
	if y.GetAll() {
		text += "; everything is copied: " + y.GetReason()
	}
	return text
}

func (c *cli) printYielded(response *sidecarpb.YieldResponse) error {
	_, err := fmt.Fprintln(c.Out, keptText(response))
	return err
}

// awaitYield waits until this site is a whole copy of its peer, and says what was copied for that.
func (c *cli) awaitYield(ctx context.Context, sidecar sidecarpb.SidecarClient, name string, changed bool,
	timeout time.Duration) error {
	g, err := c.watchUntil(ctx, sidecar, name, "a whole copy", timeout,
		func(_ time.Time, g *sidecarpb.GroupStatus) (bool, string, error) {
			role, state := g.GetRole(), g.GetState()
			switch {
			case role == sidecarpb.Role_ROLE_SECONDARY && state == sidecarpb.GroupState_GROUP_STATE_STREAMING &&
				g.GetPromotable():
				return true, "", nil
			case state == sidecarpb.GroupState_GROUP_STATE_FAILED,
				role == sidecarpb.Role_ROLE_PRIMARY && state == sidecarpb.GroupState_GROUP_STATE_CONNECTING:
				return false, "", status.Errorf(codes.FailedPrecondition, "group %s is %s: waiting does not change that",
					name, stateText(g))
			}
			return false, copiedText(g.GetYield()), nil
		})
	if err != nil {
		return err
	}
	return c.ShowChange(g, changed, func() error {
		_, err := fmt.Fprintf(c.Out, "group %s is a whole copy of %s; %s\n", name, g.GetPeer(), copiedText(g.GetYield()))
		return err
	})
}

func copiedText(y *sidecarpb.YieldStatus) string {
	if y == nil {
		return "nothing had to be undone"
	}
	return fmt.Sprintf("%s copied", frame.FormatBytes(y.GetCopiedBytes()))
}

func (c *cli) groupTails() *cobra.Command {
	return &cobra.Command{
		Use:   "tails [NAME]",
		Short: "List what this site wrote past a fork and keeps as snapshots",
		Long: "A tail is a snapshot of each volume of a group, taken when this site gave way to its peer. The " +
			"snapshots are\n" +
			"snapshots like others: CSI lists them, and volumes can be made from them. Tails outlive their group.",
		Example: "  slipctl group tails\n  slipctl group tails shop -o json",
		Args:    frame.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			request := &sidecarpb.ListTailsRequest{}
			if len(given) > 0 {
				request.Group = given[0]
			}
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context,
				sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ListTails(ctx, request)
				if err != nil {
					return err
				}
				if request.Group != "" && len(response.GetTails()) == 0 {
					// A group without tails is not one that does not exist.
					if _, err := group(ctx, sidecar, request.Group); err != nil {
						return err
					}
				}
				return c.Show(response, func() error { return c.printTails(response) })
			})
		},
	}
}

func (c *cli) printTails(response *sidecarpb.ListTailsResponse) error {
	if len(response.GetTails()) == 0 {
		fmt.Fprintln(c.Err, "No tails are kept at this site.")
		return nil
	}
	tails, snapshots := frame.NewTable("tail", "group", "kept", "ordinals", "writes", "bytes"), frame.NewTable("snapshot",
		"volume",
		"size", "state")
	for _, tail := range response.GetTails() {
		tails.AppendRow(table.Row{tail.GetId(), tail.GetGroup(),
			time.Unix(0, tail.GetTakenUnixNanos()).Format(time.RFC3339),
			fmt.Sprintf("%d to %d", tail.GetForkOrdinal()+1, tail.GetHeadOrdinal()),
			atLeast(tail.GetPartial()) + fmt.Sprint(tail.GetWrites()), frame.FormatBytes(tail.GetBytes())})
		for _, s := range tail.GetSnapshots() {
			snapshots.AppendRow(table.Row{s.GetSnapshotId(), s.GetVolumeId(), frame.FormatBytes(uint64(max(s.GetSizeBytes(),
				0))),
				s.GetState()})
		}
	}
	if err := frame.PrintTable(c.Out, tails); err != nil {
		return err
	}
	fmt.Fprintln(c.Out)
	return frame.PrintTable(c.Out, snapshots)
}

func (c *cli) groupDeleteTail() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "delete-tail TAIL",
		Short:   "Delete the snapshots of a tail",
		Example: "  slipctl group delete-tail tail-0a1b2c3d4e5f6071 --yes",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.tailNames),
	}
	consent := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, given []string) error {
		return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context,
			sidecar sidecarpb.SidecarClient) error {
			list, err := sidecar.ListTails(ctx, &sidecarpb.ListTailsRequest{})
			if err != nil {
				return err
			}
			for _, t := range list.GetTails() {
				if t.GetId() != given[0] {
					continue
				}
				text := fmt.Sprintf("Tail %s of group %s: %s%s, %s%s. Nothing else has "+
					"them.", t.GetId(), t.GetGroup(),
					atLeast(t.GetPartial()), words.Count(t.GetWrites(), "write"), frame.FormatBytes(t.GetBytes()),
					tailTimes(t))
				if err := c.Confirm(consent, text, "Delete "+t.GetId()+"?"); err != nil {
					return err
				}
			}
			if _, err := sidecar.DeleteTail(ctx, &sidecarpb.DeleteTailRequest{Id: given[0]}); err != nil {
				return err
			}
			return c.Say(frame.Fields{"tail": given[0], "changed": true}, "tail %s deleted", given[0])
		})
	}
	return cmd
}

// tailNames completes tails.
func (c *cli) tailNames(cmd *cobra.Command, _ []string) (names []string) {
	_ = c.WithSidecar(cmd.Context(), frame.Brief, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		list, err := sidecar.ListTails(ctx, &sidecarpb.ListTailsRequest{})
		for _, t := range list.GetTails() {
			names = append(names, t.GetId())
		}
		return err
	})
	return names
}

func (c *cli) groupRelocate() *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "relocate NAME",
		Short: "Move the primary role from this site to its peer without loss",
		Long: "Give this command at the primary, with no volume of the group attached. It waits until the peer has " +
			"everything,\n" +
			"and has it promote itself. After that replication exists in the new direction. The same command at the " +
			"other site\n" +
			"moves the group home.\n" +
			"The command can be repeated. If it is interrupted, a repetition goes on, and `slipctl group promote " +
			"NAME` at this\n" +
			"site takes it back. Of a shard it moves the whole group, from any node.",
		Example: "  slipctl group relocate shop\n  slipctl group relocate shop --timeout 5m",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, given[0])
				if err != nil {
					return err
				}
				response, err := sidecar.Relocate(ctx, &sidecarpb.RelocateRequest{Group: given[0],
					TimeoutMillis: timeout.Milliseconds()})
				if status.Code(err) == codes.DeadlineExceeded {
					return frame.Latef("%s", status.Convert(err).Message())
				}
				if ctx.Err() != nil {
					return fmt.Errorf("interrupted; to go on: %s; to take it back: %s",
						core.Command{Site: "this site", Verb: core.CommandRelocate, Name: given[0]},
						core.Command{Site: "this site", Verb: core.CommandPromote, Name: given[0]})
				}
				if err != nil {
					return err
				}
				moved := before.GetRole() != sidecarpb.Role_ROLE_SECONDARY
				return c.ShowChange(response, moved, func() error {
					if peer := response.GetStatus().GetPeer(); !moved {
						back := core.Command{Site: peer, Verb: core.CommandRelocate, Name: given[0]}
						_, err := fmt.Fprintf(c.Out, "group %s is secondary here and follows %s already; nothing "+
							"changed; to move it here: %s\n", given[0], peer, back)
						return err
					}
					_, err := fmt.Fprintf(c.Out, "group %s is primary at %s since ordinal %d; without a primary for "+
						"%v\n", given[0],
						response.GetStatus().GetPeer(), response.GetFinalOrdinal(),
						time.Duration(response.GetTookMillis())*time.Millisecond)
					return err
				})
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "longest time to wait for the peer; 0: no limit")
	return cmd
}

// yieldLine is what the status says of a yield.
func yieldLine(y *sidecarpb.YieldStatus) string {
	text := fmt.Sprintf("%s: ordinals %d to %d given up, %s", y.GetStage(), y.GetForkOrdinal()+1, y.GetHeadOrdinal(),
		copiedText(y))
	if y.GetAll() {
		text += ", everything: " + y.GetReason()
	}
	return text
}
