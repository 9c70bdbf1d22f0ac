// Package frame is what all commands of slipctl share: the connection to the replicator and to the CSI driver, output,
// errors with their exit statuses, confirmation, completion, and how sizes and times are read and written.
//
// It has no command. Its callers are the packages of commands beside it. A CLI is used by one command line; only its
// connections are used concurrently.
package frame

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// DefaultSidecar is where a replicator listens unless it is told otherwise.
const DefaultSidecar = "unix:///run/slipstream/replicator.sock"

// CLI is what all commands share.
type CLI struct {
	Version string
	Sidecar string
	Kube    KubeFlags
	Here    Here
	Output  string
	Stdin   io.Reader
	Out     io.Writer // results
	Err     io.Writer // for a person
}

// OnThisNode is an annotation of commands that ask no replicator. Its value is what they work on.
const OnThisNode = "on-this-node"

// Local marks a command that asks no replicator.
func Local(what string, cmd *cobra.Command) *cobra.Command {
	cmd.Annotations = map[string]string{OnThisNode: what}
	return cmd
}

// Args wraps cobra's argument checks so that their errors count as wrong usage.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, given []string) error {
		if err := check(cmd, given); err != nil {
			return Usagef("%s: %v (usage: %s)", cmd.CommandPath(), err, cmd.UseLine())
		}
		return nil
	}
}

// Parent is a command that only has subcommands. Without a subcommand it shows its help. With an unknown one it fails;
// cobra alone would show the help and succeed.
func Parent(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: NoCommand, RunE: ShowHelp, SuggestionsMinimumDistance: 2,
	}
	cmd.AddCommand(children...)
	return cmd
}

// ShowHelp is the action of a command that only has subcommands.
func ShowHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// NoCommand refuses what is no subcommand, and says which one may have been meant.
func NoCommand(cmd *cobra.Command, given []string) error {
	if len(given) == 0 {
		return nil
	}
	message := fmt.Sprintf("%s has no command %q", cmd.CommandPath(), given[0])
	if near := cmd.SuggestionsFor(given[0]); len(near) > 0 {
		return Usagef("%s; did you mean %s?", message, alternatives(near))
	}
	return Usagef("%s (see %s --help)", message, cmd.CommandPath())
}
