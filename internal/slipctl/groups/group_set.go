package groups

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/schedule"
)

// groupFlags are the flags of create and set for the settings of a group.
type groupFlags struct {
	remote, address, journalSize, journalFull, shipRate, shipSchedule, removedCopies, verifyRate, historySize string
	rpoTarget, verifyEvery, history                                                                           time.Duration
	shardOf                                                                                                   string
	shard                                                                                                     uint16
	epochInterval, keepTailsFor                                                                               time.Duration
	keepTails                                                                                                 uint32
}

func (f *groupFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.remote, "remote", "", "site to replicate to; without a site the group has a journal but no copy")
	flags.StringVar(&f.address, "remote-address", "", "another address of that site, for this group only")
	flags.StringVar(&f.journalSize, "journal-size", "1Gi", "size of the journal, which holds writes until they are "+
		"applied and acknowledged")
	frame.AddEnum(cmd, flags, &f.journalFull, "journal-full", "",
		"what a full journal does while the peer is away: track "+
			"changes and resync later, or stall writers", "track", "stall")
	flags.DurationVar(&f.rpoTarget, "rpo-target", 0, "largest lag of the copy; the status reports a larger lag; 0: no "+
		"target")
	frame.AddEnum(cmd, flags, &f.removedCopies, "removed-copies", "",
		"what this site does, as the secondary, with its copy of "+
			"a volume that the primary takes out of the group", "keep", "delete")
	flags.DurationVar(&f.history, "history", 0, "how long earlier points are kept at the copy, within the size of the "+
		"journal; 0: not at all")
	flags.StringVar(&f.historySize, "history-size", "0", "how many bytes of the journal are kept at the copy for earlier "+
		"points")
	flags.StringVar(&f.shipRate, "ship-rate", "0", "largest rate to the peer in bytes a second; 0: no limit")
	flags.DurationVar(&f.verifyEvery, "verify-every", 0, "time between comparisons of both sites; 0: only slipctl group "+
		"verify")
	flags.StringVar(&f.verifyRate, "verify-rate", "0", "largest rate at which a comparison reads at each site, in bytes "+
		"a second; 0: 32Mi")
	flags.Uint32Var(&f.keepTails, "keep-tails", 0, "how many divergent tails of the group this site keeps; the newest "+
		"always stays; 0: all")
	flags.DurationVar(&f.keepTailsFor, "keep-tails-for", 0, "how long this site keeps divergent tails of the group; the "+
		"newest always stays; 0: without limit")
	flags.StringVar(&f.shardOf, "shard-of", "", "name of a group over several nodes that this group is the part of one "+
		"node of; writes are then in one order on all of these nodes")
	flags.Uint16Var(&f.shard, "shard", 0, "number of this part, another one on each node; number 0 has to exist")
	flags.DurationVar(&f.epochInterval, "epoch-interval", 0, "time between two points at which such a group can be "+
		"promoted; that of the lowest number counts; 0: 200ms")
	flags.StringVar(&f.shipSchedule, "ship-schedule", "", "largest rate to the peer by time of day, such as "+
		"08:00-18:00=20MiB,*=unlimited; add zone=Europe/Berlin for another zone than the machine's")
}

// settings returns the values of those flags whose names given accepts.
func (f *groupFlags) settings(given func(flag string) bool) (*sidecarpb.GroupSettings, error) {
	s := &sidecarpb.GroupSettings{}
	if given("remote") {
		s.Remote = &f.remote
	}
	if given("remote-address") {
		s.RemoteAddress = &f.address
	}
	if given("journal-size") {
		size, err := frame.ParseBytes(f.journalSize)
		if err != nil {
			return nil, frame.Usagef("--journal-size: %v", err)
		}
		s.JournalSizeBytes = &size
	}
	if given("ship-rate") {
		rate, err := frame.ParseBytes(f.shipRate)
		if err != nil {
			return nil, frame.Usagef("--ship-rate: %v", err)
		}
		s.ShipBytesPerSecond = &rate
	}
	if given("verify-rate") {
		rate, err := frame.ParseBytes(f.verifyRate)
		if err != nil {
			return nil, frame.Usagef("--verify-rate: %v", err)
		}
		s.VerifyBytesPerSecond = &rate
	}
	if given("verify-every") {
		if f.verifyEvery < 0 || f.verifyEvery%time.Millisecond != 0 {
			return nil, frame.Usagef("--verify-every is %v: give a time such as 24h, or 0", f.verifyEvery)
		}
		s.VerifyEveryMillis = new(f.verifyEvery.Milliseconds())
	}
	if given("ship-schedule") {
		if _, err := schedule.Parse(f.shipSchedule); err != nil {
			return nil, frame.Usagef("--ship-schedule: %v", err)
		}
		s.ShipSchedule = &f.shipSchedule
	}
	if given("journal-full") {
		policy := sidecarpb.JournalFull_JOURNAL_FULL_TRACK
		if f.journalFull == "stall" {
			policy = sidecarpb.JournalFull_JOURNAL_FULL_STALL
		}
		s.JournalFull = &policy
	}
	if given("removed-copies") {
		s.DeleteRemovedCopies = new(f.removedCopies == "delete")
	}
	if given("history") {
		if f.history < 0 || f.history%time.Millisecond != 0 {
			return nil, frame.Usagef("--history is %v: give a number of milliseconds such as 30s, 10m or 1h, or 0", f.history)
		}
		s.HistoryMillis = new(f.history.Milliseconds())
	}
	if given("history-size") {
		size, err := frame.ParseBytes(f.historySize)
		if err != nil {
			return nil, frame.Usagef("--history-size: %v", err)
		}
		s.HistoryBytes = &size
	}
	if given("keep-tails") {
		s.TailsMost = &f.keepTails
	}
	if given("keep-tails-for") {
		if f.keepTailsFor < 0 || f.keepTailsFor%time.Millisecond != 0 {
			return nil, frame.Usagef("--keep-tails-for is %v: give a time such as 720h, or 0", f.keepTailsFor)
		}
		s.TailsMillis = new(f.keepTailsFor.Milliseconds())
	}
	if given("shard-of") {
		s.ShardOf = &f.shardOf
	}
	if given("shard") {
		s.Shard = new(uint32(f.shard))
	}
	if given("epoch-interval") {
		if f.epochInterval < 0 || f.epochInterval%time.Millisecond != 0 {
			return nil, frame.Usagef("--epoch-interval is %v: give a number of milliseconds such as 200ms, 1s, or 0",
				f.epochInterval)
		}
		s.EpochMillis = new(f.epochInterval.Milliseconds())
	}
	if given("rpo-target") {
		if f.rpoTarget < 0 || f.rpoTarget%time.Millisecond != 0 {
			return nil, frame.Usagef("--rpo-target is %v: give a number of milliseconds such as 500ms, 5s or 1m, or 0",
				f.rpoTarget)
		}
		s.RpoTargetMillis = new(f.rpoTarget.Milliseconds())
	}
	return s, nil
}

