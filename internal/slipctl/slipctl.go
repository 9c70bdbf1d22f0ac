// Package slipctl is the command line for operators. It calls the replicator of a site over its Unix socket, reads the
// records of a pool, sets up sites and runs the demo.
//
// Results go to standard output, as tables, or with --output as JSON or YAML (output.go). Messages for a person go to
// standard error. Errors say what to do next. exit.go has the exit statuses.
//
// Rules for every command:
//   - It has an example in its help that parses, a check of its arguments, and completion for names and words.
//   - What it prints goes through show, showValue, say or showNext, so that --output works.
//   - What destroys data asks first, with confirm, and has --yes.
//   - Creating or adding what is there, with the same properties, succeeds and says that nothing changed. Deleting or
//     removing what is not there fails with the status for what does not exist. Both can be repeated.
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

// cli is what all commands share.
type cli struct {
	version string
	sidecar string
	kube    kubeFlags
	here    here
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

const about = `slipctl calls the replicator of this node. With --kubeconfig, --context or --namespace it calls the
replicators of all nodes of a site in Kubernetes. A group is a set of volumes with one write order and one
failover. It is primary at one site and secondary at its peer.

Exit status: ` + exitHelp

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:     "slipctl",
		Short:   "See and control the replication of a Slipstream site",
		Long:    about,
		Version: c.version,
		Example: "  slipctl group list\n  slipctl group status shop --watch\n" +
			"  slipctl --context site-b group promote shop",
		Args: noCommand, RunE: showHelp,
		SilenceUsage: true, SilenceErrors: true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Annotations[onThisNode] != "" && c.kube.set() {
				return usagef("%s works on %s: run it there, without --kubeconfig, --context and --namespace",
					cmd.CommandPath(), cmd.Annotations[onThisNode])
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
	addEnum(root, root.PersistentFlags(), &c.output, "output", "o", "output format", outputTable, outputJSON, outputYAML)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%v (see %s --help)", err, cmd.CommandPath())
	})
	root.SetHelpCommand(helpCommand())
	root.AddCommand(c.groupCommand(), c.viewCommand(), c.volumeCommand(), c.copyCommand(), c.peerCommand(),
		c.siteCommand(), c.journalCommand(), c.bundleCommand(), c.connectCommand(), c.demoCommand(), c.workloadCommand())
	return root
}

// onThisNode is an annotation of commands that ask no replicator. Its value is what they work on.
const onThisNode = "on-this-node"

// local marks a command that asks no replicator.
func local(what string, cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{onThisNode: what}
	return cmd
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
		Use: use, Short: short, Args: noCommand, RunE: showHelp, SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(children...)
	return cmd
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// noCommand refuses what is no subcommand, and says which one may have been meant.
func noCommand(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	message := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), given[0])
	if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
		return usagef("%s; did you mean %s?", message, alternatives(near))
	}
	return usagef("%s (see %s --help)", message, cmd.CommandPath())
}

// helpCommand replaces cobra's, which succeeds for commands that do not exist.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND]",
		Short:   "Show the help of a command",
		Example: "  slipctl help group promote",
		RunE: func(cmd *cobra.Command, given []string) error {
			found, rest, err := cmd.Root().Find(given)
			if err != nil || len(rest) > 0 {
				return noCommand(found, append(rest, given...))
			}
			return found.Help()
		},
	}
}
