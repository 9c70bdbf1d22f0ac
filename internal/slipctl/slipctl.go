// Package slipctl is the command line for operators. It calls the replicator of a site over its Unix socket, reads the
// records of a pool, sets up sites and runs the demo.
//
// This package has the root of the commands, the support bundle and the demo. The commands for groups and views, for
// volumes and for sites are in packages of their own; frame is what all share.
//
// Results go to standard output, as tables, or with --output as JSON or YAML (frame/output.go). Messages for a person
// go to standard error. Errors say what to do next. frame/exit.go has the exit statuses.
//
// Rules for every command:
//   - It has an example in its help that parses, a check of its arguments, and completion for names and words.
//   - What it prints goes through Show, ShowValue, Say or ShowNext, so that --output works.
//   - What destroys data asks first, with Confirm, and has --yes.
//   - Creating or adding what is there, with the same properties, succeeds and says that nothing changed. Deleting or
//     removing what is not there fails with the status for what does not exist. Both can be repeated.
//
// It is not an API: programs talk to the replicator (pkg/api/sidecarpb).
package slipctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/internal/slipctl/groups"
	"github.com/slipstream-storage/slipstream/internal/slipctl/sites"
	"github.com/slipstream-storage/slipstream/internal/slipctl/volumes"
)

// cli has the commands as methods.
type cli struct{ *frame.CLI }

// Main runs a command line and returns the exit status.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c := &cli{&frame.CLI{Version: version, Stdin: os.Stdin, Out: os.Stdout, Err: os.Stderr}}
	root := c.command()
	root.SetArgs(args)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return frame.ExitOK
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		fmt.Fprintln(c.Err, "slipctl: interrupted")
		return frame.ExitFailure
	}
	message, code := frame.Explain(err)
	fmt.Fprintln(c.Err, "slipctl: "+message)
	return code
}

const about = `slipctl calls the replicator of this node. With --kubeconfig, --context or --namespace it calls the
replicators of all nodes of a site in Kubernetes. A group is a set of volumes with one write order and one
failover. It is primary at one site and secondary at its peer.

Exit status: ` + frame.ExitHelp

func (c *cli) command() *cobra.Command {
	root := &cobra.Command{
		Use:     "slipctl",
		Short:   "See and control the replication of a Slipstream site",
		Long:    about,
		Version: c.Version,
		Example: "  slipctl group list\n  slipctl group status shop --watch\n" +
			"  slipctl --context site-b group promote shop",
		Args: frame.NoCommand, RunE: frame.ShowHelp,
		SilenceUsage: true, SilenceErrors: true,
		SuggestionsMinimumDistance: 2,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Annotations[frame.OnThisNode] != "" && c.Kube.Set() {
				return frame.Usagef("%s works on %s: run it there, without --kubeconfig, --context and --namespace",
					cmd.CommandPath(), cmd.Annotations[frame.OnThisNode])
			}
			return nil
		},
	}
	sidecar := os.Getenv("SLIPSTREAM_SIDECAR")
	if sidecar == "" {
		sidecar = frame.DefaultSidecar
	}
	root.PersistentFlags().StringVar(&c.Sidecar, "sidecar", sidecar, "socket of the replicator; SLIPSTREAM_SIDECAR sets "+
		"the default")
	c.Kube.Add(root)
	frame.AddEnum(root, root.PersistentFlags(), &c.Output, "output", "o", "output format", frame.OutputTable,
		frame.OutputJSON, frame.OutputYAML)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return frame.Usagef("%v (see %s --help)", err, cmd.CommandPath())
	})
	root.SetHelpCommand(helpCommand())
	root.AddCommand(groups.Commands(c.CLI)...)
	root.AddCommand(volumes.Commands(c.CLI)...)
	root.AddCommand(sites.Commands(c.CLI)...)
	root.AddCommand(c.bundleCommand(), c.connectCommand(), c.demoCommand(), c.workloadCommand())
	// cobra adds this command when it runs, and then prints help for a shell that it does not know.
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args, cmd.RunE = frame.NoCommand, frame.ShowHelp
			for _, shell := range cmd.Commands() {
				shell.Args = frame.Args(cobra.NoArgs)
				shell.Example = "  slipctl completion " + shell.Name() + " > FILE"
			}
		}
	}
	return root
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
				return frame.NoCommand(found, append(rest, given...))
			}
			return found.Help()
		},
	}
}
