package replication

import (
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// sayHello opens a stream as a site and says Hello on it. The stream is closed at the end of the test at the latest.
func sayHello(t *testing.T, net *link.Network, from, to string, hello *linkpb.Hello) link.Stream {
	t.Helper()
	stream, err := net.Dialer(from).Dial(t.Context(), to, "memory")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: hello}}); err != nil {
		t.Fatal(err)
	}
	return stream
}

// call makes a call as a site and returns the answer and what the stream ended with.
func call(t *testing.T, net *link.Network, from, to string, hello *linkpb.Hello) (*linkpb.ToPrimary, error) {
	t.Helper()
	stream := sayHello(t, net, from, to, hello)
	defer stream.Close()
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	_, err = stream.Recv()
	return answer, err
}

// answerTo makes a call as a site and returns the answer, and hangs up.
func answerTo(t *testing.T, net *link.Network, from, to string, hello *linkpb.Hello) *linkpb.ToPrimary {
	t.Helper()
	stream := sayHello(t, net, from, to, hello)
	defer stream.Close()
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return answer
}
