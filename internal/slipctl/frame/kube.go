package frame

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/kubesite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// KubeFlags select a site in Kubernetes. If none of the first three is set, slipctl uses the socket.
type KubeFlags struct {
	Kubeconfig, Context, Namespace, Node string
}

func (k *KubeFlags) Add(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&k.Kubeconfig, "kubeconfig", "", "kubeconfig `file` to find the pods of the replicators")
	flags.StringVar(&k.Context, "context", "", "`context` of the kubeconfig to find the pods")
	flags.StringVarP(&k.Namespace, "namespace", "n", "", "`namespace` of the pods and Secrets (default "+
		kubesite.DefaultNamespace+")")
	flags.StringVar(&k.Node, "node", "", "use only this `node` (Kubernetes)")
}

func (k *KubeFlags) Set() bool { return k.Kubeconfig != "" || k.Context != "" || k.Namespace != "" }

// Connect prepares connections to the site's nodes.
func (c *CLI) Connect(ctx context.Context) (*kubesite.Conn, error) {
	cluster, err := kubesite.Open(kubesite.Options{Kubeconfig: c.Kube.Kubeconfig, Context: c.Kube.Context,
		Namespace: c.Kube.Namespace})
	if err != nil {
		return nil, err
	}
	return cluster.Connect(ctx, c.Kube.Node, func(format string, args ...any) {
		fmt.Fprintf(c.Err, "slipctl: "+format+"\n", args...)
	})
}

// withCluster is withSidecar over all nodes of a site in Kubernetes.
func (c *CLI) withCluster(ctx context.Context, call func(context.Context, sidecarpb.SidecarClient) error) error {
	conn, err := c.Connect(ctx)
	if err != nil {
		return err
	}
	return errors.Join(call(ctx, sidecarpb.NewSidecarClient(conn)), conn.Close())
}
