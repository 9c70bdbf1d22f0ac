package slipctl

import (
	"errors"
	"fmt"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// DefaultPool is where a site has its pool unless it is told otherwise.
const DefaultPool = "/var/lib/slipstream/pool"

func (c *cli) volumeCommand() *cobra.Command {
	return parent("volume", "Show volumes of a pool", c.volumeList())
}

func (c *cli) volumeList() *cobra.Command {
	var pool string
	cmd := local("the pool of a node", &cobra.Command{
		Use:     "list",
		Short:   "List the volumes of a pool from its records",
		Long:    "The command reads the directory of the pool. It needs neither the driver nor the replicator.",
		Example: "  slipctl volume list\n  slipctl volume list --pool /srv/slipstream/pool -o yaml",
		Args:    args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			p, err := blockdev.OpenPool(vfs.OS, pool, blockdev.WhoReader)
			if err != nil {
				return fmt.Errorf("%w\n--pool names the directory that the driver and the replicator were given", err)
			}
			// A damaged record is reported after those that can be read.
			volumes, listErr := p.List()
			if err := p.Close(); err != nil {
				return err
			}
			if volumes == nil {
				volumes = []*blockdev.VolumeRecord{}
			}
			return errors.Join(c.showValue(volumes, func() error {
				if len(volumes) == 0 && listErr == nil {
					fmt.Fprintf(c.err, "There are no volumes in %s.\n", pool)
					return nil
				}
				t := newTable("volume", "name", "size", "state", "group", "role", "format")
				for _, v := range volumes {
					t.AppendRow(table.Row{v.ID, v.Name, formatBytes(uint64(v.SizeBytes)), string(v.State), orDash(v.Group), roleOf(v),
						formatOf(v)})
				}
				return printTable(c.out, t)
			}), listErr)
		},
	})
	cmd.Flags().StringVar(&pool, "pool", DefaultPool, "directory of the pool")
	return cmd
}

func roleOf(v *blockdev.VolumeRecord) string {
	switch {
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
	return orDash(v.Format.FSType)
}

func (c *cli) journalCommand() *cobra.Command {
	return parent("journal", "Show journals of groups", c.journalDump())
}

func (c *cli) journalDump() *cobra.Command {
	var segments bool
	cmd := local("a directory", &cobra.Command{
		Use:   "dump DIR",
		Short: "Print the readable records of a journal",
		Long: "The command only reads. It prints where the journal ends, and why: at its end, at a torn tail after a " +
			"crash, or at a\n" +
			"corruption. DIR is groups/ID/journal in a pool.",
		Example: "  slipctl journal dump /srv/slipstream/pool/groups/g-1234/journal --segments",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, given []string) error {
			return journal.Dump(vfs.OS, given[0], c.lines(), journal.DumpOptions{JSON: c.structured(), Segments: segments})
		},
	})
	cmd.Flags().BoolVar(&segments, "segments", false, "print only segments and the end, not each record")
	return cmd
}