// settingsOf is the part of a status that `slipctl group set` can change.
func settingsOf(g *sidecarpb.GroupStatus) *sidecarpb.GroupStatus {
	s := &sidecarpb.GroupStatus{
		Peer: g.GetPeer(), PeerAddress: g.GetPeerAddress(), JournalSizeBytes: g.GetJournalSizeBytes(),
		JournalFull: g.GetJournalFull(), RpoTargetSeconds: g.GetRpoTargetSeconds(),
		ShipBytesPerSecond: g.GetShipBytesPerSecond(), ShipSchedule: g.GetShipSchedule(),
		DeleteRemovedCopies: g.GetDeleteRemovedCopies(), VerifyEveryMillis: g.GetVerifyEveryMillis(),
		VerifyBytesPerSecond: g.GetVerifyBytesPerSecond(), HistoryTargetSeconds: g.GetHistoryTargetSeconds(),
		HistoryTargetBytes: g.GetHistoryTargetBytes(), TailsMost: g.GetTailsMost(), TailsMillis: g.GetTailsMillis(),
	}
	if shard := g.GetShard(); shard != nil {
		s.Shard = &sidecarpb.ShardStatus{Group: shard.GetGroup(), Id: shard.GetId(),
			EpochMillis: shard.GetEpochMillis()}
	}
	return s
}

func (c *cli) groupSet() *cobra.Command {
	var flags groupFlags
	cmd := &cobra.Command{
		Use:   "set NAME [--remote SITE] [--journal-size SIZE] ...",
		Short: "Change settings of a group, under load",
		Long: "Change the settings of a group that are given, under load. The other settings stay.\n\n" +
			"A new remote gets a full copy, and the old one keeps its copy as it was then. --remote \"\" switches replication " +
			"off. " +
			"What does not fit into a smaller journal drains first.",
		Example: "  slipctl group set shop --rpo-target 5s\n  slipctl group set shop --remote site-c --journal-size 4Gi",
		Args:    frame.Args(cobra.ExactArgs(1)), ValidArgsFunction: frame.OneOf(c.GroupNames),
		RunE: func(cmd *cobra.Command, given []string) error {
			settings, err := flags.settings(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			if proto.Equal(settings, &sidecarpb.GroupSettings{}) {
				return frame.Usagef("there is nothing to change: give at least one of the flags")
			}
			request := &sidecarpb.ModifyGroupRequest{Name: given[0], Settings: settings}
			return c.WithSidecar(cmd.Context(), frame.Long, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				before, err := group(ctx, sidecar, request.Name)
				if err != nil {
					return err
				}
				response, err := sidecar.ModifyGroup(ctx, request)
				if err != nil {
					return err
				}
				changed, text := true, "group %s changed\n"
				if proto.Equal(settingsOf(before), settingsOf(response.GetStatus())) {
					changed, text = false, "group %s has these settings already; nothing changed\n"
				}
				return c.ShowChange(response, changed, func() error {
					_, err := fmt.Fprintf(c.Out, text, request.Name)
					return err
				})
			})
		},
	}
	flags.add(cmd)
	// The defaults are those of create: set changes nothing by default.
	for _, name := range []string{"journal-size", "journal-full", "ship-rate", "removed-copies", "verify-rate",
		"history-size"} {
		cmd.Flags().Lookup(name).DefValue = ""
	}
	return cmd
}
