package slipctl

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/site"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func (c *cli) siteCommand() *cobra.Command {
	return parent("site", "Set up sites", c.siteInit(), c.siteSecrets())
}

func (c *cli) siteInit() *cobra.Command {
	config := site.Config{}
	var options site.InitOptions
	var peers []string
	cmd := local("a directory", &cobra.Command{
		Use:   "init --dir DIR --name SITE [--peer NAME=HOST:PORT ...]",
		Short: "Create directories and certificates of a site, and print how to start it",
		Long: "The command can be repeated; it keeps existing files. Sites trust each other if one authority signed their " +
			"certificates:\n" +
			"use the same --authority directory for all sites, for example a copy. The owner of its ca.key can act as any site.",
		Example: "  slipctl site init --dir /srv/slipstream --name site-a --peer site-b=10.0.0.2:9443 " +
			"--authority /root/authority",
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if config.Dir == "" || config.Name == "" {
				return usagef("--dir and --name are needed")
			}
			dir, err := filepath.Abs(config.Dir)
			if err != nil {
				return err
			}
			config.Dir = dir
			for _, s := range peers {
				peer, err := site.ParsePeer(s)
				if err != nil {
					return usagef("--peer: %v", err)
				}
				config.Peers = append(config.Peers, peer)
			}
			names := make([]string, len(config.Peers))
			for i, peer := range config.Peers {
				names[i] = peer.Name
			}
			if err := tlsfiles.CheckSites(config.Name, names); err != nil {
				return usagef("%v", err)
			}
			if config.NodeID == "" {
				if config.NodeID, err = os.Hostname(); err != nil {
					return fmt.Errorf("the node's name: %w: give --node-id", err)
				}
			}
			if err := site.Init(config, options); err != nil {
				return err
			}
			return c.printSite(config, options)
		},
	})
	flags := cmd.Flags()
	flags.StringVar(&config.Dir, "dir", "", "directory of the site; use a short path, because it holds sockets")
	flags.StringVar(&config.Name, "name", "", "name of the site, a DNS label; the certificate has it")
	flags.StringVar(&config.NodeID, "node-id", "", "name of the node (default the host name)")
	flags.StringVar(&config.Listen, "listen", ":9443", "address of this site's replicator for peers")
	flags.StringArrayVar(&peers, "peer", nil, "another site as name=host:port; can be repeated")
	flags.StringVar(&options.AuthorityDir, "authority", "", "directory of the authority of all sites; created if "+
		"missing (default DIR/authority)")
	flags.StringArrayVar(&options.Hosts, "host", nil, "additional name or address for the certificate; can be repeated")
	flags.BoolVar(&options.Renew, "renew", false, "write a new certificate")
	return cmd
}

func (c *cli) printSite(config site.Config, options site.InitOptions) error {
	keeper := append([]string{"keeper"}, config.KeeperArgs()...)
	replicator := append([]string{"replicator"}, config.ReplicatorArgs()...)
	driver := append([]string{"csi-driver"}, config.DriverArgs()...)
	authority := options.AuthorityDir
	if authority == "" {
		authority = config.AuthorityDir()
	}
	result := fields{
		"site": config.Name, "dir": config.Dir, "authority": authority, "sidecar": config.SidecarEndpoint(),
		"keeper": keeper, "replicator": replicator, "driver": driver,
	}
	return c.showValue(result, func() error {
		fmt.Fprintf(c.out, "# Site %s is set up in %s. Start, as root:\n%s\n%s\n%s\n",
			config.Name, config.Dir, shellLine(keeper), shellLine(replicator), shellLine(driver))
		fmt.Fprintf(c.out, "# For slipctl here:\nexport SLIPSTREAM_SIDECAR=%s\n", shellQuote(config.SidecarEndpoint()))
		fmt.Fprintf(c.out, "# Its peers need certificates of the same authority: slipctl site init --authority %s ...\n",
			shellQuote(authority))
		return nil
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
