// The replicator is the sidecar of the CSI driver: it serves replicable volumes through its shim, keeps the journals of
// their consistency groups, ships them to peer sites, and takes in what peers ship.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata" // for schedules that name a zone, in images without zones

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
	"github.com/slipstream-storage/slipstream/internal/metricsserver"
	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/internal/statuspage"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/keeper"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/shards"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var version = "unversioned" // set by the linker

type peerFlags map[string]string

func (p peerFlags) String() string { return fmt.Sprint(map[string]string(p)) }

func (p peerFlags) Set(value string) error {
	name, address, ok := strings.Cut(value, "=")
	if !ok || name == "" {
		return errors.New("want name=address, or name= for a peer that only calls")
	}
	if _, _, err := net.SplitHostPort(address); err != nil && address != "" {
		return fmt.Errorf("address of peer %s: %w; want host:port", name, err)
	}
	if _, twice := p[name]; twice {
		return fmt.Errorf("peer %s is there twice", name)
	}
	p[name] = address
	return nil
}

type config struct {
	endpoint, site, node, pool, journalDir, stateDir, shimDir, keeperSocket, listen, statusListen string
	ca, cert, key, compression                                                                    string
	metrics                                                                                       metricsserver.Options
	insecure                                                                                      bool
	applyInterval                                                                                 time.Duration
	peers                                                                                         peerFlags
	siteNodes                                                                                     []string
	limits                                                                                        limits
}

func main() {
	tuneScheduler()
	os.Exit(progflags.Main("replicator", func(args []string) error {
		c, err := parse(args)
		if err != nil {
			return err
		}
		return run(c)
	}))
}

func parse(args []string) (config, error) {
	c := config{peers: peerFlags{}}
	flags := progflags.New("replicator", "It serves the replicable volumes of this node, and copies their groups to and "+
		"from peer sites.", version)
	flags.StringVar(&c.endpoint, "endpoint", "", "`unix:///path` to listen on for the CSI driver and slipctl")
	flags.StringVar(&c.site, "site", "", "`name` of this site, as in its certificate")
	flags.StringVar(&c.node, "node", "", "`name` of this node for the site's gateway and other nodes; empty without them")
	flags.StringVar(&c.pool, "pool", "", "`directory` of the pool, shared with the CSI driver")
	flags.StringVar(&c.journalDir, "journal-dir", "",
		"`directory` of the groups and their journals, on a separate disk; the same as the driver's; default in the pool")
	flags.StringVar(&c.stateDir, "state-dir", blockdev.DefaultStateDir,
		"`directory` on another disk than the pool, with the record that the pool exists; an unmounted pool is not made "+
			"again; the same as the driver's")
	flags.StringVar(&c.shimDir, "shim-dir", "", "`directory` for the shims' mounts; default <pool>/shim")
	flags.StringVar(&c.keeperSocket, "keeper-socket", "", "`path` of the keeper's socket; default <pool>/keeper.sock")
	flags.Var(c.peers, "peer", "`name=address` of a site to replicate with; can be repeated")
	flags.StringVar(&c.listen, "listen", "", "`address` to listen on for peers; empty for none")
	flags.Func("site-node", "`host:port` where other nodes of this site listen for peers; a name may stand for several, "+
		"and for this node too; can be repeated. Groups over several nodes need it", func(address string) error {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return err
		}
		c.siteNodes = append(c.siteNodes, address)
		return nil
	})
	flags.StringVar(&c.ca, "tls-ca", "", "`file` with the authority's certificate")
	flags.StringVar(&c.cert, "tls-cert", "", "`file` with this site's certificate; read again when it changes")
	flags.StringVar(&c.key, "tls-key", "", "`file` with the key of this site's certificate")
	flags.BoolVar(&c.insecure, "insecure", false, "plain text to and from peers, on loopback addresses only")
	flags.StringVar(&c.compression, "compression", "none", "`compression` of shipped records: none or zstd")
	c.metrics.Add(flags.FlagSet)
	flags.DurationVar(&c.applyInterval, "apply-interval", 0,
		"longest time until a durable write reaches the image while the journal has room; default 2s")
	c.limits.add(flags.FlagSet)
	flags.StringVar(&c.statusListen, "status-listen", "", "host:`port` of a page that shows the groups; without a host "+
		"it is for this machine only; empty: no page. It has no authentication")
	return c, flags.Parse(args)
}

