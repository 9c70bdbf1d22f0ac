package kubesite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Conn is one connection to all nodes of a site. A call goes to the node that has its group, which is asked for before
// each one: a list of groups is every node's, and a group that no node has is made on the chosen node.
type Conn struct {
	nodes []connected
	// away are nodes that could not be asked, when that is known: a group that is not found may be theirs.
	away []error
	warn func(format string, args ...any)
}

// connected is a node with its connection.
type connected struct {
	Node
	conn *grpc.ClientConn
}

// Connect prepares connections to all nodes, or, if node is not empty, to that one. Nodes that do not run are told by
// warn.
func (c *Cluster) Connect(ctx context.Context, node string, warn func(format string, args ...any)) (*Conn, error) {
	nodes, away, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	if node != "" {
		nodes = slices.DeleteFunc(nodes, func(n Node) bool { return n.Name != node })
		if len(nodes) == 0 {
			return nil, errors.Join(append([]error{fmt.Errorf("no replicator runs on node %s", node)}, away...)...)
		}
		away = nil
	}
	if len(nodes) == 0 {
		return nil, errors.Join(append([]error{errNoNode}, away...)...)
	}
	conn := &Conn{away: away, warn: warn}
	for _, err := range away {
		warn("%v", err)
	}
	for _, n := range nodes {
		// The target's name is only for messages; the dialer knows the pod.
		client, err := grpc.NewClient("passthrough:///"+n.Pod,
			append(sidecarclient.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return c.dial(n.Pod) }))...)
		if err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		conn.nodes = append(conn.nodes, connected{n, client})
	}
	return conn, nil
}

// Close ends all connections.
func (c *Conn) Close() error {
	var errs []error
	for _, n := range c.nodes {
		errs = append(errs, n.conn.Close())
	}
	return errors.Join(errs...)
}

// NodeOf returns the name of the node that has a group.
func (c *Conn) NodeOf(ctx context.Context, group string) (string, error) {
	n, err := c.find(ctx, group)
	return n.Name, err
}

// Invoke implements grpc.ClientConnInterface.
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if request, ok := args.(*sidecarpb.ListGroupsRequest); ok {
		response, err := c.list(ctx, request)
		if err == nil {
			reply.(*sidecarpb.ListGroupsResponse).Groups = response
		}
		return err
	}
	if request, ok := args.(*sidecarpb.ListTailsRequest); ok && request.GetGroup() == "" {
		response, err := c.tails(ctx, request)
		if err == nil {
			reply.(*sidecarpb.ListTailsResponse).Tails = response
		}
		return err
	}
	n, err := c.route(ctx, args)
	if err != nil {
		return err
	}
	return n.conn.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements grpc.ClientConnInterface. Which node it is for is known with the first message.
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return &lateStream{conn: c, open: func(n connected) (grpc.ClientStream, error) {
		return n.conn.NewStream(ctx, desc, method, opts...)
	}, ctx: ctx}, nil
}

// route is the node that a request is for.
func (c *Conn) route(ctx context.Context, request any) (connected, error) {
	group := ""
	switch r := request.(type) {
	case interface{ GetGroup() string }:
		group = r.GetGroup()
	case interface{ GetName() string }:
		group = r.GetName()
	}
	if group == "" && len(c.nodes) == 1 && len(c.away) == 0 {
		return c.nodes[0], nil
	}
	if group == "" {
		return connected{}, status.Errorf(codes.Unimplemented, "%T names no group: name the node with --node",
			request)
	}
	n, err := c.find(ctx, group)
	if _, creates := request.(*sidecarpb.CreateGroupRequest); !creates || status.Code(err) != codes.NotFound {
		return n, err
	}
	if len(c.nodes) > 1 {
		return n, status.Errorf(codes.InvalidArgument,
			"group %q has to be made on one of the nodes %s: name it with --node", group, c.names())
	}
	return c.nodes[0], nil
}

// find asks all nodes for a group.
func (c *Conn) find(ctx context.Context, group string) (connected, error) {
	var found []connected
	failed := slices.Clone(c.away)
	for _, n := range c.nodes {
		response, err := sidecarpb.NewSidecarClient(n.conn).ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
		if err != nil {
			failed = append(failed, fmt.Errorf("node %s: %w", n.Name, err))
			continue
		}
		if slices.ContainsFunc(response.GetGroups(), func(g *sidecarpb.GroupStatus) bool { return g.GetName() == group }) {
			found = append(found, n)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return found[0], status.Errorf(codes.FailedPrecondition,
			"there is a group %q on each of the nodes %s: choose one with --node", group, names(found))
	case len(failed) > 0:
		return connected{}, status.Errorf(codes.Unavailable, "group %q is on no node that answers, and not all do: %v",
			group, errors.Join(failed...))
	}
	return connected{}, status.Errorf(codes.NotFound, "there is no group %q on any node of this site (%s)", group,
		c.names())
}

// list asks all nodes for their groups.
func (c *Conn) list(ctx context.Context, request *sidecarpb.ListGroupsRequest) ([]*sidecarpb.GroupStatus, error) {
	return ofAll(c, func(client sidecarpb.SidecarClient) ([]*sidecarpb.GroupStatus, error) {
		response, err := client.ListGroups(ctx, request)
		return response.GetGroups(), err
	}, (*sidecarpb.GroupStatus).GetName)
}

// tails asks all nodes for their tails.
func (c *Conn) tails(ctx context.Context, request *sidecarpb.ListTailsRequest) ([]*sidecarpb.Tail, error) {
	return ofAll(c, func(client sidecarpb.SidecarClient) ([]*sidecarpb.Tail, error) {
		response, err := client.ListTails(ctx, request)
		return response.GetTails(), err
	}, (*sidecarpb.Tail).GetGroup)
}

// ofAll asks all nodes, and sorts what they have. One that does not answer is told by warn, unless none does.
func ofAll[T any](c *Conn, ask func(sidecarpb.SidecarClient) ([]T, error), key func(T) string) ([]T, error) {
	var all []T
	var failed []error
	for _, n := range c.nodes {
		some, err := ask(sidecarpb.NewSidecarClient(n.conn))
		switch {
		case err == nil:
			all = append(all, some...)
		case status.Code(err) != codes.NotFound:
			failed = append(failed, fmt.Errorf("node %s: %w", n.Name, err))
		}
	}
	if len(failed) == len(c.nodes) {
		return nil, status.Errorf(codes.Unavailable, "%v", errors.Join(failed...))
	}
	for _, err := range failed {
		c.warn("%v", err)
	}
	slices.SortStableFunc(all, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	return all, nil
}

func (c *Conn) names() string { return names(c.nodes) }

func names(nodes []connected) string {
	var list []string
	for _, n := range nodes {
		list = append(list, n.Name)
	}
	return strings.Join(list, ", ")
}

// lateStream is a stream from the server that is opened when the request is sent.
type lateStream struct {
	grpc.ClientStream // nil until then
	ctx               context.Context
	conn              *Conn
	open              func(connected) (grpc.ClientStream, error)
}

// Context implements grpc.ClientStream.
func (s *lateStream) Context() context.Context { return s.ctx }

// SendMsg implements grpc.ClientStream.
func (s *lateStream) SendMsg(request any) error {
	if s.ClientStream == nil {
		n, err := s.conn.route(s.ctx, request)
		if err != nil {
			return err
		}
		if s.ClientStream, err = s.open(n); err != nil {
			return err
		}
	}
	return s.ClientStream.SendMsg(request)
}
