package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	commonutil "helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"sigs.k8s.io/yaml"
)

// documents are those that tell people to install the chart, and what to make then.
var documents = []string{"README.md", "docs/guides/*.md", "docs/alerts/*.md", "docs/troubleshooting.md"}

// written are the documents' texts by their names.
func written(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range documents {
		files, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no documents, %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			texts[strings.TrimPrefix(file, "../../")] = string(text)
		}
	}
	return texts
}

// notes renders NOTES.txt.
func notes(t *testing.T, values map[string]any) string {
	t.Helper()
	chart, err := loader.LoadDir(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	options := common.ReleaseOptions{Name: testRelease.Name, Namespace: testRelease.Namespace, IsInstall: true}
	all, err := commonutil.ToRenderValues(chart, values, options, common.DefaultCapabilities.Copy())
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, all)
	if err != nil {
		t.Fatal(err)
	}
	return files["slipstream/templates/NOTES.txt"]
}

// TestInstallAsWritten: the values of each command in the documents that installs or changes the chart are good. An
// installation with a peer has controller, gateway, operator and the pods of the nodes.
func TestInstallAsWritten(t *testing.T) {
	command := regexp.MustCompile(`helm [a-z0-9 -]*(?:install|upgrade) slipstream deploy/charts/slipstream(?:\\\n|.)*`)
	found := 0
	for name, text := range written(t) {
		for _, line := range command.FindAllString(text, -1) {
			found++
			var sets []string
			for _, m := range regexp.MustCompile(`--set (\S+)`).FindAllStringSubmatch(line, -1) {
				sets = append(sets, strings.ReplaceAll(m[1], `\.`, "\x00"))
			}
			for i := range sets {
				sets[i] = strings.ReplaceAll(sets[i], "\x00", `\.`)
			}
			if strings.Contains(line, "--reuse-values") { // those of an installation before
				sets = append([]string{"site.name=site-a"}, sets...)
			}
			values, err := readValues(nil, sets)
			if err != nil {
				t.Errorf("%s: %s: %v", name, line, err)
				continue
			}
			manifest, err := Render(chartDir, testRelease, values)
			if err != nil {
				t.Errorf("%s: %s: %v", name, line, err)
				continue
			}
			if !strings.Contains(line, "site.peers") {
				continue
			}
			have := map[string]bool{}
			for _, w := range workloads(decode(t, manifest)) {
				have[w.id[strings.LastIndex(w.id, "-")+1:]] = true
			}
			for _, want := range []string{"controller", "gateway", "operator", "node", "keeper"} {
				if !have[want] {
					t.Errorf("%s: %s: there is no %s: %v", name, line, want, have)
				}
			}
		}
	}
	if found < 4 {
		t.Errorf("%d commands", found)
	}
}

// TestNotes: what the chart prints after the installation goes with its values.
func TestNotes(t *testing.T) {
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(twoSites), &values); err != nil {
		t.Fatal(err)
	}
	alone := notes(t, map[string]any{"site": map[string]any{"name": "site-a"}})
	both := notes(t, values)
	values["replication"] = map[string]any{"service": map[string]any{"type": "LoadBalancer"}}
	balanced := notes(t, values)
	if strings.Contains(both, "If controller.mode was node before") {
		t.Errorf("the notes of a first installation speak of an earlier one:\n%s", both)
	}
	for text, want := range map[string][]string{
		alone: {"as site site-a", "slipctl site secrets --dir DIRECTORY --site site-a --site OTHER",
			"tls.existingSecret=slipstream-link-tls", "slipstream-replicable is ready"},
		balanced: {"kubectl -n slipstream-system get service slipstream-link"},
		both: {"Service slipstream-link (ClusterIP)", "Deployment slipstream-gateway", "metadata: {name: site-b}",
			"slipstream.dev/replicate-to=site-b", "kubectl slipstream failover", "Secret slipstream-metrics-token"},
	} {
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("the notes lack %q:\n%s", w, text)
			}
		}
		for i, line := range strings.Split(text, "\n") {
			if len(line) > 120 {
				t.Errorf("line %d of the notes is long: %s", i+1, line)
			}
		}
	}
}

// TestObjectsAsWritten: objects that documents and notes give to kubectl in one line are accepted by the chart's
// CustomResourceDefinitions.
func TestObjectsAsWritten(t *testing.T) {
	known := crds(t)
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(twoSites), &values); err != nil {
		t.Fatal(err)
	}
	texts := written(t)
	texts["NOTES.txt"] = notes(t, values)
	found := 0
	for name, text := range texts {
		for _, m := range regexp.MustCompile(`(?s)<<< '(\{.*?\})'`).FindAllStringSubmatch(text, -1) {
			found++
			if errs := validate(t, known, m[1], ""); len(errs) > 0 {
				t.Errorf("%s: %s: %v", name, m[1], errs.ToAggregate())
			}
		}
	}
	if found < 5 {
		t.Errorf("%d objects", found)
	}
}
