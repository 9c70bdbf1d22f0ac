package slipctl

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/demo"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/workload"
)

func (c *cli) demoCommand() *cobra.Command {
	var options demo.Options
	var kind, results string
	cmd := frame.Local("this machine", &cobra.Command{
		Use:   "demo",
		Short: "Run two sites on this machine, kill one under load, open the other",
		Long: "The demo starts two sites in a temporary directory and runs an order workload over two databases on two " +
			"volumes.\n" +
			"It kills the first site at a random moment and opens the second: once with both volumes in one consistency " +
			"group,\n" +
			"once in separate groups. The demo needs root, takes about a minute with sqlite, and removes everything except " +
			"its report.\n" +
			"The report needs no network.",
		Example: "  slipctl demo\n  slipctl demo --workload postgres --results /tmp/demo",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if options.Kind, err = workload.ParseKind(kind); err != nil {
				return frame.Usagef("--workload: %v", err)
			}
			if options.Rounds < 1 || options.Phase < time.Second {
				return frame.Usagef("--rounds is at least 1, --duration at least 1s")
			}
			if options.Executable, err = os.Executable(); err != nil {
				return err
			}
			if options.BinDir == "" {
				options.BinDir = filepath.Dir(options.Executable)
			}
			if !cmd.Flags().Changed("seed") {
				options.Seed = rand.Uint64N(1e6) // short enough to be typed again
			}
			options.Progress = c.Err
			measured, err := demo.Run(cmd.Context(), options)
			if err != nil {
				return fmt.Errorf("the demo did not get to its end (seed %d): %w", options.Seed, err)
			}
			paths, err := measured.WriteFiles(results)
			if err != nil {
				return err
			}
			if err := c.ShowFile(paths[0], func() error { return measured.WriteTable(c.Out) }); err != nil {
				return err
			}
			fmt.Fprintf(c.Err, "seed %d, %s; written: %s\n", options.Seed, measured.Took.Round(time.Second),
				strings.Join(paths, ", "))
			if err := measured.Err(); err != nil {
				return fmt.Errorf("this must not happen (seed %d): %w", options.Seed, err)
			}
			return nil
		},
	})
	flags := cmd.Flags()
	frame.AddEnum(cmd, flags, &kind, "workload", "", "the databases", string(workload.SQLite), string(workload.Postgres))
	flags.StringVar(&results, "results", "demo-results", "directory for the summary and the report of the workload")
	flags.DurationVar(&options.Phase, "duration", 4*time.Second, "duration of a round of load")
	flags.IntVar(&options.Rounds, "rounds", 4, "rounds of load on plain volumes, and as many on replicated volumes")
	flags.IntVar(&options.Clients, "clients", 0, "concurrent clients that place orders (default 1 for sqlite, 4 for "+
		"postgres)")
	flags.Uint64Var(&options.Seed, "seed", 0, "seed of the orders and of the time of the failure (default random, "+
		"printed)")
	flags.StringVar(&options.BinDir, "bin-dir", "", "directory of csi-driver and replicator (default that of slipctl)")
	flags.StringVar(&options.TempDir, "temp-dir", "", "directory for images and journals (default the system's "+
		"temporary directory)")
	return cmd
}

// workloadCommand is the process that the demo kills. It is not for users.
func (c *cli) workloadCommand() *cobra.Command {
	var options workload.ProcessOptions
	var kind string
	cmd := &cobra.Command{
		Use:    "workload",
		Short:  "Place orders until standard input ends (used by demo)",
		Hidden: true,
		Args:   frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if options.Kind, err = workload.ParseKind(kind); err != nil {
				return frame.Usagef("--kind: %v", err)
			}
			if options.Dirs.Stock == "" || options.Dirs.Sales == "" || options.Dirs.Run == "" {
				return errors.New("--stock, --sales and --run are needed")
			}
			return workload.Main(cmd.Context(), options, c.Stdin, c.Out)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&kind, "kind", "", "sqlite or postgres")
	flags.StringVar(&options.Dirs.Stock, "stock", "", "directory of the stock database")
	flags.StringVar(&options.Dirs.Sales, "sales", "", "directory of the sales database")
	flags.StringVar(&options.Dirs.Run, "run", "", "directory for sockets and logs")
	flags.IntVar(&options.Clients, "clients", 1, "clients")
	flags.Uint64Var(&options.Seed, "seed", 0, "seed")
	flags.Int64Var(&options.FirstID, "first-id", 1, "number of the first order")
	return cmd
}