// schedulerSlots is how many threads may run Go code at a time, if the environment does not say.
const schedulerSlots = 16

// timerSlack is how late a timer of this process may be.
const timerSlack = 4 * time.Millisecond

// tuneScheduler raises GOMAXPROCS above the number of processors, and makes timers coarse.
//
// A thread in a system call keeps its slot until another one is missing, and then the runtime takes it away; when the
// call returns, the thread has to be given one, by way of other threads. Most of what this program does is system calls
// that take tens to hundreds of microseconds: with as many slots as processors, every flush is followed by such
// hand-overs. With slots to spare they are rare.
//
// The runtime's monitor thread looks for them after every 20 µs of sleep, which takes a core from the thread that
// runs on it. There is no setting for it, but the kernel lets sleeps end late, and nothing here needs a timer to be
// exact.
func tuneScheduler() {
	if os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) < schedulerSlots {
		runtime.GOMAXPROCS(schedulerSlots)
	}
	// Threads inherit it. It fails in a program that links C code; then timers are as they were.
	_, _, _ = syscall.AllThreadsSyscall(syscall.SYS_PRCTL, unix.PR_SET_TIMERSLACK, uintptr(timerSlack), 0)
}

func (c *config) check() error {
	for _, f := range []struct{ name, value string }{{"--endpoint", c.endpoint}, {"--site", c.site}, {"--pool", c.pool}} {
		if f.value == "" {
			return fmt.Errorf("%s is required", f.name)
		}
	}
	if c.shimDir == "" {
		c.shimDir = filepath.Join(c.pool, "shim")
	}
	if c.keeperSocket == "" {
		c.keeperSocket = filepath.Join(c.pool, "keeper.sock")
	}
	if !c.insecure && (c.ca == "" || c.cert == "" || c.key == "") && (c.listen != "" || len(c.peers) > 0) {
		return errors.New("--tls-ca, --tls-cert and --tls-key are required to replicate; slipctl site init makes them")
	}
	if len(c.siteNodes) > 0 && c.node == "" {
		return errors.New("--site-node needs --node: the nodes of a site tell each other apart by their names")
	}
	if err := tlsfiles.CheckSites(c.site, slices.Sorted(maps.Keys(c.peers))); err != nil {
		return err
	}
	if err := c.limits.check(); err != nil {
		return err
	}
	var err error
	c.shimDir, err = filepath.Abs(c.shimDir)
	return err
}

func (c *config) codec() (linkpb.Codec, error) {
	switch c.compression {
	case "none":
		return linkpb.Codec_CODEC_NONE, nil
	case "zstd":
		return linkpb.Codec_CODEC_ZSTD, nil
	}
	return 0, fmt.Errorf("--compression %q: want none or zstd", c.compression)
}

func run(c config) error {
	descriptors.Raise()
	if err := c.check(); err != nil {
		return err
	}
	codec, err := c.codec()
	if err != nil {
		return err
	}
	if err := shim.ProtectServingProcess(); err != nil {
		klog.ErrorS(err, "Going on without protection against memory pressure")
	}
	pool, err := blockdev.OpenPool(vfs.OS, c.pool, blockdev.WhoReplicator, blockdev.WithJournalDir(c.journalDir),
		blockdev.WithStateDir(c.stateDir, c.pool))
	if err != nil {
		return err
	}
	defer pool.Close()

	var source *tlsfiles.Source
	if !c.insecure && c.cert != "" {
		// Volumes are served whatever is in the files.
		source = tlsfiles.Follow(c.site, c.ca, c.cert, c.key)
		defer source.Close()
	}
	cfg := replication.Config{
		FS: vfs.OS, Pool: pool, Site: c.site, Codec: codec, ApplyInterval: c.applyInterval, Limits: c.limits.Limits,
		KnownPeer:   func(peer string) bool { _, known := c.peers[peer]; return known },
		PeerAddress: func(peer string) string { return c.peers[peer] },
	}
	if source != nil {
		cfg.LinkClosed = source.Err
	}
	var client *link.Client
	if len(c.peers) > 0 || len(c.siteNodes) > 0 {
		client, err = link.NewClient(link.ClientOptions{Site: c.site, TLS: source, Insecure: c.insecure})
		if err != nil {
			return err
		}
		defer client.Close()
	}
	if len(c.peers) > 0 {
		cfg.Dialer = client
	}
	site, err := replication.Open(cfg)
	if err != nil {
		return err
	}
	defer site.Close()
	nodes, stopShards := serveShards(c, site, client)
	defer stopShards()
	holder := keeper.NewHolder(c.keeperSocket)
	defer holder.Close()
	metrics := sidecar.NewMetrics(site)
	service := sidecar.New(sidecar.Options{
		SiteName: c.site, Version: version, Site: site, Pool: pool, ShimDir: c.shimDir, Keeper: holder, Metrics: metrics,
		Shards: nodes,
	})
	defer service.Close()

	failed := make(chan error, 3)
	if c.listen != "" {
		stop, err := serveLink(c, source, site, nodes, failed)
		if err != nil {
			return err
		}
		defer stop()
	}
	collectors := []prometheus.Collector{metrics}
	if source != nil {
		collectors = append(collectors, metricsserver.CertificateExpiry(source.NotAfter),
			metricsserver.CertificateUsable(source.Err))
	}
	stopMetrics, err := metricsserver.Start(c.metrics, failed, collectors...)
	if err != nil {
		return err
	}
	defer stopMetrics()
	defer serveStatus(c, service)()
	stop, err := serveSidecar(c.endpoint, service, failed)
	if err != nil {
		return err
	}
	defer stop()
	klog.InfoS("Replicator is ready", "version", version, "site", c.site, "pool", c.pool, "peers", c.peers.String())

	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		klog.InfoS("Stopping; I/O waits for the next replicator")
		return nil
	}
}

