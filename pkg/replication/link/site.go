package link

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// Within a site, its gateway calls its nodes: it shows the site's own certificate, and says in each call's metadata
// which node it means and, with a stream, for which peer it is. A node believes this from an owner of the site's
// certificate, who could pose as the site to all peers anyway.
const (
	nodeMetadata = "slipstream-node"
	peerMetadata = "slipstream-peer"
)

// Node is one node of the caller's own site.
type Node struct {
	// Name is what its replicator was told as its name. A node answers to no other one: an address may come to be
	// another node's.
	Name    string
	Address string // host:port
}

// DialNode is Dial to a node of this client's own site, on behalf of the peer that has opened a stream here.
func (c *Client) DialNode(ctx context.Context, node Node, peer string) (Stream, error) {
	s, err := c.dial(ctx, target{c.opts.Site, node.Address}, nodeMetadata, node.Name, peerMetadata, peer)
	if err != nil {
		return nil, fmt.Errorf("dial node %s of this site at %s: %w", node.Name, node.Address, err)
	}
	return s, nil
}

// Locate asks a node of this client's own site whether it has a group. Errors name the node; where it is not that node
// that answers they have the code Unavailable.
func (c *Client) Locate(ctx context.Context, node Node, request *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
	response, err := c.locate(ctx, target{c.opts.Site, node.Address}, node, request)
	if err != nil {
		return nil, fmt.Errorf("node %s at %s: %w", node.Name, node.Address, err)
	}
	return response, nil
}

func (c *Client) locate(ctx context.Context, t target, node Node,
	request *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
	cc, err := c.acquire(t)
	if err != nil {
		return nil, err
	}
	defer c.closeUnused(t, cc)
	response, err := linkpb.NewLinkClient(cc).Locate(c.outgoing(ctx, nodeMetadata, node.Name), request)
	if err == nil && response.GetNode() != node.Name {
		err = status.Errorf(codes.Unavailable, "node %s answers there", response.GetNode())
	}
	return response, err
}

// NodeConn is a connection to another node of this client's own site, for services that a Server has by Register. It is
// kept until Close. Its methods are safe for concurrent use.
type NodeConn struct {
	client  *Client
	address string

	mu     sync.Mutex
	conn   *conn
	closed bool
}

// NodeConn returns a connection to a node at host:port, which is made with the first call.
func (c *Client) NodeConn(address string) *NodeConn { return &NodeConn{client: c, address: address} }

// Invoke implements grpc.ClientConnInterface. After a call that could not reach the node the next one connects anew, at
// once: no state of a failure is kept.
func (n *NodeConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	cc, err := n.use()
	if err != nil {
		return err
	}
	err = cc.Invoke(n.client.outgoing(ctx), method, args, reply, opts...)
	if status.Code(err) == codes.Unavailable {
		n.drop(cc)
	}
	return err
}

// NewStream implements grpc.ClientConnInterface. Nodes have no streams.
func (n *NodeConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, status.Error(codes.Unimplemented, "no streams between the nodes of a site")
}

func (n *NodeConn) use() (*conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, ErrClosed
	}
	if n.conn == nil {
		cc, err := n.client.acquire(target{n.client.opts.Site, n.address})
		if err != nil {
			return nil, err
		}
		n.conn = cc
	}
	return n.conn, nil
}

func (n *NodeConn) drop(cc *conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == cc && cc != nil {
		n.conn = nil
		n.client.closeUnused(target{n.client.opts.Site, n.address}, cc)
	}
}

// Close ends the connection.
func (n *NodeConn) Close() {
	n.mu.Lock()
	cc := n.conn
	n.closed = true
	n.mu.Unlock()
	n.drop(cc)
}

// admitNode lets only nodes of the site itself call the services that were registered for them.
func (s *Server) admitNode(ctx context.Context, request any, info *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	if info.FullMethod == linkpb.Link_Locate_FullMethodName { // admits for itself
		return handler(ctx, request)
	}
	name, remote, err := s.caller(ctx)
	if err == nil && name != s.opts.Site {
		err = errors.New("only nodes of the site itself may call this")
	}
	if err == nil {
		err = tcplisten.Admit(ctx)
	}
	if err != nil {
		return nil, s.refuse(remote, name, err)
	}
	return handler(ctx, request)
}

// Locate is for the gateway alone.
func (v *service) Locate(ctx context.Context, request *linkpb.LocateRequest) (*linkpb.LocateResponse, error) {
	s := v.server
	if s.opts.Locate == nil {
		return nil, status.Errorf(codes.Unimplemented, "this process of site %s has no groups", s.opts.Site)
	}
	name, remote, err := s.caller(ctx)
	if err == nil && name != s.opts.Site {
		err = errors.New("only the site itself may ask its nodes for groups")
	}
	if err == nil {
		err = s.checkNode(ctx)
	}
	if err == nil {
		err = tcplisten.Admit(ctx)
	}
	if err != nil {
		return nil, s.refuse(remote, name, err)
	}
	response, err := s.opts.Locate(request)
	if err != nil {
		return nil, status.Errorf(codes.Unavailable, "node %s: %v", s.opts.Node, err)
	}
	response.Node = s.opts.Node
	return response, nil
}

// errOtherNode is a call that was meant for a node that had this address before.
var errOtherNode = errors.New("the call is for another node")

func (s *Server) checkNode(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if meant := md.Get(nodeMetadata); len(meant) != 1 || meant[0] != s.opts.Node {
		return fmt.Errorf("%w: this is node %s of site %s, and %q is wanted", errOtherNode, s.opts.Node, s.opts.Site, meant)
	}
	return nil
}

// onBehalf is the peer that a stream with the site's own certificate is for.
func (s *Server) onBehalf(ctx context.Context) (string, error) {
	if err := s.checkNode(ctx); err != nil {
		return s.opts.Site, err
	}
	md, _ := metadata.FromIncomingContext(ctx)
	peers := md.Get(peerMetadata)
	if len(peers) != 1 || !slices.Contains(s.opts.Peers(), peers[0]) {
		return s.opts.Site, fmt.Errorf("it is for %q, not for one of this site's peers", peers)
	}
	return peers[0], nil
}
