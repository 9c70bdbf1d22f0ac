package link_test

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// TestOwnSite: only the site's own certificate may ask a node for groups or open streams for peers, only for the node
// that is meant, and only for peers.
func TestOwnSite(t *testing.T) {
	ca := authority(t)
	asked := 0
	names := make(chan string, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", Node: "b1", TLS: certificate(t, ca, "site-b"),
		Locate: func(r *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
			asked++
			if r.GetGroupName() == "broken" {
				return nil, errors.New("the disk is on fire")
			}
			return &linkpb.LocateResponse{Holds: true, TotalBytes: 42}, nil
		},
		Handler: link.HandlerFunc(func(s link.PeerStream) error {
			names <- s.Peer()
			return echo(s)
		})})
	gateway := client(t, link.ClientOptions{Site: "site-b", TLS: certificate(t, ca, "site-b")})
	node := link.Node{Name: "b1", Address: address}
	response, err := gateway.Locate(timeout(t), node, &linkpb.LocateRequest{GroupName: "g"})
	if err != nil || !response.GetHolds() || response.GetTotalBytes() != 42 || response.GetNode() != "b1" {
		t.Errorf("Locate: %v, %v", response, err)
	}
	stream, err := gateway.DialNode(timeout(t), node, "site-c")
	if err != nil {
		t.Fatal(err)
	}
	if name := <-names; name != "site-c" {
		t.Errorf("the handler sees peer %s", name)
	}
	converse(t, stream, 3)
	if err := stream.Close(); err != nil {
		t.Error(err)
	}
	// A peer's own streams come as before.
	direct, err := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")}).Dial(timeout(t),
		"site-b", address)
	if err != nil {
		t.Fatal(err)
	}
	if name := <-names; name != "site-a" {
		t.Errorf("the handler sees peer %s", name)
	}
	direct.Close()

	asked = 0
	peer := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
	plain, _ := serve(t, link.ServerOptions{Site: "site-b", TLS: certificate(t, ca, "site-b")})
	for what, tc := range map[string]struct {
		call func() error
		code codes.Code
		want string
	}{
		"a node that is not there any more": {func() error {
			_, err := gateway.Locate(timeout(t), link.Node{Name: "b2", Address: address}, &linkpb.LocateRequest{})
			return err
		}, codes.Unavailable, "this is node b1"},
		"a stream for it": {func() error {
			_, err := gateway.DialNode(timeout(t), link.Node{Name: "b2", Address: address}, "site-c")
			return err
		}, codes.Unavailable, "this is node b1"},
		"a stream for a stranger": {func() error {
			_, err := gateway.DialNode(timeout(t), node, "site-x")
			return err
		}, codes.PermissionDenied, "site-x"},
		"a stream for the site": {func() error {
			_, err := gateway.DialNode(timeout(t), node, "site-b")
			return err
		}, codes.PermissionDenied, "site-b"},
		"a stream for no peer": {func() error {
			_, err := gateway.Dial(timeout(t), "site-b", address)
			return err
		}, codes.Unavailable, "is wanted"},
		"a node with a problem": {func() error {
			_, err := gateway.Locate(timeout(t), node, &linkpb.LocateRequest{GroupName: "broken"})
			return err
		}, codes.Unavailable, "on fire"},
		"a site without a gateway": {func() error {
			_, err := gateway.DialNode(timeout(t), link.Node{Name: "b1", Address: plain}, "site-c")
			return err
		},
			codes.PermissionDenied, "site-b"},
		"Locate at such a site": {func() error {
			_, err := gateway.Locate(timeout(t), link.Node{Name: "b1", Address: plain}, &linkpb.LocateRequest{})
			return err
		}, codes.Unimplemented, "no groups"},
		"a peer that asks": {func() error {
			return peer.LocateAs(timeout(t), "site-b", node)
		}, codes.PermissionDenied, "only the site itself"},
	} {
		if err := tc.call(); status.Code(err) != tc.code || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want %v with %q", what, err, tc.code, tc.want)
		}
	}
	if asked != 1 { // the one with the problem
		t.Errorf("%d questions came through", asked)
	}
}

// TestPeerCannotForge: what a peer says in metadata about whom it calls for is not listened to.
func TestPeerCannotForge(t *testing.T) {
	ca := authority(t)
	names := make(chan string, 1)
	address, _ := serve(t, link.ServerOptions{Site: "site-b", Node: "b1", TLS: certificate(t, ca, "site-b"),
		Locate:  func(*linkpb.LocateRequest) (*linkpb.LocateResponse, error) { return &linkpb.LocateResponse{}, nil },
		Handler: link.HandlerFunc(func(s link.PeerStream) error { names <- s.Peer(); return echo(s) })})
	peer := client(t, link.ClientOptions{Site: "site-a", TLS: certificate(t, ca, "site-a")})
	stream, err := peer.DialAs(timeout(t), "site-b", link.Node{Name: "b1", Address: address}, "site-c")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if name := <-names; name != "site-a" {
		t.Errorf("site-a passes as %s", name)
	}
}