// serveShards works on the groups that are on several nodes of this site.
func serveShards(c config, site *replication.Site, client *link.Client) (node *shards.Node, stop func()) {
	opts := shards.Options{Name: cmp.Or(c.node, c.site), Site: site}
	if len(c.siteNodes) == 0 {
		node = shards.New(opts)
		return node, node.Close
	}
	remotes := shards.NewRemotes(client, c.siteNodes)
	opts.Neighbours = remotes.List
	node = shards.New(opts)
	return node, func() { node.Close(); remotes.Close() }
}

func serveLink(c config, source *tlsfiles.Source, site *replication.Site, nodes *shards.Node,
	failed chan<- error) (stop func(), err error) {
	opts := link.ServerOptions{
		Site: c.site, TLS: source, Insecure: c.insecure, Handler: site,
		Peers: func() []string { return slices.Sorted(maps.Keys(c.peers)) }, MaxStreams: c.limits.streams,
	}
	if c.node != "" {
		opts.Node, opts.Locate = c.node, site.Locate
	}
	if len(c.siteNodes) > 0 {
		opts.Register = nodes.Register
	}
	server, err := link.NewServer(opts)
	if err != nil {
		return nil, err
	}
	lis, err := net.Listen("tcp", c.listen)
	if err != nil {
		return nil, fmt.Errorf("listen for peers: %w", err)
	}
	go func() {
		if err := server.Serve(lis); err != nil {
			failed <- err
		}
	}()
	return server.Stop, nil
}

// serveStatus serves the status page. Without its address the volumes are served all the same.
func serveStatus(c config, service *sidecar.Service) (stop func()) {
	if c.statusListen == "" {
		return func() {}
	}
	page, err := statuspage.Start(statuspage.Options{Listen: c.statusListen, Site: c.site, Version: version,
		Groups: func(ctx context.Context) ([]*sidecarpb.GroupStatus, error) {
			answer, err := service.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
			return answer.GetGroups(), err
		},
		Points: func(ctx context.Context, group string) (*sidecarpb.GroupPointsResponse, error) {
			return service.GroupPoints(ctx, &sidecarpb.GroupPointsRequest{Group: group})
		}})
	if err != nil {
		klog.ErrorS(err, "Going on without the status page")
		return func() {}
	}
	klog.InfoS("Serving the status page", "address", "http://"+page.Addr()+"/")
	return func() { _ = page.Close() } // nothing of it has to be kept
}

func serveSidecar(endpoint string, service *sidecar.Service, failed chan<- error) (stop func(), err error) {
	lis, err := unixsocket.Listen(endpoint)
	if err != nil {
		return nil, fmt.Errorf("listen for the driver: %w", err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(sidecar.LogCalls))
	service.Register(server)
	go func() {
		if err := server.Serve(lis); err != nil {
			failed <- err
		}
	}()
	return server.Stop, nil
}
