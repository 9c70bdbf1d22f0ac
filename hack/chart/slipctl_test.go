package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"
)

// TestSlipctlFindsTheNodes: the labels by which slipctl looks for pods are those of the nodes' pods, of which some
// renderings have a replicator in them, and of no other.
func TestSlipctlFindsTheNodes(t *testing.T) {
	source, err := os.ReadFile("../../internal/kubesite/kubesite.go")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`const Selector = "(.*)"`).FindSubmatch(source)
	if m == nil {
		t.Fatal("internal/kubesite has no Selector")
	}
	selector, err := labels.Parse(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	files, _ := filepath.Glob(filepath.Join(chartDir, "testdata", "*.values.yaml"))
	found := 0
	for _, file := range files {
		for _, w := range workloads(decode(t, render(t, []string{file}))) {
			selected, replicates := selector.Matches(labels.Set(w.pod.Labels)), w.container("replicator") != nil
			if node := strings.HasSuffix(w.id, "-node"); selected != node || replicates && !selected {
				t.Errorf("%s: %s: selected is %t, has a replicator is %t", filepath.Base(file), w.id, selected, replicates)
			}
			if replicates {
				found++
			}
		}
	}
	if found == 0 {
		t.Error("no rendering has a replicator")
	}
}
