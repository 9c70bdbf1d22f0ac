package slipctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/kubesite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// kubeFlags select a site in Kubernetes. If none of the first three is set, slipctl uses the socket.
type kubeFlags struct {
	kubeconfig, context, namespace, node string
}

func (k *kubeFlags) add(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&k.kubeconfig, "kubeconfig", "", "kubeconfig `file` to find the pods of the replicators")
	flags.StringVar(&k.context, "context", "", "`context` of the kubeconfig to find the pods")
	flags.StringVarP(&k.namespace, "namespace", "n", "", "`namespace` of the pods and Secrets (default "+
		kubesite.DefaultNamespace+")")
	flags.StringVar(&k.node, "node", "", "use only this `node` (Kubernetes)")
}

func (k *kubeFlags) set() bool { return k.kubeconfig != "" || k.context != "" || k.namespace != "" }

// connect prepares connections to the site's nodes.
func (c *cli) connect(ctx context.Context) (*kubesite.Conn, error) {
	cluster, err := kubesite.Open(kubesite.Options{Kubeconfig: c.kube.kubeconfig, Context: c.kube.context,
		Namespace: c.kube.namespace})
	if err != nil {
		return nil, err
	}
	return cluster.Connect(ctx, c.kube.node, func(format string, args ...any) {
		fmt.Fprintf(c.err, "slipctl: "+format+"\n", args...)
	})
}

// withCluster is withSidecar over all nodes of a site in Kubernetes.
func (c *cli) withCluster(ctx context.Context, call func(context.Context, sidecarpb.SidecarClient) error) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	return errors.Join(call(ctx, sidecarpb.NewSidecarClient(conn)), conn.Close())
}

// connectCommand is what slipctl runs in a pod.
func (c *cli) connectCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "connect",
		Short:  "Join standard input and output with the replicator's socket",
		Args:   args(cobra.NoArgs),
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, ok := strings.CutPrefix(c.sidecar, "unix://")
			if !ok {
				return usagef("--sidecar %q: it is written as unix:///run/slipstream/replicator.sock", c.sidecar)
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
				_, _ = io.Copy(conn, c.stdin)
				conn.Close()
			}()
			_, err = io.Copy(c.out, conn)
			// The reader of the output may end while something is written to it. That is a normal end, too.
			if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) || errors.Is(err, syscall.EPIPE) {
				err = nil
			}
			return err
		},
	}
}
