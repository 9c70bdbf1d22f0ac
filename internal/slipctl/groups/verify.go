package groups

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupVerify() *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Compare the images of both sites at one ordinal",
		Long: "The command is given at the primary. Writes and replication go on. With --wait it shows the progress, and\n" +
			"fails with status 1 if extents differ. --verify-rate of `slipctl group set` bounds how fast it reads.\n" +
			"Of a shard, all shards of its group are compared; --wait waits for this one.",
		Example: "  slipctl group verify shop --wait\n  slipctl group verify shop --wait --timeout 1h",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			if timeout > 0 && !wait {
				return frame.Usagef("--timeout is for --wait")
			}
			return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, given[0])
				if err != nil {
					return err
				}
				if _, err := sidecar.Verify(ctx, &sidecarpb.VerifyRequest{Group: given[0]}); err != nil {
					return err
				}
				if !wait {
					return c.Say(frame.Fields{"group": given[0], "changed": true},
						"the comparison of group %s runs; slipctl group status %[1]s shows the result", given[0])
				}
				g, err := c.waitVerified(ctx, sidecar, before, timeout)
				if err != nil {
					return err
				}
				return c.printVerified(g)
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the comparison has ended")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "longest time to wait; 0: no limit")
	return cmd
}

// waitVerified waits until a comparison has ended that began after a status. before has that status.
func (c *cli) waitVerified(ctx context.Context, sidecar sidecarpb.SidecarClient, before *sidecarpb.GroupStatus,
	timeout time.Duration) (*sidecarpb.GroupStatus, error) {
	name, start := before.GetName(), time.Now()
	var shown time.Time
	for {
		g, err := group(ctx, sidecar, name)
		if err != nil {
			return nil, err
		}
		v := g.GetVerify()
		finished := v.GetUpdatedUnixNanos() > before.GetVerify().GetUpdatedUnixNanos()
		switch {
		case !v.GetRunning() && v.GetError() != "":
			return nil, status.Errorf(codes.Aborted, "group %s: the comparison failed, and found nothing out: %s", name,
				v.GetError())
		case !v.GetRunning() && finished:
			return g, nil
		case timeout > 0 && time.Since(start) > timeout:
			return nil, frame.Latef("the comparison of group %s has not ended after %v", name, timeout)
		}
		if now := time.Now(); v.GetTotalBytes() > 0 && now.Sub(shown) >= time.Second {
			shown = now
			fmt.Fprintf(c.Err, "%s  %s  compared %s of %s\n", now.Format("15:04:05"), name, frame.FormatBytes(v.GetDoneBytes()),
				frame.FormatBytes(v.GetTotalBytes()))
		}
		if !pause.For(ctx, WaitInterval) {
			return nil, ctx.Err()
		}
	}
}

// printVerified prints the result of a comparison. Differences are an error.
func (c *cli) printVerified(g *sidecarpb.GroupStatus) error {
	v := g.GetVerify()
	err := c.Show(v, func() error {
		if v.GetDifferenceCount() == 0 {
			_, err := fmt.Fprintf(c.Out, "group %s: both sites are equal at ordinal %d\n", g.GetName(), v.GetOrdinal())
			return err
		}
		return c.printDifferences(v)
	})
	if err != nil || v.GetDifferenceCount() == 0 {
		return err
	}
	return fmt.Errorf("group %s: the sites differ in %s at ordinal %d; give `slipctl group repair %s` at the site "+
		"that is wrong", g.GetName(), words.Count(v.GetDifferenceCount(), "extent"), v.GetOrdinal(), g.GetName())
}

func (c *cli) printDifferences(v *sidecarpb.VerifyStatus) error {
	t := frame.NewTable("volume", "offset", "length")
	for _, d := range v.GetDifferences() {
		t.AppendRow(table.Row{d.GetVolumeId(), d.GetOffsetBytes(), d.GetLengthBytes()})
	}
	if err := frame.PrintTable(c.Out, t); err != nil {
		return err
	}
	if more := v.GetDifferenceCount() - min(uint64(len(v.GetDifferences())), v.GetDifferenceCount()); more > 0 {
		_, err := fmt.Fprintf(c.Out, "and %d more\n", more)
		return err
	}
	return nil
}

// verifyText is the row of a status; empty for a group that was never compared.
func verifyText(g *sidecarpb.GroupStatus) string {
	v := g.GetVerify()
	if v == nil { // of a replicator of an earlier release
		return ""
	}
	var parts []string
	if v.GetRunning() {
		text := "runs"
		if v.GetTotalBytes() > 0 {
			text = fmt.Sprintf("runs, %s of %s", frame.FormatBytes(v.GetDoneBytes()), frame.FormatBytes(v.GetTotalBytes()))
		}
		parts = append(parts, text)
	}
	if v.FinishedUnixNanos != nil {
		result := "equal"
		if n := v.GetDifferenceCount(); n > 0 {
			result = fmt.Sprintf("%d EXTENTS DIFFER", n)
		}
		parts = append(parts, fmt.Sprintf("%s at ordinal %d, %s", result, v.GetOrdinal(),
			time.Unix(0, v.GetFinishedUnixNanos()).Format(time.DateTime)))
	}
	if v.GetError() != "" {
		parts = append(parts, "last attempt failed: "+v.GetError())
	}
	return strings.Join(parts, "; ")
}

func (c *cli) groupRepair() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "repair NAME",
		Short: "Replace extents of this site that differ by those of the peer",
		Long: "The command is given at the site that yields. The extents that the last comparison found to differ are\n" +
			"replaced, and no others, and compared again. At a primary no volume with such an extent may be attached.",
		Example: "  slipctl group repair shop",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
	}
	var timeout time.Duration
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "longest time to wait for the comparison")
	given := frame.AddYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			before, err := group(ctx, sidecar, args[0])
			if err != nil {
				return err
			}
			if n := before.GetVerify().GetDifferenceCount(); n > 0 {
				if err := c.printRepair(before); err != nil {
					return err
				}
				if err := c.Confirm(given, "", fmt.Sprintf("Replace %s here?", words.Count(n, "extent"))); err != nil {
					return err
				}
			}
			if _, err := sidecar.Repair(ctx, &sidecarpb.RepairRequest{Group: args[0]}); err != nil {
				return err
			}
			g, err := c.waitVerified(ctx, sidecar, before, timeout)
			if err != nil {
				return err
			}
			if g.GetVerify().GetDifferenceCount() > 0 {
				return c.printVerified(g)
			}
			return c.ShowChange(g.GetVerify(), true, func() error {
				_, err := fmt.Fprintf(c.Out, "group %s: %s replaced, and equal at both sites now\n", g.GetName(),
					words.Count(before.GetVerify().GetDifferenceCount(), "extent"))
				return err
			})
		})
	}
	return cmd
}

// printRepair says what a repair will replace by what.
func (c *cli) printRepair(g *sidecarpb.GroupStatus) error {
	v := g.GetVerify()
	fmt.Fprintf(c.Err, "A repair of group %s replaces at THIS site, the %s, %s by those of %s:\n", g.GetName(),
		g.GetRole().Word(), words.Count(v.GetDifferenceCount(), "extent"), g.GetPeer())
	for _, d := range v.GetDifferences() {
		fmt.Fprintf(c.Err, "  volume %s, %s at %d\n", d.GetVolumeId(), words.Count(d.GetLengthBytes(), "byte"),
			d.GetOffsetBytes())
	}
	_, err := fmt.Fprintf(c.Err, "If %s has the damage, give the command there instead.\n", g.GetPeer())
	return err
}
