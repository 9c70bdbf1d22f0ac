// Package volumes has the commands of slipctl for what is in the pool of a node: volumes, copies that belong to no
// group, and journals. Volumes are changed by the CSI driver, and shown from the records in the pool, which need no
// process.
package volumes

import (
	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
)

// cli has the commands as methods.
type cli struct{ *frame.CLI }

// Commands are `slipctl volume`, `slipctl copy` and `slipctl journal`.
func Commands(f *frame.CLI) []*cobra.Command {
	c := &cli{f}
	return []*cobra.Command{c.volumeCommand(), c.copyCommand(), c.journalCommand()}
}
