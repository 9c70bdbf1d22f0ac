package router

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	"github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// maxResponseBytes is for lists: a hundred thousand volumes.
const maxResponseBytes = 64 << 20

// node is one node and the connection to it.
type node struct {
	name    string
	address string // empty: it cannot be reached
	retired bool

	conn       *grpc.ClientConn // nil without an address
	locator    locatepb.LocatorClient
	controller csi.ControllerClient
	groups     csi.GroupControllerClient
	metadata   csi.SnapshotMetadataClient
	// Of csi-addons.
	replication  addonreplicationpb.ControllerClient
	volumeGroups addongrouppb.ControllerClient
}

func (n *node) String() string { return n.name }

// errUnreachable is what a node without an address answers.
func (n *node) errUnreachable() error {
	return status.Errorf(codes.Unavailable, "node %s: its driver has no address: see that the driver's pod runs there",
		n.name)
}

// nodeSet are the nodes that there are. It is safe for concurrent use.
type nodeSet struct {
	tls     *tlsfiles.Source
	retired map[string]bool
	meter   *meter

	mu     sync.Mutex
	known  bool // the source has spoken
	nodes  map[string]*node
	closed bool
}

func newNodeSet(tls *tlsfiles.Source, retired []string, m *meter) *nodeSet {
	s := &nodeSet{tls: tls, retired: map[string]bool{}, meter: m, nodes: map[string]*node{}}
	for _, name := range retired {
		s.retired[name] = true
	}
	return s
}

// update brings the set in line with the addresses by name. A node whose address is the same keeps its connection.
func (s *nodeSet) update(addresses map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.known = true
	next := make(map[string]*node, len(addresses))
	for name, address := range addresses {
		old := s.nodes[name]
		if old != nil && old.address == address {
			next[name] = old
			continue
		}
		n, err := s.dial(name, address)
		if err != nil {
			klog.ErrorS(err, "A node's address cannot be used", "node", name, "address", address)
			n = &node{name: name, retired: s.retired[name]}
		}
		klog.InfoS("Node", "node", name, "address", address, "retired", n.retired)
		next[name] = n
	}
	for name, old := range s.nodes {
		if next[name] != old {
			old.close()
		}
		if next[name] == nil {
			klog.InfoS("Node is gone", "node", name)
		}
	}
	s.nodes = next
}

func (n *node) close() {
	if n.conn != nil {
		_ = n.conn.Close() // only an error when it is closed already
	}
}

// Close ends all connections.
func (s *nodeSet) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		n.close()
	}
	s.nodes, s.closed = nil, true
	return nil
}

// all returns the nodes by name, or Unavailable as long as they are not known.
func (s *nodeSet) all() ([]*node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known || s.closed {
		return nil, status.Error(codes.Unavailable, "the controller does not know the cluster's nodes yet; call again")
	}
	return slices.SortedFunc(maps.Values(s.nodes), func(a, b *node) int { return strings.Compare(a.name, b.name) }), nil
}

func (s *nodeSet) dial(name, address string) (*node, error) {
	n := &node{name: name, address: address, retired: s.retired[name]}
	if address == "" {
		return n, nil
	}
	creds := countedCredentials{credentials.NewTLS(s.tls.ClientConfig(tlsfiles.NodeName)), name, s.meter}
	conn, err := grpc.NewClient("passthrough:///"+address,
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A driver that was restarted is back within seconds.
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: 2 * time.Second},
			MinConnectTimeout: 3 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second,
			PermitWithoutStream: true}),
		grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
		grpc.WithUnaryInterceptor(n.nameUnary),
		grpc.WithStreamInterceptor(n.nameStream),
	)
	if err != nil {
		return nil, err
	}
	conn.Connect()
	n.conn, n.locator = conn, locatepb.NewLocatorClient(conn)
	n.controller, n.groups = csi.NewControllerClient(conn), csi.NewGroupControllerClient(conn)
	n.metadata = csi.NewSnapshotMetadataClient(conn)
	n.replication, n.volumeGroups = addonreplicationpb.NewControllerClient(conn), addongrouppb.NewControllerClient(conn)
	return n, nil
}

// nameUnary says which node each call is for, and which one an error is from.
func (n *node) nameUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(metadata.AppendToOutgoingContext(ctx, plugin.NodeMetadata, n.name), method, req, reply, conn, opts...)
	if isAddons(method) && status.Code(err) == codes.Unimplemented {
		return n.withoutAddons(err)
	}
	return n.failure(ctx, err)
}

// failure keeps a node's own answer, and makes everything that may have cut a call short Unavailable. Messages that do
// not name the node get its name.
func (n *node) failure(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	code, message := status.Code(err), status.Convert(err).Message()
	switch {
	case ctx.Err() != nil: // the caller's own end
	case code == codes.Canceled, code == codes.DeadlineExceeded:
		code = codes.Unavailable // its connection was closed under it
	case code == codes.Unimplemented:
		code = codes.FailedPrecondition // for a sidecar it would mean never
		message += "; the node runs another version of the driver"
	}
	answer := status.Convert(err).Proto() // with its details
	answer.Code, answer.Message = int32(code), fmt.Sprintf("node %s: %s", n.name, message)
	return status.ErrorProto(answer)
}

// ready reports whether the connection is up, and starts it where nothing else would.
func (n *node) ready() bool {
	if n.conn == nil {
		return false
	}
	state := n.conn.GetState()
	if state == connectivity.Idle {
		n.conn.Connect()
	}
	return state == connectivity.Ready
}

// Describe implements prometheus.Collector.
func (s *nodeSet) Describe(ch chan<- *prometheus.Desc) { ch <- nodeUp }

var nodeUp = prometheus.NewDesc("slipstream_controller_node_up", "1 if the controller is connected to the driver "+
	"of the node. Nothing waits for a node with retired=true.",
	[]string{"node", "retired"}, nil)

// Collect implements prometheus.Collector.
func (s *nodeSet) Collect(ch chan<- prometheus.Metric) {
	nodes, err := s.all()
	if err != nil {
		return
	}
	for _, n := range nodes {
		up := 0.0
		if n.ready() {
			up = 1
		}
		ch <- prometheus.MustNewConstMetric(nodeUp, prometheus.GaugeValue, up, n.name, fmt.Sprint(n.retired))
	}
}

// countedCredentials count handshakes.
type countedCredentials struct {
	credentials.TransportCredentials
	node  string
	meter *meter
}

func (c countedCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn,
	credentials.AuthInfo, error) {
	secured, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, conn)
	result := "ok"
	if err != nil {
		result = "failed"
		var unknown x509.UnknownAuthorityError
		var invalid x509.CertificateInvalidError
		var name x509.HostnameError
		if errors.As(err, &unknown) || errors.As(err, &invalid) || errors.As(err, &name) ||
			strings.Contains(err.Error(), "certificate") {
			result = "certificate"
			klog.ErrorS(err, "A node's certificate was refused", "node", c.node, "address", conn.RemoteAddr())
		}
	}
	c.meter.handshakes.WithLabelValues(c.node, result).Inc()
	return secured, info, err
}

func (c countedCredentials) Clone() credentials.TransportCredentials {
	return countedCredentials{c.TransportCredentials.Clone(), c.node, c.meter}
}
