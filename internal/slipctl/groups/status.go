package groups

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/advice"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/schedule"
)

func (c *cli) groupStatus() *cobra.Command {
	var watch bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show the state of all groups, or one group in detail",
		Example: "  slipctl group status\n  slipctl group status shop\n  slipctl group status --watch --interval 5s\n" +
			"  slipctl group status shop -o json | jq .lagSeconds",
		Args: frame.Args(cobra.MaximumNArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			name := ""
			if len(given) > 0 {
				name = given[0]
			}
			if watch {
				if interval < 10*time.Millisecond {
					return frame.Usagef("--interval is %v: at least 10ms", interval)
				}
				return c.WithSidecar(cmd.Context(), 0, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
					if name == "" {
						return c.watchGroups(ctx, sidecar, interval)
					}
					return c.watchGroup(ctx, sidecar, name, interval)
				})
			}
			if cmd.Flags().Changed("interval") {
				return frame.Usagef("--interval is for --watch: give both")
			}
			return c.WithSidecar(cmd.Context(), frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				if name == "" {
					response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
					if err != nil {
						return err
					}
					return c.printGroups(response)
				}
				g, err := group(ctx, sidecar, name)
				if err != nil {
					return err
				}
				return c.Show(g, func() error { return c.printGroup(g) })
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "repeat until interrupted")
	cmd.Flags().DurationVar(&interval, "interval", time.Second, "time between updates, with --watch")
	return cmd
}

func (c *cli) printGroups(response *sidecarpb.ListGroupsResponse) error {
	return c.Show(response, func() error {
		if len(response.GetGroups()) == 0 {
			fmt.Fprintln(c.Err, "There are no groups at this site.")
			return nil
		}
		return frame.PrintTable(c.Out, groupTable(response.GetGroups()))
	})
}

func groupTable(groups []*sidecarpb.GroupStatus) table.Writer {
	t := frame.NewTable("name", "role", "state", "peer", "volumes", "lag", "behind", "promotable")
	for _, g := range groups {
		t.AppendRow(table.Row{g.GetName(), g.GetRole().Word(), g.GetState().Word(), frame.OrDash(g.GetPeer()),
			len(g.GetVolumes()),
			lagCell(g, frame.OrUnknown(g.LagSeconds, frame.FormatSeconds)), lagCell(g, frame.OrUnknown(g.LagBytes,
				frame.FormatBytes)),
			frame.YesNo(g.GetPromotable())})
	}
	return t
}

