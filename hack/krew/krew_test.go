// Package krew tests the plugin's manifest with krew itself. It is a module of its own, because krew is of the time of
// another Kubernetes.
package krew

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// TestManifest: krew's own check accepts the manifest of hack/plugin.sh, and refuses a damaged one. krew installs the
// archive, with its checksum and its licence, and the installed plugin runs.
func TestManifest(t *testing.T) {
	dir := t.TempDir()
	platform := runtime.GOOS + "/" + runtime.GOARCH
	env := append(os.Environ(), "VERSION=v9.8.7", "KREW_ROOT="+filepath.Join(dir, "root"))
	run := func(name string, args ...string) (string, error) {
		cmd := exec.Command(name, args...)
		cmd.Env = env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(name string, args ...string) string {
		t.Helper()
		out, err := run(name, args...)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return out
	}
	must("../plugin.sh", dir)
	must("go", "build", "-o", dir+"/", "sigs.k8s.io/krew/cmd/validate-krew-manifest", "sigs.k8s.io/krew/cmd/krew")
	check, krew := filepath.Join(dir, "validate-krew-manifest"), filepath.Join(dir, "krew")
	manifest := filepath.Join(dir, "slipstream.yaml")
	must(check, "-skip-install", "-manifest", manifest)

	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string][2]string{
		"without a version":  {"version: v9.8.7", "version: newest"},
		"without a checksum": {"sha256: ", "sha256: x"},
		"an unknown field":   {"shortDescription:", "shortDescriptoin:"},
	} {
		damaged := filepath.Join(t.TempDir(), "slipstream.yaml")
		changed := strings.Replace(string(text), change[0], change[1], 1)
		if err := os.WriteFile(damaged, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := run(check, "-skip-install", "-manifest", damaged); err == nil {
			t.Errorf("a manifest %s is accepted: %s", what, out)
		}
	}

	archive := filepath.Join(dir, "kubectl-slipstream-"+strings.ReplaceAll(platform, "/", "-")+".tar.gz")
	must(krew, "install", "--manifest", manifest, "--archive", archive)
	installed := filepath.Join(dir, "root", "bin", "kubectl-slipstream")
	if out := must(installed, "--version"); !strings.Contains(out, "v9.8.7") {
		t.Errorf("the installed plugin says: %s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "root", "store", "slipstream", "v9.8.7", "LICENSE")); err != nil {
		t.Errorf("the licence is not installed: %v", err)
	}
}
