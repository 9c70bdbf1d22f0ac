package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/lograte"
	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// ServerOptions says who listens, and to whom.
type ServerOptions struct {
	// Site is this site's name.
	Site string
	// TLS has this site's certificate and the authority. Required unless Insecure.
	TLS *tlsfiles.Source
	// Insecure listens in plain text, on loopback addresses only, and believes the names that peers give.
	Insecure bool
	// Peers returns the names of the sites that may open streams. It is called for each stream.
	Peers func() []string
	// Handler takes accepted streams.
	Handler Handler
	// Locate, if set, answers the site's own gateway, for which Node is this node's name; streams may then also come
	// through the gateway. Whether and where another node has a group is not its business.
	Locate func(*linkpb.LocateRequest) (*linkpb.LocateResponse, error)
	Node   string
	// Register, if set, adds services that the other nodes of this site may call, and no other caller.
	Register func(grpc.ServiceRegistrar)
	// MaxStreams is how many streams one peer may have open; 0 is DefaultMaxStreams.
	MaxStreams int
	// Observe, if set, is told of each stream, and of each connection refused. It must not block.
	Observe func(Event)
}

// Event is something that happened to a stream that a peer opened or wanted to.
type Event struct {
	Kind EventKind
	// Peer is the site's name, empty where it is not known.
	Peer string
	// RemoteAddress is where the connection comes from.
	RemoteAddress string
	// Err is the reason of a refusal, or what the handler returned.
	Err error
}

// EventKind is what an Event is about.
type EventKind int

// The kinds of events.
const (
	StreamOpened EventKind = iota + 1
	StreamClosed
	Refused
)

// Server accepts streams. Its methods are safe for concurrent use.
type Server struct {
	opts    ServerOptions
	grpc    *grpc.Server
	log     lograte.Log // of refusals
	streams *streams
}

// NewServer returns a server that does not listen yet. An error says which option is wrong.
func NewServer(opts ServerOptions) (*Server, error) {
	switch {
	case opts.Site == "":
		return nil, errors.New("link server: no site name")
	case opts.Handler == nil || opts.Peers == nil:
		return nil, fmt.Errorf("link server of site %s: no handler or no peers", opts.Site)
	case (opts.TLS == nil) != opts.Insecure:
		return nil, fmt.Errorf("link server of site %s: want certificate files, or the insecure flag, and not both",
			opts.Site)
	}
	if opts.Observe == nil {
		opts.Observe = func(Event) {}
	}
	if opts.MaxStreams <= 0 {
		opts.MaxStreams = DefaultMaxStreams
	}
	s := &Server{streams: newStreams(opts.MaxStreams), opts: opts}
	creds := insecure.NewCredentials()
	if !opts.Insecure {
		creds = credentials.NewTLS(opts.TLS.ServerConfig())
	}
	s.grpc = grpc.NewServer(
		grpc.Creds(tcplisten.Watch{TransportCredentials: creds, Shaken: s.shaken}),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxSendMsgSize(maxMessageBytes),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPingAfter, Timeout: serverPingWait,
			MaxConnectionIdle: idleTimeout}),
		// Twice as often as our clients ping, so that a timer that is a little early is no offence.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: clientPingAfter / 2, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.admitNode),
	)
	linkpb.RegisterLinkServer(s.grpc, &service{server: s})
	if opts.Register != nil {
		opts.Register(s.grpc)
	}
	return s, nil
}

