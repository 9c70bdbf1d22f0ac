package link

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// pipeMessages is how many messages are in flight in each direction before Send waits.
const pipeMessages = 16

// errCut is what both ends of a stream in memory see after a cut, the status that a broken connection gives.
var errCut = status.Error(codes.Unavailable, "link cut")

// Pipe returns the two ends of a stream in memory, with the contract of the real ones: messages are copied, Send waits
// when 16 are in flight. cut breaks it at once: what has not been received by then is lost, both sides' Send and Recv
// fail, and the PeerStream's context is done. cut may be called at any time, more than once, and after Close.
//
// The peer's name is empty; Network gives names.
func Pipe() (s Stream, p PeerStream, cut func()) {
	pp := newPipe("")
	return pp, (*pipePeer)(pp), func() { pp.cut(nil) }
}

// pipe is the primary's end; pipePeer is the same thing seen from the other.
type pipe struct {
	peerName    string // the dialing site
	toSecondary *queue[*linkpb.ToSecondary]
	toPrimary   *queue[*linkpb.ToPrimary]
	ctx         context.Context // the peer's
	cancel      context.CancelFunc
	closed      atomic.Bool
}

type pipePeer pipe

func newPipe(peerName string) *pipe {
	p := &pipe{peerName: peerName, toSecondary: newQueue[*linkpb.ToSecondary](), toPrimary: newQueue[*linkpb.ToPrimary]()}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// cut ends the stream; keep, if not nil, says for each direction how many of its messages in flight still arrive.
func (p *pipe) cut(keep func(inFlight int) int) {
	p.toSecondary.end(errCut, keep)
	p.toPrimary.end(errCut, keep)
	p.cancel()
}

// finish is the handler's return: what it sent arrives, then err does.
func (p *pipe) finish(err error) {
	switch {
	case err == nil:
		err = io.EOF
	default:
		err = status.Convert(err).Err() // as it arrives over the network
	}
	p.toPrimary.end(err, func(n int) int { return n })
	// A Send to a stream that the peer ended says io.EOF, whatever the reason; Recv has that.
	p.toSecondary.end(io.EOF, nil)
	p.cancel()
}

func (p *pipe) Send(m *linkpb.ToSecondary) error {
	err := p.toSecondary.send(proto.CloneOf(m))
	switch {
	case p.closed.Load() && err != nil:
		return ErrClosed
	case err != nil:
		return io.EOF
	}
	return nil
}

func (p *pipe) Recv() (*linkpb.ToPrimary, error) {
	m, err := p.toPrimary.recv()
	if p.closed.Load() {
		return nil, ErrClosed
	}
	return m, err
}

func (p *pipe) Close() error {
	if !p.closed.Swap(true) {
		p.toSecondary.end(io.EOF, func(n int) int { return n })
		p.toPrimary.end(ErrClosed, nil)
	}
	return nil
}

func (p *pipePeer) Peer() string { return p.peerName }

func (p *pipePeer) Context() context.Context { return p.ctx }

func (p *pipePeer) Send(m *linkpb.ToPrimary) error {
	if err := p.toPrimary.send(proto.CloneOf(m)); errors.Is(err, ErrClosed) {
		return status.Error(codes.Canceled, "the peer closed the stream")
	} else if err != nil {
		return err
	}
	return nil
}

func (p *pipePeer) Recv() (*linkpb.ToSecondary, error) {
	m, err := p.toSecondary.recv()
	if err != nil {
		p.cancel() // a handler that waits for the context instead of receiving on
	}
	return m, err
}

// queue is one direction.
type queue[T any] struct {
	mu      sync.Mutex
	changed sync.Cond
	items   []T
	err     error // set once: no more is sent, and what recv says behind the last item
}

func newQueue[T any]() *queue[T] {
	q := &queue[T]{}
	q.changed.L = &q.mu
	return q
}

func (q *queue[T]) send(m T) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && len(q.items) >= pipeMessages {
		q.changed.Wait()
	}
	if q.err != nil {
		return q.err
	}
	q.items = append(q.items, m)
	q.changed.Broadcast()
	return nil
}

func (q *queue[T]) recv() (m T, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && len(q.items) == 0 {
		q.changed.Wait()
	}
	if len(q.items) == 0 {
		return m, q.err
	}
	m = q.items[0]
	q.items = q.items[1:]
	q.changed.Broadcast()
	return m, nil
}

// end loses all messages in flight but the first keep(their number), nil meaning none. The first call's error stays,
// but what a later one loses is lost: a cut also hits what an orderly end had left in flight.
func (q *queue[T]) end(err error, keep func(int) int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	if keep != nil {
		n = min(max(keep(len(q.items)), 0), len(q.items))
	}
	if lost := len(q.items) - n; q.err == nil || lost > 0 && errors.Is(err, errCut) {
		q.err = err
	}
	q.items = q.items[:n]
	q.changed.Broadcast()
}
