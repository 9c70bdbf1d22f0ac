package slipctl

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// What slipctl runs in a pod carries a gRPC connection over its standard input and output, and ends with the other
// side.
func TestConnectCommand(t *testing.T) {
	dir, err := os.MkdirTemp("", "ctl") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	stop, err := serveFake(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	near, far := net.Pipe()
	c := &cli{&frame.CLI{Stdin: far, Out: far, Err: io.Discard, Sidecar: "unix://" + socket}}
	ended := make(chan error, 1)
	go func() {
		cmd := c.connectCommand()
		cmd.SetArgs([]string{})
		cmd.SetContext(t.Context())
		ended <- cmd.Execute()
	}()
	conn, err := grpc.NewClient("passthrough:///pod", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return near, nil }))
	if err != nil {
		t.Fatal(err)
	}
	list, err := sidecarpb.NewSidecarClient(conn).ListGroups(t.Context(), &sidecarpb.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 2 {
		t.Errorf("%v, %v", list, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("connect ended with %v", err)
	}
}
