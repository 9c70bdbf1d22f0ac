package link

import (
	"context"
	"errors"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// Stream is the primary's end of one group's stream. Send and Recv may be used by one goroutine each at the same time,
// and Close by any.
type Stream interface {
	// Send queues a message; it waits while the peer does not receive. The message may be changed once it has returned.
	// io.EOF says that the stream has ended, and Recv says why. After any error the stream is of no more use.
	Send(*linkpb.ToSecondary) error
	// Recv returns the next message, or the reason why there will be none: io.EOF when the peer's handler returned nil,
	// ErrClosed after Close, else a gRPC status.
	Recv() (*linkpb.ToPrimary, error)
	// Close ends the stream in order: what was sent before it arrives, as long as the link works and no Send is under
	// way, then the peer's Recv says io.EOF. Over the network it waits for the peer's handler to return, at most
	// 2 s. Send and Recv that are under way end. Further calls do nothing.
	Close() error
}

// PeerStream is the secondary's end. Send and Recv may be used by one goroutine each at the same time. The stream ends
// when the Handler returns.
type PeerStream interface {
	// Peer is the site's name, from its certificate.
	Peer() string
	// Context is done when the stream has ended, by a cut or by the server's Stop.
	Context() context.Context
	// Send queues a message; it waits while the peer does not receive. The message may be changed once it has returned.
	Send(*linkpb.ToPrimary) error
	// Recv returns the next message, or io.EOF when the peer closed the stream, or a gRPC status when it broke.
	Recv() (*linkpb.ToSecondary, error)
}

// Dialer opens streams. Implementations are safe for concurrent use.
type Dialer interface {
	// Dial opens a stream to the site named peer at an address (host:port) and returns when that site has accepted the
	// stream. ctx bounds the dialing only; the stream lives until Close. Errors name peer and address and wrap a gRPC
	// status: PermissionDenied and Unauthenticated will not go away by themselves, others may.
	Dial(ctx context.Context, peer, address string) (Stream, error)
}

// Handler takes the streams that peers open.
type Handler interface {
	// Replicate serves one stream, on a goroutine of its own, and ends it by returning. nil is an orderly end; an error
	// reaches the peer as a gRPC status.
	Replicate(PeerStream) error
}

// HandlerFunc is a function as a Handler.
type HandlerFunc func(PeerStream) error

// Replicate calls f.
func (f HandlerFunc) Replicate(s PeerStream) error { return f(s) }

// ErrClosed is what Send and Recv return after Close of the stream, and Dial after Close of the Client.
var ErrClosed = errors.New("link: closed")

const (
	streamWindowBytes = 8 << 20
	connWindowBytes   = 16 << 20
	// maxMessageBytes fits the largest batch and leaves room for the message around it.
	maxMessageBytes = MaxBatchBytes + 1<<20

	serverPingAfter = 3 * time.Second
	clientPingAfter = 10 * time.Second // gRPC's minimum
	// pingTimeout is also the connection's TCP_USER_TIMEOUT, which gRPC sets from it.
	pingTimeout    = 8 * time.Second
	serverPingWait = 5 * time.Second
	// connectTimeout is what TCP has to connect. A service address can lead to a pod that is gone, where nothing answers;
	// the next connection is led to another one. Long enough for two lost packets.
	connectTimeout = 5 * time.Second
	// handshakeTimeout is what a connection has for its handshake, and again until its first call was accepted.
	handshakeTimeout = 20 * time.Second
	// idleTimeout closes a connection without streams. Clients close theirs with the last one.
	idleTimeout = 5 * time.Minute
	// maxHeaderBytes bounds a call's metadata, which is a few names.
	maxHeaderBytes = 16 << 10

	closeLinger = 2 * time.Second

	// siteMetadata carries the name of the dialing site on a link without certificates.
	siteMetadata = "slipstream-site"
)