func (c *cli) printGroup(g *sidecarpb.GroupStatus) error {
	t := frame.NewTable()
	row := func(name, format string, args ...any) { t.AppendRow(table.Row{name, fmt.Sprintf(format, args...)}) }
	row("group", "%s", g.GetName())
	row("role", "%s", g.GetRole().Word())
	row("state", "%s", stateText(g))
	next := advice.Next("this site", g)
	row("next", "%s", next.Text)
	if next.Command != "" {
		row("", "At %s: %s", next.Site, next.Command)
	}
	row("peer", "%s, connected: %s", frame.OrDash(g.GetPeer()), frame.YesNo(g.GetConnected()))
	row("promotable", "%s", frame.YesNo(g.GetPromotable()))
	if b := g.GetBeforeSync(); b != nil {
		row("opens as of", "ordinal %d (%s), until the sync ends; it keeps %s", b.GetOrdinal(),
			frame.WhenText(b.GetUnixNanos()),
			frame.FormatBytes(uint64(b.GetKeptBytes())))
	}
	shardRows(g.GetShard(), row)
	row("lag", "%s", lagCell(g, lagText(g)))
	if g.GetRpoTargetSeconds() > 0 {
		verdict := "kept"
		if g.GetLagging() {
			verdict = "missed"
		}
		row("RPO target", "%s, %s", frame.FormatSeconds(g.GetRpoTargetSeconds()), verdict)
	}
	if text := historyText(g); text != "" {
		row("history", "%s", text)
	}
	if text := tailPolicyText(g); text != "" {
		row("tails", "%s", text)
	}
	if why := g.GetFullCopyReason(); why != "" {
		row("full copy", "%s", why)
	}
	if rate := g.GetShipBytesPerSecond(); rate > 0 {
		row("ship rate", "at most %s/s", frame.FormatBytes(uint64(rate)))
	}
	if text := g.GetShipSchedule(); text != "" {
		now := schedule.Unlimited
		if rate := g.GetShipLimitBytesPerSecond(); rate > 0 {
			now = frame.FormatBytes(uint64(rate)) + "/s"
		}
		row("ship schedule", "%s; now %s", text, now)
	}
	ordinals := fmt.Sprintf("head %d, durable %d, applied %d", g.GetHeadOrdinal(), g.GetDurableOrdinal(),
		g.GetAppliedOrdinal())
	if g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetPeer() != "" {
		ordinals += ", acknowledged " + frame.OrUnknown(g.AcknowledgedOrdinal, formatOrdinal)
	}
	row("ordinals", "%s", ordinals)
	policy := "track changes when full"
	if g.GetJournalFull() == sidecarpb.JournalFull_JOURNAL_FULL_STALL {
		policy = "stall writers when full"
	}
	row("journal", "%s of %s used, %s", frame.FormatBytes(uint64(max(g.GetJournalUsedBytes(), 0))),
		frame.FormatBytes(uint64(max(g.GetJournalSizeBytes(), 0))), policy)
	if g.GetChangeMapBytes() > 0 {
		row("change map", "%s to resync", frame.FormatBytes(g.GetChangeMapBytes()))
	}
	if g.GetSyncTotalBytes() > 0 {
		row("sync", "%s of %s", frame.FormatBytes(g.GetSyncDoneBytes()), frame.FormatBytes(g.GetSyncTotalBytes()))
	}
	if t := g.GetTrial(); t != nil {
		row("opened", "%s", trialLine(t))
	}
	if y := g.GetYield(); y != nil {
		row("gave way", "%s", yieldLine(y))
	}
	if text := verifyText(g); text != "" {
		row("verified", "%s", text)
	}
	if g.LastReplicatedUnixNanos != nil {
		row("replicated until", "%s by this site's clock",
			time.Unix(0, g.GetLastReplicatedUnixNanos()).Format(time.RFC3339Nano))
	}
	if g.ClockDifferenceSeconds != nil {
		row("peer's clock", "%s", clockText(g))
	}
	row("timeline", "%s", g.GetTimeline())
	row("id", "%s", g.GetGroupId())
	if err := frame.PrintTable(c.Out, t); err != nil {
		return err
	}
	if len(g.GetVolumes()) > 0 {
		fmt.Fprintln(c.Out)
		t := frame.NewTable("volume", "size", "attached", "unapplied", "to resync")
		for _, v := range g.GetVolumes() {
			t.AppendRow(table.Row{v.GetVolumeId(), frame.FormatBytes(uint64(max(v.GetSizeBytes(), 0))),
				frame.YesNo(v.GetAttached()),
				frame.FormatBytes(v.GetUnappliedBytes()), frame.FormatBytes(v.GetChangeMapBytes())})
		}
		if err := frame.PrintTable(c.Out, t); err != nil {
			return err
		}
	}
	if loss := g.GetLoss(); loss != nil {
		fmt.Fprintln(c.Out)
		return c.printLoss(loss)
	}
	return nil
}

// historyText says what history is asked for and, at a secondary, how much there is; empty where none is asked for.
func historyText(g *sidecarpb.GroupStatus) string {
	var asked []string
	if s := g.GetHistoryTargetSeconds(); s > 0 {
		asked = append(asked, frame.FormatSeconds(s))
	}
	if n := g.GetHistoryTargetBytes(); n > 0 {
		asked = append(asked, frame.FormatBytes(uint64(n)))
	}
	if len(asked) == 0 {
		return ""
	}
	text := strings.Join(asked, " and ") + " at least"
	switch {
	case g.GetRole() != sidecarpb.Role_ROLE_SECONDARY:
		return text + ", at " + frame.OrDash(g.GetPeer())
	case g.GetHistoryShort():
		text += "; shorter than asked"
	}
	return text + "; reaches back " + frame.OrUnknown(g.HistorySeconds, frame.FormatSeconds)
}

