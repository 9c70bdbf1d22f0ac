package sanity

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// startRouted starts a cluster as a sidecar sees it: the driver in controller mode, which reaches its nodes over mutual
// TLS. Volumes are used on one of them. The second has no room: where it is the router's first choice it refuses and
// the volume comes to be on the first, and lists are merged of both. A third node is retired and silent.
func startRouted(t *testing.T, dir string) endpoints {
	t.Helper()
	testenv.RequireFUSE(t)
	authority, err := tlsfiles.NewAuthority(filepath.Join(dir, "authority"), "test")
	if err != nil {
		t.Fatal(err)
	}
	nodeTLS, controllerTLS := filepath.Join(dir, "node-tls"), filepath.Join(dir, "controller-tls")
	for path, name := range map[string]string{nodeTLS: tlsfiles.NodeName, controllerTLS: tlsfiles.ControllerName} {
		if err := authority.IssueSite(path, name, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	addresses, err := testsite.FreeAddresses(3)
	if err != nil {
		t.Fatal(err)
	}
	start := func(dir, name, address string, args ...string) string {
		sidecar := "unix://" + filepath.Join(dir, "replicator.sock")
		args = append([]string{"--node-id", name, "--sidecar", sidecar, "--tcp-address", address, "--tls-dir", nodeTLS},
			args...)
		p := startProcess(t, dir, args...)
		startReplicator(t, dir, sidecar)
		return p.endpoint
	}
	full := filepath.Join(dir, "full")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	node := start(dir, "node-a", addresses[0])
	start(full, "node-full", addresses[1], "--reserve", "1Pi")
	controller := "unix://" + filepath.Join(dir, "controller.sock")
	background(t, "csi-driver", "--mode", "controller", "--endpoint", controller, "--tls-dir", controllerTLS, "-v", "2",
		"--nodes", "node-a="+addresses[0]+",node-full="+addresses[1]+",node-gone="+addresses[2], "--retired-node",
		"node-gone")
	waitReady(t, controller)
	return endpoints{node: node, controller: controller}
}

// waitReady waits until a driver says that it is ready.
func waitReady(t *testing.T, endpoint string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	conn := dial(t, endpoint)
	defer conn.Close()
	for {
		response, err := csi.NewIdentityClient(conn).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		switch {
		case err != nil:
			t.Fatalf("%s is not ready: %v", endpoint, err)
		case response.GetReady() == nil || response.GetReady().GetValue():
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
