package slipctl

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// groupFlags are the settings of a group as flags, of create and of set.
type groupFlags struct {
	remote, address, journalSize, journalFull, shipRate string
	rpoTarget                                           time.Duration
}

func (f *groupFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.remote, "remote", "", "site to replicate to; without one the group has a journal but no copy")
	flags.StringVar(&f.address, "remote-address", "", "another address of that site, for this group only")
	flags.StringVar(&f.journalSize, "journal-size", "1Gi", "space for writes that are not applied and acknowledged yet")
	flags.StringVar(&f.journalFull, "journal-full", "track",
		"when the peer is away and the journal is full: track what changed and resync later, or stall the application")
	flags.DurationVar(&f.rpoTarget, "rpo-target", 0, "how far the copy may lag before the status says so; 0 for no target")
	flags.StringVar(&f.shipRate, "ship-rate", "0", "most bytes a second that are sent to the peer; 0 for no bound")
}

// values returns the flags' values as a request has them.
func (f *groupFlags) values() (*sidecarpb.CreateGroupRequest, error) {
	r := &sidecarpb.CreateGroupRequest{Remote: f.remote, RemoteAddress: f.address, RpoTargetMillis: f.rpoTarget.Milliseconds()}
	var err error
	if r.JournalSizeBytes, err = parseBytes(f.journalSize); err != nil {
		return nil, usagef("--journal-size: %v", err)
	}
	if r.ShipBytesPerSecond, err = parseBytes(f.shipRate); err != nil {
		return nil, usagef("--ship-rate: %v", err)
	}
	switch f.journalFull {
	case "track":
		r.JournalFull = sidecarpb.JournalFull_JOURNAL_FULL_TRACK
	case "stall":
		r.JournalFull = sidecarpb.JournalFull_JOURNAL_FULL_STALL
	default:
		return nil, usagef("--journal-full is %q: it can be track or stall", f.journalFull)
	}
	if f.rpoTarget < 0 || f.rpoTarget%time.Millisecond != 0 {
		return nil, usagef("--rpo-target is %v: it is a number of milliseconds or more, as 500ms, 5s or 1m, or 0", f.rpoTarget)
	}
	return r, nil
}

func (c *cli) groupSet() *cobra.Command {
	var flags groupFlags
	cmd := &cobra.Command{
		Use:   "set NAME [--remote SITE] [--journal-size SIZE] ...",
		Short: "Change what is given of a group's settings, under load",
		Long: "Change what is given of a group's settings, under load; the rest stays.\n\n" +
			"Another remote gets everything anew, and the old one keeps its copy as it was then. --remote \"\" switches replication off. " +
			"What does not fit into a smaller journal drains first.",
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, given []string) error {
			values, err := flags.values()
			if err != nil {
				return err
			}
			request := &sidecarpb.ModifyGroupRequest{Name: given[0]}
			some := false
			changed := func(name string) bool { some = some || cmd.Flags().Changed(name); return cmd.Flags().Changed(name) }
			if changed("remote") {
				request.Remote = &values.Remote
			}
			if changed("remote-address") {
				request.RemoteAddress = &values.RemoteAddress
			}
			if changed("journal-size") {
				request.JournalSizeBytes = &values.JournalSizeBytes
			}
			if changed("journal-full") {
				request.JournalFull = &values.JournalFull
			}
			if changed("rpo-target") {
				request.RpoTargetMillis = &values.RpoTargetMillis
			}
			if changed("ship-rate") {
				request.ShipBytesPerSecond = &values.ShipBytesPerSecond
			}
			if !some {
				return usagef("there is nothing to change: give at least one of the flags")
			}
			return c.withSidecar(cmd.Context(), longerTimeout, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
				response, err := sidecar.ModifyGroup(ctx, request)
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printProto(c.out, response)
				}
				fmt.Fprintf(c.out, "group %s changed\n", request.Name)
				return nil
			})
		},
	}
	flags.add(cmd.Flags())
	// As a default of set they would be a lie: what is not given stays.
	for _, name := range []string{"journal-size", "journal-full", "ship-rate"} {
		cmd.Flags().Lookup(name).DefValue = ""
	}
	return cmd
}
