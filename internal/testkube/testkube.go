// Package testkube starts an API server with its store, and those of Kubernetes' controllers that a test wants. It is
// for tests of the operator, which needs no nodes. The programs are those of hack/local-cluster/build.sh, or of
// KUBEBUILDER_ASSETS. Everything ends with the test.
//
// Each call starts a cluster of its own; calls do not disturb each other.
package testkube

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
)

// Patience is for a busy machine.
const Patience = 3 * time.Minute

// Start starts a cluster with the chart's CRDs, and the named controllers of kube-controller-manager. root is the way
// from the test's package to the repository. It skips the test if the programs were not built.
func Start(t *testing.T, root string, controllers ...string) *rest.Config {
	t.Helper()
	dir := os.Getenv("KUBEBUILDER_ASSETS")
	if dir == "" {
		printed, err := exec.Command(filepath.Join(root, "hack/local-cluster/build.sh"), "--print").Output()
		if err != nil {
			t.Fatal(err)
		}
		dir = strings.TrimSpace(string(printed))
	}
	programs := []string{"kube-apiserver", "etcd"}
	if len(controllers) > 0 {
		programs = append(programs, "kube-controller-manager")
	}
	for _, program := range programs {
		if _, err := os.Stat(filepath.Join(dir, program)); err != nil {
			t.Skipf("%s is not built: run hack/local-cluster/build.sh kubernetes etcd, or set KUBEBUILDER_ASSETS", program)
		}
	}
	env := &envtest.Environment{BinaryAssetsDirectory: dir, ErrorIfCRDPathMissing: true,
		CRDDirectoryPaths:        []string{filepath.Join(root, "deploy/charts/slipstream/files/crds")},
		ControlPlaneStartTimeout: Patience, ControlPlaneStopTimeout: Patience}
	config, err := env.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	if len(controllers) > 0 {
		manage(t, env, filepath.Join(dir, "kube-controller-manager"), controllers)
	}
	config.QPS, config.Burst = 1000, 1000
	return config
}

// manage runs controllers until the test ends.
func manage(t *testing.T, env *envtest.Environment, program string, controllers []string) {
	t.Helper()
	user, err := env.AddUser(envtest.User{Name: "controllers", Groups: []string{"system:masters"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := user.KubeConfig()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, kubeconfig, 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(program, "--kubeconfig", file, "--leader-elect=false", "--secure-port=0",
		"--controllers="+strings.Join(controllers, ","))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if t.Failed() {
			text := log.Bytes()
			t.Logf("%s", text[max(0, len(text)-4000):])
		}
	})
}
