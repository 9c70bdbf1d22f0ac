// Package krew tests the plugin's manifest with krew itself. It is a module of its own, because krew is of the time of
// another Kubernetes.
package krew

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// everywhere is what hack/plugin.sh builds for if the environment does not say PLATFORMS.
const everywhere = "linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64"

// TestManifest: the plugin builds for each platform, and krew's own check accepts the manifest of hack/plugin.sh and
// refuses a damaged one. krew installs the archive, with its checksum and its licence, and the installed plugin runs.
func TestManifest(t *testing.T) {
	dir := t.TempDir()
	host := runtime.GOOS + "/" + runtime.GOARCH
	platforms := strings.Fields(cmp.Or(os.Getenv("PLATFORMS"), everywhere))
	if !slices.Contains(platforms, host) {
		t.Fatalf("PLATFORMS has to contain %s, where the plugin is installed", host)
	}
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
	if n := strings.Count(string(text), "      uri: "); n != len(platforms) {
		t.Errorf("the manifest has %d archives, want %d", n, len(platforms))
	}
	for _, platform := range platforms {
		name := fmt.Sprintf("kubectl-slipstream-%s.tar.gz", strings.ReplaceAll(platform, "/", "-"))
		if !strings.Contains(string(text), "/"+name+"\n") {
			t.Errorf("the manifest lacks %s", name)
		}
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
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

	archive := filepath.Join(dir, "kubectl-slipstream-"+strings.ReplaceAll(host, "/", "-")+".tar.gz")
	must(krew, "install", "--manifest", manifest, "--archive", archive)
	installed := filepath.Join(dir, "root", "bin", "kubectl-slipstream")
	if out := must(installed, "--version"); !strings.Contains(out, "v9.8.7") {
		t.Errorf("the installed plugin says: %s", out)
	}
	if _, err := os.Stat(filepath.Join(dir, "root", "store", "slipstream", "v9.8.7", "LICENSE")); err != nil {
		t.Errorf("the licence is not installed: %v", err)
	}
}
