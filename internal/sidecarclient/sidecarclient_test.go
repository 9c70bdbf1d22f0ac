package sidecarclient

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

// hostile is a replicator that hands on whatever a peer sent.
type hostile struct {
	sidecarpb.UnimplementedSidecarServer
}

const control = "\x1b]0;owned\a\n"

func (hostile) ListGroups(context.Context, *sidecarpb.ListGroupsRequest) (*sidecarpb.ListGroupsResponse, error) {
	groups := []*sidecarpb.GroupStatus{
		{Name: "bad", StateReason: strings.Repeat("x", 5<<20)}, // larger than gRPC's own bound
		{Name: control, Volumes: []*sidecarpb.VolumeStatus{{VolumeId: control}}, Loss: &sidecarpb.LossReport{Text: control}},
		{Name: "good", StateReason: "none"},
	}
	return &sidecarpb.ListGroupsResponse{Groups: groups}, nil
}

func (hostile) WatchGroup(_ *sidecarpb.WatchGroupRequest, s grpc.ServerStreamingServer[sidecarpb.GroupStatus]) error {
	return s.Send(&sidecarpb.GroupStatus{StateReason: control})
}

func (hostile) Demote(context.Context, *sidecarpb.DemoteRequest) (*sidecarpb.DemoteResponse, error) {
	return nil, status.Error(codes.FailedPrecondition, control)
}

// One group with an enormous or hostile text does not hide the others, and nothing of it reaches a terminal as it is.
func TestHostileTexts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	sidecarpb.RegisterSidecarServer(server, hostile{})
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()
	conn, err := grpc.NewClient("unix://"+path, append(DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := sidecarpb.NewSidecarClient(conn)
	printable := func(texts ...string) {
		t.Helper()
		for _, s := range texts {
			if len(s) > maxTextBytes || untrusted.Escape(s, maxTextBytes) != s {
				t.Errorf("%d bytes come through: %.100q", len(s), s)
			}
		}
	}

	list, err := client.ListGroups(t.Context(), &sidecarpb.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 3 {
		t.Fatalf("%d groups, %.300v", len(list.GetGroups()), err)
	}
	bad, odd, good := list.Groups[0], list.Groups[1], list.Groups[2]
	printable(bad.StateReason, odd.Name, odd.Volumes[0].VolumeId, odd.Loss.Text)
	if bad.Name != "bad" || good.StateReason != "none" || !strings.Contains(odd.Name, "owned") {
		t.Errorf("%.300v", list)
	}
	stream, err := client.WatchGroup(t.Context(), &sidecarpb.WatchGroupRequest{})
	if err != nil {
		t.Fatal(err)
	}
	watched, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	printable(watched.StateReason)
	_, err = client.Demote(t.Context(), &sidecarpb.DemoteRequest{})
	printable(status.Convert(err).Message())
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("%v", err)
	}
}
