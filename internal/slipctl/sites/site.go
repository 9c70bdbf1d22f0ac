package sites

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/site"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func (c *cli) siteCommand() *cobra.Command {
	return frame.Parent("site", "Set up sites", c.siteInit(), c.siteSecrets(), c.siteWait())
}

func (c *cli) siteInit() *cobra.Command {
	config := site.Config{}
	var options site.InitOptions
	var peers []string
	var units string
	cmd := frame.Local("a directory", &cobra.Command{
		Use:   "init --dir DIR --name SITE [--peer NAME=HOST:PORT ...]",
		Short: "Create directories and certificates of a site, and print how to start it",
		Long: "The command can be repeated; it keeps existing files. Sites trust each other if one authority signed their " +
			"certificates:\n" +
			"use the same --authority directory for all sites, for example a copy. The owner of its ca.key can act as any " +
			"site.\n\n" +
			"The output is a script that starts the three processes of the site and tells slipctl where they are. With " +
			"--systemd the\ncommand writes units instead.",
		Example: "  slipctl site init --dir /srv/slipstream --name site-a --peer site-b=10.0.0.2:9443 " +
			"--authority /root/authority > start.sh\n" +
			"  slipctl site init --dir /srv/slipstream --name site-a --systemd /etc/systemd/system",
		Args: frame.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if config.Dir == "" || config.Name == "" {
				return frame.Usagef("--dir and --name are needed")
			}
			dir, err := filepath.Abs(config.Dir)
			if err != nil {
				return err
			}
			config.Dir = dir
			for _, s := range peers {
				peer, err := site.ParsePeer(s)
				if err != nil {
					return frame.Usagef("--peer: %v", err)
				}
				config.Peers = append(config.Peers, peer)
			}
			names := make([]string, len(config.Peers))
			for i, peer := range config.Peers {
				names[i] = peer.Name
			}
			if err := tlsfiles.CheckSites(config.Name, names); err != nil {
				return frame.Usagef("%v", err)
			}
			if config.NodeID == "" {
				if config.NodeID, err = os.Hostname(); err != nil {
					return fmt.Errorf("the node's name: %w: give --node-id", err)
				}
			}
			if err := site.Init(config, options); err != nil {
				return err
			}
			if units != "" {
				return c.writeUnits(config, options, units)
			}
			return c.printSite(config, options)
		},
	})
	flags := cmd.Flags()
	flags.StringVar(&config.Dir, "dir", "", "directory of the site; use a short path, because it holds sockets")
	flags.StringVar(&config.Name, "name", "", "name of the site, a DNS label; the certificate has it")
	flags.StringVar(&config.NodeID, "node-id", "", "name of the node (default the host name)")
	flags.StringVar(&config.Listen, "listen", ":9443", "address of this site's replicator for peers")
	flags.StringVar(&config.StatusListen, "status-listen", "", "address of the status page, as 127.0.0.1:9480 (default "+
		"no page)")
	flags.StringArrayVar(&peers, "peer", nil, "another site as name=host:port; can be repeated")
	flags.StringVar(&options.AuthorityDir, "authority", "", "directory of the authority of all sites; created if "+
		"missing (default DIR/authority)")
	flags.StringArrayVar(&options.Hosts, "host", nil, "additional name or address for the certificate; can be repeated")
	flags.BoolVar(&options.Renew, "renew", false, "write a new certificate")
	flags.StringVar(&config.JournalDir, "journal-dir", "", "directory of the journals, on another disk (default in the "+
		"pool)")
	flags.StringVar(&units, "systemd", "", "write units for systemd into this directory, such as /etc/systemd/system")
	return cmd
}

// siteFields is what --output has of a site.
func siteFields(config site.Config, options site.InitOptions) frame.Fields {
	authority := options.AuthorityDir
	if authority == "" {
		authority = config.AuthorityDir()
	}
	return frame.Fields{
		"site": config.Name, "dir": config.Dir, "authority": authority, "sidecar": config.SidecarEndpoint(),
		"keeper":     append([]string{"keeper"}, config.KeeperArgs()...),
		"replicator": append([]string{"replicator"}, config.ReplicatorArgs()...),
		"driver":     append([]string{"csi-driver"}, config.DriverArgs()...),
	}
}

