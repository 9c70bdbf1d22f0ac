// Command chart renders the Helm chart without Helm: for the manifests in deploy/manifests, for clusters of the tests,
// and for people who have no Helm. It is a module of its own because Helm brings a few hundred packages along that the
// project has no use for. Its tests hold the chart to the renderings beside it, to Kubernetes' types, and to its
// schema.
package main

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releasev1 "helm.sh/helm/v4/pkg/release/v1"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
)

// Release is what a rendering is for.
type Release struct {
	Name, Namespace string
	// KubeVersion is that of the cluster, as v1.37.0; the chart refuses versions that it cannot serve.
	KubeVersion string
}

// Render returns the chart's objects as YAML documents, in the order in which Helm installs them: first its hooks,
// which all run before the rest. Errors are those of the schema or of the chart's own checks; nothing is rendered then.
func Render(chartDir string, release Release, values map[string]any) ([]byte, error) {
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		return nil, err
	}
	capabilities := common.DefaultCapabilities.Copy()
	version, err := common.ParseKubeVersion(release.KubeVersion)
	if err != nil {
		return nil, err
	}
	capabilities.KubeVersion = *version
	options := common.ReleaseOptions{Name: release.Name, Namespace: release.Namespace, Revision: 1, IsInstall: true}
	all, err := commonutil.ToRenderValues(chart, values, options, capabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(files, func(name, _ string) bool { return strings.HasSuffix(name, "NOTES.txt") })
	hooks, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(hooks, func(a, b *releasev1.Hook) int { return cmp.Compare(a.Weight, b.Weight) })
	// Helm sorts by kind and leaves what is equal in an order that no one promises.
	slices.SortStableFunc(manifests, func(a, b releaseutil.Manifest) int {
		if a.Head.Kind != b.Head.Kind {
			return 0
		}
		return strings.Compare(a.Name, b.Name)
	})
	var out bytes.Buffer
	for _, h := range hooks {
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", h.Path, strings.TrimSpace(h.Manifest))
	}
	for _, m := range manifests {
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", m.Name, strings.TrimSpace(m.Content))
	}
	return out.Bytes(), nil
}
