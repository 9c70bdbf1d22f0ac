package slipctl

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
)

// connectCommand is what slipctl runs in a pod.
func (c *cli) connectCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "connect",
		Short:  "Join standard input and output with the replicator's socket",
		Args:   frame.Args(cobra.NoArgs),
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(c.Sidecar, "unix://")
			if !ok {
				return frame.Usagef("--sidecar %q: it is written as unix:///run/slipstream/replicator.sock", c.Sidecar)
			}
			var dialer net.Dialer
			conn, err := dialer.DialContext(cmd.Context(), "unix", path)
			if err != nil {
				return err
			}
			stop := context.AfterFunc(cmd.Context(), func() { conn.Close() })
			defer stop()
			go func() {
				// The end of the input ends the connection. What the replicator still sends is not read.
				_, _ = io.Copy(conn, c.Stdin)
				conn.Close()
			}()
			_, err = io.Copy(c.Out, conn)
			// The reader of the output may end while something is written to it. That is a normal end, too.
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) {
				err = nil
			}
			return err
		},
	}
}
