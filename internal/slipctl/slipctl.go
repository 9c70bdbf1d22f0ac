// Package slipctl is the command line for operators. It calls the replicator of a site over its Unix socket, reads the
// records of a pool, sets up sites and runs the demo.
//
// Results go to standard output, as tables, or as JSON with --output json. Messages for a person go to standard error.
// Errors say what to do next. The exit status is 0 for success, 1 for a failure, 2 for wrong usage, 3 if a named object
// does not exist, and 4 if another command has to come first. A command that succeeded succeeds again.
//
// It is not an API: programs talk to the replicator (pkg/api/sidecarpb).
package slipctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// DefaultSidecar is where a replicator listens unless it is told otherwise.
const DefaultSidecar = "unix:///run/slipstream/replicator.sock"

// Exit statuses.
const (
	exitOK           = 0
	exitFailure      = 1
	exitUsage        = 2
	exitNotFound     = 3
	exitPrecondition = 4
)

// cli is what all commands share.
type cli struct {
	version string
	sidecar string
	kube    kubeFlags
	output  string
	stdin   io.Reader
	out     io.Writer // results
	err     io.Writer // for a person
}

// Main runs a command line and returns the exit status.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &cli{version: version, stdin: os.Stdin, out: os.Stdout, err: os.Stderr}
	root := c.command()
	root.SetArgs(args)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		fmt.Fprintln(c.err, "slipctl: interrupted")
		return exitFailure
	}
	where := c.sidecar
	if c.kube.set() {
		where = ""
	}
	message, code := explain(err, where)
	fmt.Fprintln(c.err, "slipctl: "+message)
	return code
}

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "slipctl",
		Short: "See and control the replication of a Slipstream site",
		Long: "slipctl calls the replicator of this node. With --kubeconfig, --context or --namespace it calls the " +
			"replicators of all\n" +
			"nodes of a site in Kubernetes. A group is a set of volumes with one write order and one failover. It is primary " +
			"at one\n" +
			"site and secondary at its peer.",
		Version:       c.version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return usagef("--output is %q: it can be table or json", c.output)
			}
			return nil
		},
	}
	sidecar := os.Getenv("SLIPSTREAM_SIDECAR")
	if sidecar == "" {
		sidecar = DefaultSidecar
	}
	root.PersistentFlags().StringVar(&c.sidecar, "sidecar", sidecar, "socket of the replicator; SLIPSTREAM_SIDECAR sets "+
		"the default")
	c.kube.add(root)
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table or json")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v (see %s --help)", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(c.groupCommand(), c.volumeCommand(), c.siteCommand(), c.journalCommand(), c.connectCommand(),
		c.demoCommand(), c.workloadCommand())
	return root
}

// args wraps cobra's argument checks so that their errors count as wrong usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return usagef("%s: %v (usage: %s)", cmd.CommandPath(), err, cmd.UseLine())
		}
		return nil
	}
}

// parent is a command that only has subcommands. Without a subcommand it shows its help. With an unknown one it fails;
// cobra alone would show the help and succeed.
func parent(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, given []string) error {
			if len(given) > 0 {
				return usagef("%s has no command %q (see %s --help)", cmd.CommandPath(), given[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(children...)
	return cmd
}
