// Package kubeplugin has the commands of kubectl slipstream. They read and write the operator's objects
// (pkg/api/v1alpha1) with the rights of the person who calls them. Only bundle reaches nodes, by an exec in their pods.
//
// One process runs one command; nothing here is for concurrent use.
package kubeplugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// Exit statuses. The help of the command explains them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUnprotected = 2
)

// errUnprotected ends coverage with a status of its own. The table has said why.
var errUnprotected = errors.New("claims are not protected")

type cli struct {
	out, err io.Writer
	// connect returns the client and the namespace of the context.
	connect                       func(kubeconfig, context string) (client.Client, string, error)
	kubeconfig, context, selected string
	all                           bool
	output                        string
}

// Main runs the plugin and returns its exit status.
func Main(version string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctrl.SetLogger(klog.Background())
	return run(ctx, &cli{out: os.Stdout, err: os.Stderr, connect: connect}, version, args)
}

func run(ctx context.Context, c *cli, version string, args []string) int {
	root := c.command(version)
	root.SetArgs(args)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errUnprotected):
		return exitUnprotected
	}
	fmt.Fprintf(c.err, "kubectl slipstream: %v\n", err)
	return exitFailure
}

func (c *cli) command(version string) *cobra.Command {
	root := &cobra.Command{
		Use:   "kubectl-slipstream",
		Short: "See, and fail over, what Slipstream replicates in a cluster",
		Annotations: map[string]string{
			cobra.CommandDisplayNameAnnotation: "kubectl slipstream",
		},
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := root.PersistentFlags()
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "kubeconfig `file`")
	flags.StringVar(&c.context, "context", "", "`context` of the kubeconfig")
	flags.StringVarP(&c.selected, "namespace", "n", "", "`namespace` (default: the one of the context)")
	root.AddCommand(c.statusCommand(), c.coverageCommand(), c.explainCommand(), c.testCommand(), c.reportCommand(),
		c.bundleCommand(version))
	root.AddCommand(c.actionCommands()...)
	return root
}

// newScheme has the objects that the commands read and write.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(corev1.AddToScheme(scheme), storagev1.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))
}

func connect(kubeconfig, context string) (client.Client, string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules,
		&clientcmd.ConfigOverrides{CurrentContext: context})
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, "", err
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, "", err
	}
	scheme, err := newScheme()
	if err != nil {
		return nil, "", err
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	return c, namespace, err
}

// cluster returns the client and the namespace that is meant; empty for all.
func (c *cli) cluster() (client.Client, string, error) {
	api, namespace, err := c.connect(c.kubeconfig, c.context)
	switch {
	case err != nil:
		return nil, "", err
	case c.all:
		return api, "", nil
	case c.selected != "":
		return api, c.selected, nil
	}
	return api, namespace, nil
}

func (c *cli) addAll(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&c.all, "all-namespaces", "A", false, "all namespaces")
	cmd.Flags().StringVarP(&c.output, "output", "o", "table", "`format`: table or json")
}

// completeGroups completes the names of groups.
func (c *cli) completeGroups(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, namespace, err := c.cluster()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	groups := &v1alpha1.ConsistencyGroupList{}
	if err := api.List(cmd.Context(), groups, client.InNamespace(namespace)); err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, g := range groups.Items {
		names = append(names, g.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
