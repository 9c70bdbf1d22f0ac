package frame

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// Brief bounds what a shell waits for after the tab key. A site that does not answer completes nothing.
const Brief = 2 * time.Second

// enumValue is a flag that takes one of a few words.
type enumValue struct {
	target *string
	words  []string
}

func (e enumValue) String() string {
	if e.target == nil {
		return ""
	}
	return *e.target
}
func (e enumValue) Type() string { return strings.Join(e.words, "|") }

func (e enumValue) Set(s string) error {
	if !slices.Contains(e.words, s) {
		return fmt.Errorf("it can be %s", alternatives(e.words))
	}
	*e.target = s
	return nil
}

// alternatives joins words as a sentence lists them.
func alternatives(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// AddEnum adds a flag that takes one of the words, and completes them. The first word is the default. Help shows the
// words in place of a type.
func AddEnum(cmd *cobra.Command, flags *pflag.FlagSet, target *string, name, short, usage string, words ...string) {
	*target = words[0]
	flags.VarP(enumValue{target, words}, name, short, usage)
	// It fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// completion is what a command offers for its arguments.
type completion = func(cmd *cobra.Command, given []string, begun string) ([]string, cobra.ShellCompDirective)

// OneOf offers the words of each argument by its position.
func OneOf(words ...func(cmd *cobra.Command, given []string) []string) completion {
	return func(cmd *cobra.Command, given []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(given) >= len(words) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var fit []string
		for _, w := range words[len(given)](cmd, given) {
			if strings.HasPrefix(w, begun) {
				fit = append(fit, w)
			}
		}
		return fit, cobra.ShellCompDirectiveNoFileComp
	}
}

// GroupNames offers the groups of the site.
func (c *CLI) GroupNames(cmd *cobra.Command, _ []string) []string {
	var names []string
	for _, g := range c.groupsNow(cmd.Context(), "") {
		names = append(names, g.GetName())
	}
	return names
}

// MemberNames offers the volumes of the group that is the first argument.
func (c *CLI) MemberNames(cmd *cobra.Command, given []string) []string {
	var names []string
	for _, g := range c.groupsNow(cmd.Context(), given[0]) {
		for _, v := range g.GetVolumes() {
			names = append(names, v.GetVolumeId())
		}
	}
	return names
}

// Addable offers the replicable volumes of this node.
func (c *CLI) Addable(*cobra.Command, []string) []string {
	return c.poolVolumes(func(r *blockdev.VolumeRecord) bool { return r.Replicable && !r.Secondary })
}

// EveryVolume offers the volumes of this node.
func (c *CLI) EveryVolume(*cobra.Command, []string) []string {
	return c.poolVolumes(func(*blockdev.VolumeRecord) bool { return true })
}

// groupsNow is what the site has, or nothing: a completion has no place for an error.
func (c *CLI) groupsNow(ctx context.Context, name string) []*sidecarpb.GroupStatus {
	if ctx == nil {
		ctx = context.Background()
	}
	var groups []*sidecarpb.GroupStatus
	_ = c.WithSidecar(ctx, Brief, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		response, err := sidecar.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
		groups = response.GetGroups()
		return err
	})
	return groups
}
