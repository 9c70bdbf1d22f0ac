package link

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// helloTimeout is how long a peer that opened a stream may take to say which group it is about.
const helloTimeout = 20 * time.Second

// ReceiveHello returns the first message of a stream. Errors have a gRPC status: InvalidArgument for another message,
// DeadlineExceeded for none within 20 s. The handler returns with the error then; Recv is still under way.
func ReceiveHello(stream PeerStream) (*linkpb.Hello, error) {
	return receiveHello(stream, helloTimeout)
}

func receiveHello(stream PeerStream, timeout time.Duration) (*linkpb.Hello, error) {
	type result struct {
		message *linkpb.ToSecondary
		err     error
	}
	received := make(chan result, 1)
	go func() { // ends with the stream at the latest
		m, err := stream.Recv()
		received <- result{m, err}
	}()
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case r := <-received:
		if r.err != nil {
			return nil, r.err
		}
		if hello := r.message.GetHello(); hello != nil {
			return hello, nil
		}
		return nil, status.Errorf(codes.InvalidArgument, "%s began with %T instead of Hello", stream.Peer(), r.message.GetMessage())
	case <-t.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "%s opened a stream and said nothing for %v", stream.Peer(), timeout)
	}
}
