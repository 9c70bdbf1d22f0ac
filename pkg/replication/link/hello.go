package link

import (
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// helloTimeout is how long a peer that opened a stream may take to say which group it is about.
const helloTimeout = 20 * time.Second

// MaxHelloBytes bounds a Hello: it has room for core.MaxTimelines timelines. The first message of a stream arrives
// before the stream belongs to a group, and it is the one that is passed on and logged.
const MaxHelloBytes = 512 << 10

// maxIDBytes bounds the group's identifier in a Hello, which is a UUID.
const maxIDBytes = 64

// checkHello says what is wrong with a Hello that is logged or passed on. The handler checks what it says about its
// group.
func checkHello(hello *linkpb.Hello) error {
	if n := proto.Size(hello); n > MaxHelloBytes {
		return fmt.Errorf("a Hello of %d bytes, the limit is %d", n, MaxHelloBytes)
	}
	if err := untrusted.CheckText("group id", hello.GetGroupId(), maxIDBytes); err != nil {
		return err
	}
	return untrusted.CheckText("group name", hello.GetGroupName(), untrusted.MaxNameBytes)
}

// ReceiveHello returns the first message of a stream. Errors have a gRPC status: InvalidArgument for another message,
// and for a Hello that is too large or has names that cannot be shown; DeadlineExceeded for none within 20 s. The
// handler returns with the error then; Recv is still under way.
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
			if err := checkHello(hello); err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "%s began with %v", stream.Peer(), err)
			}
			return hello, nil
		}
		return nil, status.Errorf(codes.InvalidArgument, "%s began with %T instead of Hello", stream.Peer(),
			r.message.GetMessage())
	case <-t.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "%s opened a stream and said nothing for %v", stream.Peer(),
			timeout)
	}
}
