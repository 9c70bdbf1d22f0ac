package link

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// ClientOptions says who dials.
type ClientOptions struct {
	// Site is this site's name.
	Site string
	// TLS has this site's certificate and the authority. Required unless Insecure.
	TLS *tlsfiles.Source
	// Insecure dials in plain text, loopback addresses only.
	Insecure bool
}

// Client is the Dialer over the network. Streams to the same peer and address share a connection, which is closed with
// the last of them; so a Dial when there is none tries the network at once, and no state of an earlier failure is kept.
// Its methods are safe for concurrent use.
type Client struct {
	opts   ClientOptions
	ctx    context.Context // ends all streams
	cancel context.CancelFunc

	mu    sync.Mutex
	conns map[target]*conn
}

type target struct{ peer, address string }

type conn struct {
	*grpc.ClientConn
	streams int // guarded by Client.mu; open ones and those being dialed
}

// NewClient returns a client without connections. An error says which option is wrong.
func NewClient(opts ClientOptions) (*Client, error) {
	if opts.Site == "" {
		return nil, errors.New("link client: no site name")
	}
	if (opts.TLS == nil) != opts.Insecure {
		return nil, fmt.Errorf("link client of site %s: want certificate files, or the insecure flag, and not both",
			opts.Site)
	}
	c := &Client{opts: opts, conns: map[target]*conn{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c, nil
}

// Close ends all streams at once, without order, and closes all connections. The client is of no more use.
func (c *Client) Close() error {
	c.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for t, cc := range c.conns {
		err = errors.Join(err, cc.Close())
		delete(c.conns, t)
	}
	return err
}

// Dial is described at Dialer.
func (c *Client) Dial(ctx context.Context, peer, address string) (Stream, error) {
	t := target{peer, address}
	s, err := c.dial(ctx, t)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return nil, &dialError{peer, address, err}
	}
	return s, nil
}

// dialError is an error of Dial as a person reads it: without what gRPC puts in front of the reason.
type dialError struct {
	peer, address string
	err           error
}

func (e *dialError) Error() string {
	reason := e.err.Error()
	if _, after, ok := strings.Cut(reason, `desc = "transport: `); ok {
		reason = strings.TrimSuffix(after, `"`)
	}
	return fmt.Sprintf("dial site %s at %s: %s", e.peer, e.address, reason)
}

func (e *dialError) Unwrap() error { return e.err }

func (c *Client) dial(ctx context.Context, t target, pairs ...string) (Stream, error) {
	cc, err := c.acquire(t)
	if err != nil {
		return nil, err
	}
	streamCtx, cancel := context.WithCancel(c.ctx)
	end := sync.OnceFunc(func() {
		cancel()
		c.closeUnused(t, cc)
	})
	undo := context.AfterFunc(ctx, cancel)
	stream, err := linkpb.NewLinkClient(cc).Replicate(c.outgoing(streamCtx, pairs...))
	if err != nil {
		end()
		return nil, err
	}
	md, err := stream.Header()
	if err == nil && md == nil {
		// Ended without a header: the status says why.
		if _, err = stream.Recv(); err == nil || errors.Is(err, io.EOF) {
			err = errors.New("the peer ended the stream before accepting it")
		}
	}
	if err == nil && !undo() {
		err = context.Cause(ctx) // too late: the stream is canceled already
	}
	if err != nil {
		end()
		return nil, err
	}
	return &clientStream{stream: stream, cancel: cancel, end: end}, nil
}

// outgoing adds to a call's metadata who calls, where no certificate says it.
func (c *Client) outgoing(ctx context.Context, pairs ...string) context.Context {
	if c.opts.Insecure {
		pairs = append(pairs, siteMetadata, c.opts.Site)
	}
	return metadata.AppendToOutgoingContext(ctx, pairs...)
}

func (c *Client) acquire(t target) (*conn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return nil, ErrClosed
	}
	cc := c.conns[t]
	if cc == nil {
		gc, err := c.connect(t)
		if err != nil {
			return nil, err
		}
		cc = &conn{ClientConn: gc}
		c.conns[t] = cc
	}
	cc.streams++
	return cc, nil
}

func (c *Client) closeUnused(t target, cc *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cc.streams--; cc.streams == 0 && c.conns[t] == cc {
		delete(c.conns, t)
		_ = cc.Close() // nothing is open on it
	}
}

func (c *Client) connect(t target) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	dialer := &net.Dialer{Timeout: connectTimeout}
	if c.opts.Insecure {
		// Control sees the address after the name was resolved, before anything is sent.
		dialer.Control = func(_, address string, _ syscall.RawConn) error {
			if a, err := net.ResolveTCPAddr("tcp", address); err != nil || !a.IP.IsLoopback() {
				return fmt.Errorf(
					"plain text to %s refused: it is allowed on loopback addresses only; configure certificates", address)
			}
			return nil
		}
	} else {
		// Checked by the handshake as well, for which gRPC would connect again and again.
		if err := c.opts.TLS.Err(); err != nil {
			return nil, fmt.Errorf("this site's own certificate: %w", err)
		}
		creds = credentials.NewTLS(c.opts.TLS.ClientConfig(t.peer))
	}
	return grpc.NewClient("passthrough:///"+t.address,
		grpc.WithTransportCredentials(creds),
		// A dialer of our own also keeps gRPC from HTTP proxies that the environment names for other purposes.
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", address)
		}),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: clientPingAfter, Timeout: pingTimeout}),
		grpc.WithDisableServiceConfig(),
		grpc.WithDisableRetry(), // it would keep a copy of what was sent
	)
}

// clientStream adds an orderly Close to gRPC's stream, which itself allows neither CloseSend beside Send nor two Recv.
type clientStream struct {
	stream grpc.BidiStreamingClient[linkpb.ToSecondary, linkpb.ToPrimary]
	cancel context.CancelFunc
	end    func() // cancel, and give the connection back; once

	closed atomic.Bool
	sendMu sync.Mutex
	recvMu sync.Mutex
	failed error // guarded by recvMu: what Recv ended with
}

func (s *clientStream) Send(m *linkpb.ToSecondary) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if s.closed.Load() {
		return ErrClosed
	}
	return s.stream.Send(m)
}

func (s *clientStream) Recv() (*linkpb.ToPrimary, error) {
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	m, err := s.recvLocked()
	if s.closed.Load() {
		return nil, ErrClosed
	}
	return m, err
}

func (s *clientStream) recvLocked() (*linkpb.ToPrimary, error) {
	if s.failed != nil {
		return nil, s.failed
	}
	m, err := s.stream.Recv()
	s.failed = err
	return m, err
}

func (s *clientStream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	defer s.end()
	if !s.sendMu.TryLock() {
		// A Send waits for a peer that does not receive: there is no order left to keep.
		s.cancel()
		return nil
	}
	err := s.stream.CloseSend()
	s.sendMu.Unlock()
	timer := time.AfterFunc(closeLinger, s.cancel)
	defer timer.Stop()
	s.recvMu.Lock()
	defer s.recvMu.Unlock()
	for s.failed == nil {
		_, _ = s.recvLocked()
	}
	return err
}
