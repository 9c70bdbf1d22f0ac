package volumes

import (
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func (c *cli) volumeCommand() *cobra.Command {
	cmd := frame.Parent("volume", "Create, grow, mount, unmount, delete and show volumes of this node",
		c.volumeCreate(), c.volumeGrow(), c.volumeMount(), c.volumeUnmount(), c.volumeDelete(), c.volumeList())
	cmd.PersistentFlags().StringVar(&c.Here.Driver, "driver", "",
		"socket of the CSI driver (default csi.sock beside the replicator's)")
	cmd.PersistentFlags().StringVar(&c.Here.Pool, "pool", "",
		"directory of the pool; SLIPSTREAM_POOL sets the default (else that of the site with the replicator's "+
			"socket, or "+frame.DefaultPool+")")
	return cmd
}

func (c *cli) volumeList() *cobra.Command {
	return frame.Local("the pool of a node", &cobra.Command{
		Use:     "list",
		Short:   "List the volumes of a pool from its records",
		Long:    "The command reads the directory of the pool. It needs neither the driver nor the replicator.",
		Example: "  slipctl volume list\n  slipctl volume list --pool /srv/slipstream/pool -o yaml",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			// A damaged record is reported after those that can be read.
			volumes, listErr := c.PoolRecords()
			if volumes == nil {
				if listErr != nil {
					return listErr
				}
				volumes = []*blockdev.VolumeRecord{}
			}
			return errors.Join(c.ShowValue(volumes, func() error {
				if len(volumes) == 0 {
					fmt.Fprintf(c.Err, "There are no volumes in %s.\n", c.PoolDir())
					return nil
				}
				t := frame.NewTable("volume", "name", "size", "state", "group", "role", "format", "mounted")
				for _, v := range volumes {
					t.AppendRow(table.Row{v.ID, v.Name, frame.FormatBytes(uint64(v.SizeBytes)), string(v.State), frame.OrDash(v.Group),
						roleOf(v),
						formatOf(v), useOf(v)})
				}
				return frame.PrintTable(c.Out, t)
			}), listErr)
		},
	})
}

// useOf says whether a volume is staged, as its record has it: after a reboot it is until the driver looks.
func useOf(v *blockdev.VolumeRecord) string {
	if v.Stage == nil {
		return "no"
	}
	return "yes"
}

func roleOf(v *blockdev.VolumeRecord) string {
	switch {
	case v.View != nil:
		return "view"
	case v.Secondary:
		return "secondary"
	case v.Group != "":
		return "primary"
	case v.Replicable:
		return "replicable"
	}
	return "plain"
}

func formatOf(v *blockdev.VolumeRecord) string {
	if v.Format == nil {
		return "-"
	}
	return frame.OrDash(v.Format.FSType)
}

func (c *cli) journalCommand() *cobra.Command {
	return frame.Parent("journal", "Show journals of groups", c.journalDump())
}

func (c *cli) journalDump() *cobra.Command {
	var segments bool
	cmd := frame.Local("a directory", &cobra.Command{
		Use:   "dump DIR",
		Short: "Print the readable records of a journal",
		Long: "The command only reads. It prints where the journal ends, and why: at its end, at a torn tail after a " +
			"crash, or at a\n" +
			"corruption. DIR is groups/ID/journal in a pool.",
		Example: "  slipctl journal dump /srv/slipstream/pool/groups/g-1234/journal --segments",
		Args:    frame.Args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, given []string) error {
			return journal.Dump(vfs.OS, given[0], c.Lines(), journal.DumpOptions{JSON: c.Structured(), Segments: segments})
		},
	})
	cmd.Flags().BoolVar(&segments, "segments", false, "print only segments and the end, not each record")
	return cmd
}
