package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/strvals"
	"sigs.k8s.io/yaml"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var files, sets []string
	release := Release{}
	manifests := ""
	cmd := &cobra.Command{
		Use:           "chart CHART-DIRECTORY",
		Short:         "Print the objects of a Helm chart",
		Args:          cobra.ExactArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if manifests != "" {
				manifest, err := Manifests(args[0], manifests)
				if err != nil {
					return err
				}
				_, err = cmd.OutOrStdout().Write(manifest)
				return err
			}
			values, err := readValues(files, sets)
			if err != nil {
				return err
			}
			manifest, err := Render(args[0], release, values)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(manifest)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&release.Name, "release", "slipstream", "name of the release")
	flags.StringVarP(&release.Namespace, "namespace", "n", "slipstream-system", "namespace of the release")
	flags.StringVar(&release.KubeVersion, "kube-version", "v1.37.0", "version of the cluster")
	flags.StringArrayVarP(&files, "values", "f", nil, "file with values; of several the later one wins")
	flags.StringArrayVar(&sets, "set", nil, "a value, as path.of.key=value; wins over files")
	flags.StringVar(&manifests, "manifests", "", "print what deploy/manifests has, with the values of this file")
	cmd.MarkFlagsMutuallyExclusive("manifests", "values")
	cmd.MarkFlagsMutuallyExclusive("manifests", "set")
	return cmd
}

// readValues merges values as Helm does: files in their order, single ones last.
func readValues(files, sets []string) (map[string]any, error) {
	values := map[string]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		next := map[string]any{}
		if err := yaml.UnmarshalStrict(text, &next); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		values = commonutil.CoalesceTables(next, values)
	}
	for _, set := range sets {
		if err := strvals.ParseInto(set, values); err != nil {
			return nil, fmt.Errorf("--set %s: %w", strings.TrimSpace(set), err)
		}
	}
	return values, nil
}
