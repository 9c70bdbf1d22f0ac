package link_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// nodeService is what nodes of a site may ask each other.
type nodeService struct {
	shardpb.UnimplementedShardsServer
}

func (nodeService) ListShards(context.Context, *shardpb.ListShardsRequest) (*shardpb.ListShardsResponse, error) {
	return &shardpb.ListShardsResponse{Node: "b1"}, nil
}

// TestNodesOnly: services for the nodes of a site answer the certificate of the site, and no peer's.
func TestNodesOnly(t *testing.T) {
	ca := authority(t)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b"),
		Register: func(r grpc.ServiceRegistrar) { shardpb.RegisterShardsServer(r, nodeService{}) }})
	node := client(t, link.ClientOptions{Site: "site-b", TLS: certificate(t, ca, "site-b")}).NodeConn(address)
	defer node.Close()
	for range 2 {
		answer, err := shardpb.NewShardsClient(node).ListShards(timeout(t), &shardpb.ListShardsRequest{})
		if err != nil || answer.GetNode() != "b1" {
			t.Fatalf("a node of the site: %v, %v", answer, err)
		}
	}

	peer, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(credentials.NewTLS(certificate(t, ca, "site-a").ClientConfig("site-b"))))
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	_, err = shardpb.NewShardsClient(peer).ListShards(timeout(t), &shardpb.ListShardsRequest{})
	if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "only nodes of the site") {
		t.Errorf("a peer: %v", err)
	}
}
