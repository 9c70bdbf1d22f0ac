package router

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// replicators follows the nodes with the certificate in a directory of the cluster's.
func (c *cluster) replicators(source nodes.Source, tlsDir string) *Replicators {
	c.t.Helper()
	r, err := NewReplicators(source, nil, filepath.Join(c.dir, tlsDir))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Follow(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			c.t.Error(err)
		}
		if err := r.Close(); err != nil {
			c.t.Error(err)
		}
	})
	waitFor(c.t, "the nodes to be known", func() bool { _, err := r.All(); return err == nil })
	return r
}

func (r *Replicators) client(t *testing.T, node string) sidecarpb.SidecarClient {
	t.Helper()
	all, err := r.All()
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range all {
		if one.Node == node {
			return one.Client
		}
	}
	t.Fatalf("no node %s", node)
	return nil
}

// TestReplicators calls the replicators of two nodes through their drivers.
func TestReplicators(t *testing.T) {
	c := newCluster(t, "a", "b")
	ctx := testContext(t)
	router := c.router()
	replicable := map[string]string{parameter.KeyReplicable: "true"}
	id, _ := router.create(t, createReq("v", on("a"), replicable))
	plain, _ := router.create(t, createReq("plain", on("a"), nil))

	a, b := c.replicators(c.addresses(), "controller-tls").client(t, "a"), sidecarpb.SidecarClient(nil)
	if _, err := a.CreateGroup(ctx, &sidecarpb.CreateGroupRequest{Name: "shop"}, grpc.WaitForReady(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := a.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "shop", VolumeId: id}); err != nil {
		t.Fatal(err)
	}
	_, err := a.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "shop", VolumeId: plain})
	wantCode(t, "a plain volume", err, codes.FailedPrecondition)
	if sidecarpb.Reason(err) != sidecarpb.ReasonNotReplicable || !strings.Contains(err.Error(), "node a: ") {
		t.Errorf("a plain volume: reason %q of %v", sidecarpb.Reason(err), err)
	}
	_, err = a.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: "none", VolumeId: id})
	wantCode(t, "a group that is not there", err, codes.NotFound)
	list, err := a.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 1 || list.GetGroups()[0].GetVolumes()[0].GetVolumeId() != id {
		t.Errorf("groups of a: %v, %v", list, err)
	}
	b = c.replicators(c.addresses(), "controller-tls").client(t, "b")
	if list, err = b.ListGroups(ctx, &sidecarpb.ListGroupsRequest{}, grpc.WaitForReady(true)); err != nil ||
		len(list.GetGroups()) != 0 {
		t.Errorf("groups of b: %v, %v", list, err)
	}

	// What is for the driver of the node alone is not passed on.
	_, err = a.AttachVolume(ctx, &sidecarpb.AttachVolumeRequest{VolumeId: id})
	wantCode(t, "AttachVolume", err, codes.FailedPrecondition) // Unimplemented there
	_, err = a.CutGroup(ctx, &sidecarpb.CutGroupRequest{Group: "shop"})
	wantCode(t, "CutGroup", err, codes.FailedPrecondition)

	// An address that leads to another node.
	swapped := c.replicators(nodes.Static{"b": c.nodes["a"].address}, "controller-tls").client(t, "b")
	_, err = swapped.ListGroups(ctx, &sidecarpb.ListGroupsRequest{}, grpc.WaitForReady(true))
	wantCode(t, "a call for b at a", err, codes.Unavailable)
	if err == nil || !strings.Contains(err.Error(), "out of date") {
		t.Errorf("a call for b at a: %v", err)
	}
}

// TestReplicatorsRefuse: only the controller's certificate opens the way to a replicator, and only with the node's
// name.
func TestReplicatorsRefuse(t *testing.T) {
	c := newCluster(t, "a")
	ctx := testContext(t)
	_, err := c.replicators(c.addresses(), "node-tls").client(t, "a").ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
	wantCode(t, "with a node's certificate", err, codes.Unavailable)

	source, err := tlsfiles.OpenDir(filepath.Join(c.dir, "controller-tls"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	conn, err := grpc.NewClient("passthrough:///"+c.nodes["a"].address,
		grpc.WithTransportCredentials(credentials.NewTLS(source.ClientConfig(tlsfiles.NodeName))))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := sidecarpb.NewSidecarClient(conn)
	_, err = client.ListGroups(ctx, &sidecarpb.ListGroupsRequest{}, grpc.WaitForReady(true))
	wantCode(t, "without the node's name", err, codes.InvalidArgument)
	for _, method := range []func(context.Context) error{
		func(ctx context.Context) error {
			_, err := client.AttachVolume(ctx, &sidecarpb.AttachVolumeRequest{})
			return err
		},
		func(ctx context.Context) error {
			_, err := client.ReleaseCut(ctx, &sidecarpb.ReleaseCutRequest{})
			return err
		},
	} {
		named := metadata.AppendToOutgoingContext(ctx, plugin.NodeMetadata, "a")
		if code := status.Code(method(named)); code != codes.Unimplemented {
			t.Errorf("a method that is not on the list: %s", code)
		}
	}
}
