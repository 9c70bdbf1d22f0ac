package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/slipstream-storage/slipstream/pkg/credentials"
)

// credentialFlags are those of --mode=credentials, and of no other mode.
type credentialFlags struct {
	options credentials.Options
	given   map[string]bool
}

const year = 365 * 24 * time.Hour

func (c *credentialFlags) add(flags *flag.FlagSet) {
	c.given = map[string]bool{}
	text := func(target *string, name, help string) {
		c.given[name] = true
		flags.StringVar(target, name, "", "credentials: "+help)
	}
	text(&c.options.Namespace, "namespace", "namespace of the Secrets")
	text(&c.options.NodeSecret, "node-secret", "name of the Secret with the nodes' certificate")
	text(&c.options.ControllerSecret, "controller-secret", "name of the Secret with the controller's certificate")
	text(&c.options.MetricsSecret, "metrics-secret", "name of the Secret with the token for readers of metrics")
	c.given["validity"] = true
	flags.DurationVar(&c.options.Validity, "validity", year, "credentials: validity of new certificates; they "+
		"are renewed when a third of it is left")
}

// misplaced is a flag that was given and is for this mode (mode true) or not for it; "" if there is none.
func (c *credentialFlags) misplaced(flags *flag.FlagSet, mode bool) (name string) {
	flags.Visit(func(f *flag.Flag) {
		if common := f.Name == "mode" || f.Name == "v" || f.Name == "kubeconfig"; !common && c.given[f.Name] != mode {
			name = f.Name
		}
	})
	return name
}

func runCredentials(flags *flag.FlagSet, c *credentialFlags) error {
	if name := c.misplaced(flags, true); name != "" {
		return fmt.Errorf("--%s is not for --mode=%s", name, modeCredentials)
	}
	if err := c.options.Check(); err != nil {
		return fmt.Errorf("%w; see --help", err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", flags.Lookup("kubeconfig").Value.String())
	if err != nil {
		return fmt.Errorf("how to reach the API server: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return credentials.Run(ctx, config, c.options)
}
