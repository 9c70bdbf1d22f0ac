package router

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
)

// TestSidecarsQuestions asks over the socket what the sidecars ask before they do anything. The resizer looks for
// growth by nodes when the controller has none, the snapshotter for group snapshots.
func TestSidecarsQuestions(t *testing.T) {
	c := newCluster(t)
	r, ctx := c.router(), testContext(t)
	socket := filepath.Join(c.dir, "csi.sock")
	listener, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	r.Register(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})

	controller, err := csi.NewControllerClient(conn).ControllerGetCapabilities(ctx,
		&csi.ControllerGetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, capability := range controller.GetCapabilities() {
		if capability.GetRpc().GetType() == csi.ControllerServiceCapability_RPC_EXPAND_VOLUME {
			t.Error("the controller says that it grows volumes, which only nodes do")
		}
	}
	node := csi.NewNodeClient(conn)
	nodes, err := node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		t.Fatalf("the resizer would end: %v", err)
	}
	grows := false
	for _, capability := range nodes.GetCapabilities() {
		grows = grows || capability.GetRpc().GetType() == csi.NodeServiceCapability_RPC_EXPAND_VOLUME
	}
	if !grows {
		t.Error("the resizer would not know that nodes grow volumes")
	}
	groups, err := csi.NewGroupControllerClient(conn).GroupControllerGetCapabilities(ctx,
		&csi.GroupControllerGetCapabilitiesRequest{})
	if err != nil || len(groups.GetCapabilities()) == 0 {
		t.Errorf("the snapshotter would take no group snapshots: %v, %v", groups, err)
	}
	// Whatever else is asked of a node is asked at the wrong place.
	_, err = node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	wantCode(t, "the controller as a node", err, codes.Unimplemented)
}

// silentSource are nodes of which an API server has told that has fallen silent.
type silentSource struct{ nodes.Static }

func (silentSource) Contact(context.Context) error { return errors.New("connection refused") }

// TestSidecarsWait: a sidecar that starts while the API server is away is refused, and calls of those that run are not.
func TestSidecarsWait(t *testing.T) {
	c := newCluster(t, "a")
	r, ctx := c.routerOver(silentSource{c.addresses()}), testContext(t)
	controller := &controllerServer{r: r.Router}
	_, err := controller.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	wantCode(t, "a sidecar that starts", err, codes.Unavailable)
	if _, err := controller.ListVolumes(ctx, &csi.ListVolumesRequest{}); err != nil {
		t.Errorf("one that runs: %v", err)
	}
	probe, err := (&identityServer{r: r.Router}).Probe(ctx, &csi.ProbeRequest{})
	if err != nil || !probe.GetReady().GetValue() {
		t.Errorf("the probe, which a restart would not help: %v, %v", probe, err)
	}
}
