package slipctl

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func (c *cli) groupVerify() *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "Compare the images of both sites at one ordinal",
		Long: "The command is given at the primary. Writes and replication go on. With --wait it shows the progress, and\n" +
			"fails with status 1 if extents differ. --verify-rate of `slipctl group set` bounds how fast it reads.",
		Example: "  slipctl group verify shop --wait\n  slipctl group verify shop --wait --timeout 1h",
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			if timeout > 0 && !wait {
				return usagef("--timeout is for --wait")
			}
			return c.withSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, given[0])
				if err != nil {
					return err
				}
				if _, err := sidecar.Verify(ctx, &sidecarpb.VerifyRequest{Group: given[0]}); err != nil {
					return err
				}
				if !wait {
					return c.say(fields{"group": given[0], "changed": true},
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
			return nil, &lateError{fmt.Sprintf("the comparison of group %s has not ended after %v", name, timeout)}
		}
		if now := time.Now(); v.GetTotalBytes() > 0 && now.Sub(shown) >= time.Second {
			shown = now
			fmt.Fprintf(c.err, "%s  %s  compared %s of %s\n", now.Format("15:04:05"), name, formatBytes(v.GetDoneBytes()),
				formatBytes(v.GetTotalBytes()))
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(waitInterval):
		}
	}
}

// printVerified prints the result of a comparison. Differences are an error.
func (c *cli) printVerified(g *sidecarpb.GroupStatus) error {
	v := g.GetVerify()
	err := c.show(v, func() error {
		if v.GetDifferenceCount() == 0 {
			_, err := fmt.Fprintf(c.out, "group %s: both sites are equal at ordinal %d\n", g.GetName(), v.GetOrdinal())
			return err
		}
		return c.printDifferences(v)
	})
	if err != nil || v.GetDifferenceCount() == 0 {
		return err
	}
	return fmt.Errorf("group %s: %d extents differ at ordinal %d; give `slipctl group repair %s` at the site that is "+
		"wrong", g.GetName(), v.GetDifferenceCount(), v.GetOrdinal(), g.GetName())
}

func (c *cli) printDifferences(v *sidecarpb.VerifyStatus) error {
	t := newTable("volume", "offset", "length")
	for _, d := range v.GetDifferences() {
		t.AppendRow(table.Row{d.GetVolumeId(), d.GetOffsetBytes(), d.GetLengthBytes()})
	}
	if err := printTable(c.out, t); err != nil {
		return err
	}
	if more := v.GetDifferenceCount() - min(uint64(len(v.GetDifferences())), v.GetDifferenceCount()); more > 0 {
		_, err := fmt.Fprintf(c.out, "and %d more\n", more)
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
			text = fmt.Sprintf("runs, %s of %s", formatBytes(v.GetDoneBytes()), formatBytes(v.GetTotalBytes()))
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
		Args:    args(cobra.ExactArgs(1)), ValidArgsFunction: oneOf(c.groupNames),
	}
	var timeout time.Duration
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "longest time to wait for the comparison")
	given := addYes(cmd)
	cmd.RunE = func(cmd *cobra.Command, words []string) error {
		return c.withSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
			before, err := group(ctx, sidecar, words[0])
			if err != nil {
				return err
			}
			if n := before.GetVerify().GetDifferenceCount(); n > 0 {
				if err := c.printRepair(before); err != nil {
					return err
				}
				if err := c.confirm(given, "", fmt.Sprintf("Replace %d extents here?", n)); err != nil {
					return err
				}
			}
			if _, err := sidecar.Repair(ctx, &sidecarpb.RepairRequest{Group: words[0]}); err != nil {
				return err
			}
			g, err := c.waitVerified(ctx, sidecar, before, timeout)
			if err != nil {
				return err
			}
			if g.GetVerify().GetDifferenceCount() > 0 {
				return c.printVerified(g)
			}
			return c.show(g.GetVerify(), func() error {
				_, err := fmt.Fprintf(c.out, "group %s: %d extents replaced, and equal at both sites now\n", g.GetName(),
					before.GetVerify().GetDifferenceCount())
				return err
			})
		})
	}
	return cmd
}

// printRepair says what a repair will replace by what.
func (c *cli) printRepair(g *sidecarpb.GroupStatus) error {
	v := g.GetVerify()
	fmt.Fprintf(c.err, "A repair of group %s replaces at THIS site, the %s, %d extents by those of %s:\n", g.GetName(),
		g.GetRole().Word(), v.GetDifferenceCount(), g.GetPeer())
	for _, d := range v.GetDifferences() {
		fmt.Fprintf(c.err, "  volume %s, %d bytes at %d\n", d.GetVolumeId(), d.GetLengthBytes(), d.GetOffsetBytes())
	}
	_, err := fmt.Fprintf(c.err, "If %s has the damage, give the command there instead.\n", g.GetPeer())
	return err
}
