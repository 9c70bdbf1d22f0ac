package sites

import (
	"cmp"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/slipstream-storage/slipstream/internal/kubesite"
	"github.com/slipstream-storage/slipstream/internal/site"
	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
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
		Example: "  slipctl site secrets --dir /root/secrets --site site-a --site site-b",
		Args:    frame.Args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			if secrets.Dir == "" || len(secrets.Sites) == 0 {
				return frame.Usagef("--dir and --site are needed")
			}
			secrets.Namespace = cmp.Or(c.Kube.Namespace, kubesite.DefaultNamespace)
			manifests, err := secrets.Write()
			if err != nil {
				return err
			}
			bySite := map[string]string{}
			for i, name := range secrets.Sites {
				bySite[name] = manifests[i]
			}
			result := frame.Fields{"authority": filepath.Join(secrets.Dir, "authority"), "namespace": secrets.Namespace,
				"manifests": bySite}
			return c.ShowValue(result, func() error {
				for i, name := range secrets.Sites {
					fmt.Fprintf(c.Out, "# In the cluster of %s:\nkubectl apply -f %s\n", name, shellQuote(manifests[i]))
				}
				return nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&secrets.Dir, "dir", "", "directory for authorities, certificates and manifests")
	flags.StringArrayVar(&secrets.Sites, "site", nil, "name of a site; can be repeated")
	flags.StringVar(&secrets.Name, "name", "slipstream", "prefix of the names of the Secrets")
	flags.BoolVar(&secrets.Renew, "renew", false, "write new certificates")
	return cmd
}