// tailPolicyText says which divergent tails this site keeps; empty where it keeps all.
func tailPolicyText(g *sidecarpb.GroupStatus) string {
	var kept []string
	if n := g.GetTailsMost(); n > 0 {
		kept = append(kept, fmt.Sprintf("at most %d", n))
	}
	if ms := g.GetTailsMillis(); ms > 0 {
		kept = append(kept, "for "+frame.FormatSeconds(float64(ms)/1e3))
	}
	if len(kept) == 0 {
		return ""
	}
	return "kept " + strings.Join(kept, " and ") + " at this site; the newest stays"
}

// lagCell is a dash for a group without a peer.
func lagCell(g *sidecarpb.GroupStatus, text string) string {
	if g.GetPeer() == "" {
		return frame.OrDash("")
	}
	return text
}

func lagText(g *sidecarpb.GroupStatus) string {
	if g.LagSeconds == nil && g.LagBytes == nil && g.LagOrdinals == nil {
		return frame.Unknown
	}
	return fmt.Sprintf("%s, %s, %s", frame.OrUnknown(g.LagSeconds, frame.FormatSeconds), frame.OrUnknown(g.LagBytes,
		frame.FormatBytes),
		frame.OrUnknown(g.LagOrdinals, frame.FormatCount("ordinal")))
}

func formatOrdinal(n uint64) string { return strconv.FormatUint(n, 10) }

// clockText says how far the peer's clock is ahead, and how well that is known.
func clockText(g *sidecarpb.GroupStatus) string {
	ahead, by := "ahead of", g.GetClockDifferenceSeconds()
	if by < 0 {
		ahead, by = "behind", -by
	}
	return fmt.Sprintf("%s %s this site's, to within %s", frame.FormatSeconds(by), ahead,
		frame.FormatSeconds(g.GetClockDifferenceErrorSeconds()))
}

func (c *cli) printLoss(loss *sidecarpb.LossReport) error {
	// Until the old primary has counted, the ordinals are a lower bound and the time is an upper bound.
	known, atLeast, atMost := "known before the old primary is back", "at least ", "at most "
	if loss.GetExact() {
		known, atLeast, atMost = "exactly", "", ""
	}
	counted := atLeast
	if loss.GetPartial() {
		counted, atMost = "at least ", "at least "
	}
	bound := func(prefix, text string) string {
		if text == frame.Unknown {
			return text
		}
		return prefix + text
	}
	t := frame.NewTable("lost", known)
	t.AppendRow(table.Row{"ordinals", bound(atLeast, frame.OrUnknown(loss.LostOrdinals, formatOrdinal))})
	t.AppendRow(table.Row{"writes", bound(counted, frame.OrUnknown(loss.LostWrites, formatOrdinal))})
	t.AppendRow(table.Row{"bytes", bound(counted, frame.OrUnknown(loss.LostBytes, frame.FormatBytes))})
	t.AppendRow(table.Row{"time", bound(atMost, frame.OrUnknown(loss.LostSeconds, frame.FormatSeconds))})
	t.AppendRow(table.Row{"recovered up to", fmt.Sprintf("ordinal %d", loss.GetRecoveredOrdinal())})
	if err := frame.PrintTable(c.Out, t); err != nil {
		return err
	}
	if loss.GetText() != "" {
		fmt.Fprintln(c.Out, loss.GetText())
	}
	return nil
}

func stateText(g *sidecarpb.GroupStatus) string {
	text := g.GetState().Word()
	if reason := cmp.Or(g.GetStateReason(), g.GetApplyError()); reason != "" {
		text += ": " + reason
	}
	return text
}
