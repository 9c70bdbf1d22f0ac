// Package groups has the commands of slipctl for groups: their creation, status and members, failover and the way back,
// verification, and views of a group as it was. Each command sends calls to the replicator (pkg/api/sidecarpb) and says
// what came of them; nothing about a group is decided here.
//
// Views need loop devices of this node, which view_device.go makes: the replicator must not use the files that it
// serves.
package groups

import (
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
)

// cli has the commands as methods.
type cli struct{ *frame.CLI }

// Commands are `slipctl group` and `slipctl view`.
func Commands(f *frame.CLI) []*cobra.Command {
	c := &cli{f}
	return []*cobra.Command{c.groupCommand(), c.viewCommand()}
}
