package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/kubernetes-csi/csi-lib-utils/metrics"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/csiserver"
	"github.com/slipstream-storage/slipstream/internal/lograte"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/tcplisten"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
	"github.com/slipstream-storage/slipstream/pkg/driver/lease"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

const (
	portHandshakeTimeout = 20 * time.Second
	portPingWait         = 20 * time.Second
	// portIdleTimeout closes a connection without calls; a controller opens the next one by itself.
	portIdleTimeout = 15 * time.Minute
	// portConnections is for the controllers of a cluster: one leader, and those that led before.
	portConnections = 64
)

// controllerPort is the TCP port for the cluster's controller and operator.
type controllerPort struct {
	d         *Driver
	source    *tlsfiles.Source
	listener  net.Listener
	handshake *prometheus.CounterVec
	log       lograte.Log // of refusals
}

// newHandshakes registers the port's metrics.
func newHandshakes(registry prometheus.Registerer, notAfter func() time.Time) *prometheus.CounterVec {
	handshakes := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "slipstream_controller_handshakes_total",
		Help: "TLS handshakes at the port for the controller, by result: ok or refused.",
	}, []string{"result"})
	registry.MustRegister(handshakes, metricsserver.CertificateExpiry(notAfter))
	return handshakes
}

func (d *Driver) openControllerPort(registry prometheus.Registerer) (*controllerPort, error) {
	source, err := tlsfiles.OpenDir(d.opts.TLSDir)
	if err != nil {
		return nil, fmt.Errorf("certificates for %s: %w", d.opts.TCPAddress, err)
	}
	listener, err := net.Listen("tcp", d.opts.TCPAddress)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("port for the controller: %w", err), source.Close())
	}
	p := &controllerPort{d: d, source: source, listener: listener, handshake: newHandshakes(registry, source.NotAfter)}
	for _, result := range []string{"ok", "refused"} {
		p.handshake.WithLabelValues(result)
	}
	return p, nil
}

// Close gives the port up. serve has done so when it returns.
func (p *controllerPort) Close() error {
	return errors.Join(p.listener.Close(), p.source.Close())
}

func (p *controllerPort) serve(ctx context.Context, manager metrics.CSIMetricsManager) error {
	defer p.source.Close()
	creds := credentials.NewTLS(p.source.ServerConfigFor(tlsfiles.ControllerName))
	server := grpc.NewServer(append(csiserver.Options(manager, p.meantForUs, p.demandLease),
		grpc.Creds(tcplisten.Watch{TransportCredentials: creds, Shaken: p.shaken, AdmitAll: true}),
		grpc.ChainStreamInterceptor(p.streamMeantForUs),
		grpc.ConnectionTimeout(portHandshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: portPingWait,
			MaxConnectionIdle: portIdleTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	)...)
	p.d.registerController(server)
	locatepb.RegisterLocatorServer(server, &locator{d: p.d})
	p.d.registerForwarded(server)
	bounded := tcplisten.New(p.listener, tcplisten.Options{Port: "controller", Waiting: portConnections,
		Admitted: portConnections,
		Patience: portHandshakeTimeout, UserTimeout: portPingWait})
	return csiserver.Serve(ctx, server, bounded)
}

func (p *controllerPort) meantForUs(ctx context.Context, req any, _ *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	if err := p.checkNode(ctx); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (p *controllerPort) streamMeantForUs(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo,
	handler grpc.StreamHandler) error {
	if err := p.checkNode(stream.Context()); err != nil {
		return err
	}
	return handler(server, stream)
}

func (p *controllerPort) checkNode(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, node := range md.Get(plugin.NodeMetadata) {
		if node != p.d.opts.NodeID {
			return status.Errorf(codes.Unavailable, "the call is for node %s, and %s is node %s: its address is out of date",
				node, p.listener.Addr(), p.d.opts.NodeID)
		}
	}
	return nil
}

// demandLease lets a volume be created only under a lease on its name and its group.
func (p *controllerPort) demandLease(ctx context.Context, req any, _ *grpc.UnaryServerInfo,
	handler grpc.UnaryHandler) (any, error) {
	create, ok := req.(*csi.CreateVolumeRequest)
	if !ok {
		return handler(ctx, req)
	}
	md, _ := metadata.FromIncomingContext(ctx)
	token := md.Get(plugin.LeaseMetadata)
	if len(token) != 1 {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %q: the call names %s in %s: over TCP a volume "+
			"is created under one lease on its name",
			create.GetName(), words.Count(len(token), "lease"), plugin.LeaseMetadata)
	}
	keys := []lease.Key{{Kind: locatepb.Key_VOLUME_NAME, Value: create.GetName()}}
	parameters, err := parameter.ParseCreation(create)
	if err != nil {
		return nil, err
	}
	if group := parameters.Effective.Group; group != "" {
		keys = append(keys, lease.Key{Kind: locatepb.Key_CONSISTENCY_GROUP, Value: group})
	}
	done, err := p.d.names.Use(token[0], keys)
	if err != nil {
		return nil, err
	}
	defer done()
	return handler(parameters.In(ctx), req)
}

// shaken makes handshakes visible at the side that refuses: the other one sees an alert of one word.
func (p *controllerPort) shaken(remote net.Addr, err error) {
	if err == nil {
		p.handshake.WithLabelValues("ok").Inc()
		return
	}
	p.handshake.WithLabelValues("refused").Inc()
	p.log.Error(err, "Refused a connection to the port for the controller", "remoteAddress", remote,
		"certificate", p.d.opts.TLSDir, "notAfter", p.source.NotAfter())
}
