package slipctl

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/site"
)

func (c *cli) siteSecrets() *cobra.Command {
	var secrets site.Secrets
	cmd := &cobra.Command{
		Use:   "secrets --dir DIR --site NAME [--site NAME ...]",
		Short: "Make the certificates of Kubernetes sites, as files and as Secrets",
		Long: "For clusters without a certificate manager. Each site gets certificates for its link to the other sites, " +
			"for its nodes\n" +
			"and for its controller. The command can be repeated: it keeps existing files, and can add sites. Keep the " +
			"directory:\n" +
			"certificates cannot be renewed without its ca.key files. The owner of these files can act as any site.",
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if secrets.Dir == "" || len(secrets.Sites) == 0 {
				return usagef("--dir and --site are needed")
			}
			manifests, err := secrets.Write()
			if err != nil {
				return err
			}
			if c.output == "json" {
				bySite := map[string]string{}
				for i, name := range secrets.Sites {
					bySite[name] = manifests[i]
				}
				return printJSON(c.out, map[string]any{"authority": filepath.Join(secrets.Dir, "authority"), "manifests": bySite})
			}
			for i, name := range secrets.Sites {
				fmt.Fprintf(c.out, "# In the cluster of %s:\nkubectl apply -f %s\n", name, shellQuote(manifests[i]))
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&secrets.Dir, "dir", "", "directory for authorities, certificates and manifests")
	flags.StringArrayVar(&secrets.Sites, "site", nil, "name of a site; can be repeated")
	flags.StringVar(&secrets.Namespace, "namespace", "slipstream", "namespace of the Secrets")
	flags.StringVar(&secrets.Name, "name", "slipstream", "prefix of the names of the Secrets")
	flags.BoolVar(&secrets.Renew, "renew", false, "write new certificates")
	return cmd
}
