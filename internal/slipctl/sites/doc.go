// Package sites has the commands of slipctl for sites: the directory, certificates and units of one that runs without
// Kubernetes (internal/site), and the peers that a site knows.
package sites

import (
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
)

// cli has the commands as methods.
type cli struct{ *frame.CLI }

// Commands are `slipctl peer` and `slipctl site`.
func Commands(f *frame.CLI) []*cobra.Command {
	c := &cli{f}
	return []*cobra.Command{c.peerCommand(), c.siteCommand()}
}
