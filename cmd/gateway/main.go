// The gateway is where peers reach a site that has several nodes: it passes each group's stream on to the node that has
// the group. See package gateway.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/pkg/gateway"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = "unversioned"

func main() { os.Exit(progflags.Main("gateway", run)) }

type config struct {
	site, listen, tlsDir string
	metrics              metricsserver.Options
	insecure             bool
	peerStreams          int
	peers                []string
	nodes                nodes.Flags
}

func run(args []string) error {
	descriptors.Raise()
	var c config
	set := progflags.New("gateway", "It passes each peer's stream of a group to the node of this site that has the group.",
		version)
	flags := set.FlagSet
	flags.StringVar(&c.site, "site", "", "`name` of this site, as in its certificate (required)")
	flags.StringVar(&c.listen, "listen", ":9443", "`address` to listen on for peers")
	flags.Func("peer", "`name` of a site that may call; can be repeated", func(name string) error {
		if name == "" {
			return errors.New("a name is missing")
		}
		c.peers = append(c.peers, name)
		return nil
	})
	flags.StringVar(&c.tlsDir, "tls-dir", "", "`directory` with the site's ca.crt, tls.crt and tls.key; read again "+
		"when they change")
	flags.BoolVar(&c.insecure, "insecure", false, "plain text, on loopback addresses only")
	c.metrics.Add(flags)
	flags.IntVar(&c.peerStreams, "peer-max-streams", link.DefaultMaxStreams, "limit of open streams of one peer")
	c.nodes.Add(flags, "link", "", "nothing waits for its answer, and no group is put there")
	if err := set.Parse(args); err != nil {
		return err
	}
	switch {
	case c.site == "":
		return errors.New("--site is missing; see --help")
	case len(c.peers) == 0:
		return errors.New("--peer is missing: who may call? see --help")
	case c.tlsDir != "" && c.insecure:
		return errors.New("--tls-dir and --insecure exclude each other: give one of them")
	case c.tlsDir == "" && !c.insecure:
		return errors.New("--tls-dir is missing: the gateway shows peers and nodes the site's certificate; slipctl site " +
			"init makes it")
	}
	if err := tlsfiles.CheckSites(c.site, c.peers); err != nil {
		return err
	}
	source, err := c.nodes.Source()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return serve(ctx, c, source)
}

// serve listens once the nodes are known: a gateway without them would turn everybody away, and others may know them.
func serve(ctx context.Context, c config, source nodes.Source) error {
	var certificate *tlsfiles.Source
	var collectors []prometheus.Collector
	if !c.insecure {
		certificate = tlsfiles.FollowDir(c.site, c.tlsDir)
		defer certificate.Close()
		collectors = append(collectors, metricsserver.CertificateExpiry(certificate.NotAfter),
			metricsserver.CertificateUsable(certificate.Err))
	}
	client, err := link.NewClient(link.ClientOptions{Site: c.site, TLS: certificate, Insecure: c.insecure})
	if err != nil {
		return err
	}
	defer client.Close()
	g := gateway.New(gateway.Options{Site: c.site, Nodes: client, Retired: c.nodes.Retired})
	server, err := link.NewServer(link.ServerOptions{
		Site: c.site, TLS: certificate, Insecure: c.insecure, Handler: g, Observe: g.Metrics().Observe,
		Peers: func() []string { return c.peers }, MaxStreams: c.peerStreams,
	})
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	stop, err := metricsserver.Start(c.metrics, failed, append(collectors, g.Metrics())...)
	if err != nil {
		return err
	}
	defer stop()

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	})
	known := make(chan struct{})
	group.Go(func() error {
		first := true
		return source.Follow(ctx, func(addresses map[string]string) {
			g.Update(addresses)
			if first {
				close(known)
				first = false
			}
		})
	})
	group.Go(func() error {
		select {
		case <-known:
		case <-ctx.Done():
			return nil
		}
		lis, err := net.Listen("tcp", c.listen)
		if err != nil {
			return fmt.Errorf("listen for peers: %w", err)
		}
		defer context.AfterFunc(ctx, server.Stop)()
		klog.InfoS("Gateway is ready", "version", version, "site", c.site, "listen", lis.Addr(), "peers", c.peers)
		return server.Serve(lis)
	})
	return group.Wait()
}