// Serve accepts connections until Stop, which makes it return nil, and closes lis. An insecure server refuses a
// listener that is not on a loopback address. What callers can take before they are known is bounded as in package
// tcplisten: a connection has 20 s for its handshake and its first call.
func (s *Server) Serve(lis net.Listener) error {
	if s.opts.Insecure && !isLoopback(lis.Addr()) {
		_ = lis.Close()
		return fmt.Errorf("link server of site %s: plain text on %s refused: it is allowed on loopback addresses only; "+
			"configure certificates", s.opts.Site, lis.Addr())
	}
	err := s.grpc.Serve(tcplisten.New(lis, tcplisten.Options{Port: "link", Patience: handshakeTimeout,
		UserTimeout: serverPingWait}))
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Stop closes all connections, ends all streams and returns when their handlers have.
func (s *Server) Stop() { s.grpc.Stop() }

// refuse tells of a refusal and returns what the caller gets, which repeats only what it said of itself; this site's
// other peers are not its business.
func (s *Server) refuse(remote net.Addr, name string, reason error) error {
	s.refused(remote, name, reason)
	code := codes.PermissionDenied
	switch {
	case errors.Is(reason, errOtherNode):
		code = codes.Unavailable
	case errors.Is(reason, tcplisten.ErrFull), errors.Is(reason, errTooMany):
		code = codes.ResourceExhausted
	}
	return status.Errorf(code, "site %s refused the call: %v", s.opts.Site, reason)
}

func (s *Server) refused(remote net.Addr, name string, reason error) {
	s.log.Error(reason, "Refused a peer", "site", s.opts.Site, "peer", name, "remoteAddress", remote)
	s.opts.Observe(Event{Kind: Refused, Peer: name, RemoteAddress: fmt.Sprint(remote), Err: reason})
}

// shaken makes a failed handshake visible at the side that refused it: the other one sees a closed connection and an
// alert of one word.
func (s *Server) shaken(remote net.Addr, err error) {
	if err != nil {
		s.refused(remote, "", fmt.Errorf("TLS handshake: %w", err))
	}
}

// service is the gRPC face of Server, kept apart so that Server's methods are its API.
type service struct {
	linkpb.UnimplementedLinkServer
	server *Server
}

// Replicate finds out who calls, and hands the stream on.
func (v *service) Replicate(stream grpc.BidiStreamingServer[linkpb.ToSecondary, linkpb.ToPrimary]) error {
	s := v.server
	name, remote, err := s.caller(stream.Context())
	if err == nil && name == s.opts.Site {
		name, err = s.onBehalf(stream.Context())
	}
	if err == nil {
		err = tcplisten.Admit(stream.Context())
	}
	if err != nil {
		return s.refuse(remote, name, err)
	}
	opened, err := s.streams.open(stream.Context(), name)
	if err != nil {
		return s.refuse(remote, name, err)
	}
	defer opened.close()
	// The header is the acceptance that Dial waits for.
	if err := stream.SendHeader(metadata.MD{siteMetadata: {s.opts.Site}}); err != nil {
		return err
	}
	s.opts.Observe(Event{Kind: StreamOpened, Peer: name, RemoteAddress: remote.String()})
	err = s.opts.Handler.Replicate(peerStream{stream, name, opened})
	s.opts.Observe(Event{Kind: StreamClosed, Peer: name, RemoteAddress: remote.String(), Err: err})
	return err
}

// caller returns who calls and from where.
func (s *Server) caller(ctx context.Context) (name string, remote net.Addr, err error) {
	from, _ := peer.FromContext(ctx)
	if from != nil {
		remote = from.Addr
	}
	name, err = s.identify(ctx, from)
	return name, remote, err
}

// identify returns the name of the calling site, or why it is refused and, as far as known, the name that it claims.
func (s *Server) identify(ctx context.Context, from *peer.Peer) (string, error) {
	if from == nil {
		return "", errors.New("its address is not known")
	}
	var claimed []string
	shown, _ := from.AuthInfo.(tcplisten.AuthInfo)
	if s.opts.Insecure {
		if !isLoopback(from.Addr) {
			return "", errors.New("plain text is allowed from loopback addresses only")
		}
		md, _ := metadata.FromIncomingContext(ctx)
		claimed = md.Get(siteMetadata)
		if len(claimed) != 1 {
			return "", fmt.Errorf("it gave %d site names", len(claimed))
		}
	} else {
		info, ok := shown.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.VerifiedChains) == 0 {
			return "", errors.New("it showed no certificate of the authority")
		}
		claimed = info.State.VerifiedChains[0][0].DNSNames
		if len(claimed) == 0 {
			return "", errors.New("its certificate has no DNS name; issue one with the site's name")
		}
	}
	known := s.opts.Peers()
	if s.opts.Locate != nil || s.opts.Register != nil {
		known = append(slices.Clone(known), s.opts.Site)
	}
	var matches []string
	for _, c := range claimed {
		if slices.Contains(known, c) && !slices.Contains(matches, c) {
			matches = append(matches, c)
		}
	}
	all := strings.Join(claimed, ",")
	switch {
	case len(matches) == 0:
		return all, fmt.Errorf("%q is not one of this site's peers", all)
	case len(matches) > 1:
		return all, fmt.Errorf("its certificate is for several of this site's peers, %q", matches)
	}
	return matches[0], nil
}

type peerStream struct {
	grpc.BidiStreamingServer[linkpb.ToSecondary, linkpb.ToPrimary]
	name   string
	opened *openStream
}

func (p peerStream) Peer() string { return p.name }

// Recv lets the next stream be greeted once the first message is here.
func (p peerStream) Recv() (*linkpb.ToSecondary, error) {
	m, err := p.BidiStreamingServer.Recv()
	p.opened.greeted()
	return m, err
}

func isLoopback(a net.Addr) bool {
	switch a := a.(type) {
	case *net.TCPAddr:
		return a.IP.IsLoopback()
	case *net.UnixAddr:
		return true
	}
	return false
}