// printSite prints a script that starts the site.
func (c *cli) printSite(config site.Config, options site.InitOptions) error {
	result := siteFields(config, options)
	return c.ShowValue(result, func() error {
		fmt.Fprintf(c.Out, "# Starts site %s, which is in %s. Read it into the shell of root: . ./FILE\n", config.Name,
			config.Dir)
		for _, process := range []string{"keeper", "replicator", "driver"} {
			command := result[process].([]string)
			log := filepath.Join(config.Dir, command[0]+".log")
			fmt.Fprintf(c.Out, "%s \\\n  >>%s 2>&1 &\n", shellLine(command), shellQuote(log))
		}
		fmt.Fprintf(c.Out, "export SLIPSTREAM_SIDECAR=%s\n", shellQuote(config.SidecarEndpoint()))
		fmt.Fprintf(c.Out, "slipctl site wait --timeout 1m\n")
		fmt.Fprintf(c.Out, "# Its peers need certificates of the same authority: slipctl site init --authority %s ...\n",
			shellQuote(result["authority"].(string)))
		return nil
	})
}

// writeUnits writes the units of a site for systemd, and says how they are started.
func (c *cli) writeUnits(config site.Config, options site.InitOptions, dir string) error {
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("where the programs are: %w", err)
	}
	units := config.Units(filepath.Dir(executable))
	changed, err := site.WriteUnits(dir, units)
	if err != nil {
		return err
	}
	result := siteFields(config, options)
	var names []string
	for _, u := range units {
		names = append(names, u.Name)
	}
	result["units"], result["changed"] = names, changed
	return c.ShowValue(result, func() error {
		if !changed {
			fmt.Fprintf(c.Out, "# The units of site %s are in %s already; nothing changed.\n", config.Name, dir)
			return nil
		}
		fmt.Fprintf(c.Out, "# The units of site %s are in %s. To start the site, now and at each boot:\n", config.Name, dir)
		fmt.Fprintf(c.Out, "systemctl daemon-reload\nsystemctl enable --now %s\n", strings.Join(names, " \\\n  "))
		fmt.Fprintf(c.Out, "# For slipctl here:\nexport SLIPSTREAM_SIDECAR=%s\n", shellQuote(config.SidecarEndpoint()))
		return nil
	})
}

// siteWait waits until the processes of this node answer.
func (c *cli) siteWait() *cobra.Command {
	var timeout time.Duration
	cmd := frame.Local("the processes of a node", &cobra.Command{
		Use:     "wait",
		Short:   "Wait until the keeper, the replicator and the driver of this node serve",
		Example: "  slipctl site wait --timeout 1m",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			for {
				err := c.probe(ctx)
				if err == nil {
					return c.Say(frame.Fields{"ready": true}, "keeper, replicator and driver serve")
				}
				if !pause.For(ctx, 100*time.Millisecond) {
					if cmd.Context().Err() != nil {
						return cmd.Context().Err()
					}
					message, _ := frame.Explain(err)
					return frame.Latef("after %v: %s", timeout, message)
				}
			}
		},
	})
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "longest time to wait; 0: no limit")
	return cmd
}

// probe asks the replicator and the driver whether they serve. The keeper of a site of `slipctl site init` is called:
// without it no volume can be mounted.
func (c *cli) probe(ctx context.Context) error {
	keeper := filepath.Join(filepath.Dir(strings.TrimPrefix(c.Sidecar, "unix://")), "keeper.sock")
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", keeper)
	if err != nil {
		return fmt.Errorf("no keeper answers at %s: %w", keeper, err)
	}
	if err := conn.Close(); err != nil {
		return err
	}
	err = c.WithSidecar(ctx, frame.Short, func(ctx context.Context, sidecar sidecarpb.SidecarClient) error {
		answer, err := sidecar.Probe(ctx, &sidecarpb.ProbeRequest{})
		if err == nil && !answer.GetReady() {
			err = fmt.Errorf("the replicator is not ready")
		}
		return err
	})
	if err != nil {
		return err
	}
	return c.WithDriver(ctx, func(ctx context.Context, conn *grpc.ClientConn) error {
		answer, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{})
		// Absent means ready in CSI.
		if err == nil && answer.GetReady() != nil && !answer.GetReady().GetValue() {
			err = fmt.Errorf("the driver is not ready")
		}
		return err
	})
}

// shellLine is a command as it can be pasted into a shell, an option to a line.
func shellLine(command []string) string {
	var b strings.Builder
	for i, word := range command {
		switch {
		case i == 0:
		case strings.HasPrefix(word, "--"):
			b.WriteString(" \\\n  ")
		default:
			b.WriteString(" ")
		}
		b.WriteString(shellQuote(word))
	}
	return b.String()
}

func shellQuote(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-_./:=,@%+", r))
	})
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
