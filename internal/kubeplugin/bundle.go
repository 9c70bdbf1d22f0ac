package kubeplugin

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/bundle"
	"github.com/slipstream-storage/slipstream/internal/kubesite"
	"github.com/slipstream-storage/slipstream/internal/words"
)

// bundleTimeout bounds the collection from a cluster.
const bundleTimeout = 5 * time.Minute

func (c *cli) bundleCommand(version string) *cobra.Command {
	var file, installed string
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Write a support bundle of the cluster, without secrets",
		Long: `Write a support bundle of the cluster, a tar.gz file.

It has the objects of the operator, the claims and events of their namespaces, the volumes of the driver, status and
coverage as this plugin prints them, the pods of the installation with the logs of driver, replicator, keeper, gateway,
controller and operator, and what slipctl bundle collects on each node. It reads no Secrets, and has no contents of
volumes. It has names of namespaces, claims, nodes and addresses. What could not be collected is in problems.txt.

It needs the right to read these objects and the logs of pods, and pods/exec in the namespace of the installation.`,
		Example: "  kubectl slipstream bundle\n  kubectl slipstream bundle --context site-a --file /tmp/site-a.tar.gz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, written, err := bundle.Create(file, c.out, func(w *bundle.Writer) error {
				ctx, cancel := context.WithTimeout(cmd.Context(), bundleTimeout)
				defer cancel()
				return c.collect(ctx, w, version, installed)
			})
			if err != nil || written == "-" {
				return err
			}
			for _, problem := range w.Problems() {
				fmt.Fprintf(c.err, "kubectl slipstream: not in the bundle: %s\n", problem)
			}
			_, err = fmt.Fprintf(c.out, "%s: %s. Look at it before you pass it on.\n", written,
				words.Count(w.Files(), "file"))
			return err
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`file` to write; - is standard output (default "+
		"slipstream-bundle-TIME.tar.gz)")
	cmd.Flags().StringVar(&installed, "installation", kubesite.DefaultNamespace,
		"`namespace` that Slipstream is installed in")
	return cmd
}

// collect adds everything that can be had. Its error is one of writing.
func (c *cli) collect(ctx context.Context, w *bundle.Writer, version, installed string) error {
	if err := w.JSON("about.json", map[string]any{"plugin": version, "go": runtime.Version(),
		"system": runtime.GOOS + "/" + runtime.GOARCH}); err != nil {
		return err
	}
	for _, command := range []string{"status", "coverage"} {
		var out bytes.Buffer
		c := &cli{out: &out, err: &out, connect: c.connect, kubeconfig: c.kubeconfig, context: c.context}
		args := []string{command, "--all-namespaces", "--kubeconfig", c.kubeconfig, "--context", c.context}
		run(ctx, c, version, args) // an error is in the text, too
		if err := w.Text(command+".txt", out.Bytes()); err != nil {
			return err
		}
	}
	site, err := kubesite.Open(kubesite.Options{Kubeconfig: c.kubeconfig, Context: c.context, Namespace: installed})
	if err != nil {
		w.Problem("cluster", err)
		return nil
	}
	return site.Collect(ctx, w)
}
