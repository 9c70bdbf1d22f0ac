package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/shards"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

const (
	day      = 24 * time.Hour
	patience = 30 * time.Second
)

// cluster is a set of drivers in this process, each with a pool of its own, that are reached over mutual TLS on
// loopback.
type cluster struct {
	t         testing.TB
	dir       string
	authority *tlsfiles.Authority
	nodes     map[string]*testNode
	// started has the nodes whose replicators run.
	started sync.Map

	site    string
	network *link.Network
	// shift is how far the clocks of the replicators are ahead.
	shift atomic.Int64
}

// testNode is one driver, which a test may stop and start.
type testNode struct {
	c       *cluster
	name    string
	address string
	sidecar string // endpoint of the replicator
	engine  *replication.Site
	shards  *shards.Node

	mu   sync.Mutex
	stop func() // nil: it does not run
}

// newCluster starts a driver per name.
func newCluster(t testing.TB, names ...string) *cluster {
	t.Helper()
	return newSite(t, "site-a", link.NewNetwork(nil), names...)
}

// newSite starts a driver and a replicator per name. The peer reaches the first replicator.
func newSite(t testing.TB, site string, network *link.Network, names ...string) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "router") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	authority, err := tlsfiles.NewAuthority(filepath.Join(dir, "authority"), "test")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, dir: dir, authority: authority, nodes: map[string]*testNode{}, site: site, network: network}
	c.issue("node-tls", tlsfiles.NodeName, day)
	c.issue("controller-tls", tlsfiles.ControllerName, day)
	addresses, err := testsite.FreeAddresses(len(names))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		n := &testNode{c: c, name: name, address: addresses[i]}
		n.startReplicator(filepath.Join(dir, name+".rep"), filepath.Join(dir, name, "pool"))
		if i == 0 {
			network.Attach(site, n.engine)
			t.Cleanup(func() { network.Detach(site) })
		}
		c.nodes[name] = n
		n.start()
		t.Cleanup(n.kill)
	}
	return c
}

func (c *cluster) issue(dir, name string, validFor time.Duration) {
	c.t.Helper()
	if err := c.authority.IssueSite(filepath.Join(c.dir, dir), name, nil, validFor); err != nil {
		c.t.Fatal(err)
	}
}

func (n *testNode) start() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	d, err := driver.New(ctx, driver.Options{
		Endpoint: filepath.Join(n.c.dir, n.name+".csi"), NodeID: n.name, PoolDir: filepath.Join(n.c.dir, n.name, "pool"),
		SidecarEndpoint: n.sidecar, TCPAddress: n.address, TLSDir: filepath.Join(n.c.dir, "node-tls"),
		Capacity: space.CapacityOptions{OvercommitRatio: 1}, Version: "test",
	})
	if err != nil {
		cancel()
		n.c.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			n.c.t.Errorf("node %s: %v", n.name, err)
		}
		if err := d.Close(); err != nil {
			n.c.t.Errorf("node %s: %v", n.name, err)
		}
	}
	waitFor(n.c.t, "node "+n.name+" to listen", func() bool {
		conn, err := net.Dial("tcp", n.address)
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
}

// kill stops a node; what it has stays on its disk.
func (n *testNode) kill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func (c *cluster) addresses() nodes.Static {
	addresses := nodes.Static{}
	for name, n := range c.nodes {
		addresses[name] = n.address
	}
	return addresses
}

// router is a router in this process; its services are called directly.
type testRouter struct {
	*Router
	*controllerServer
	close func()
}

// router starts one that follows all nodes.
func (c *cluster) router(retired ...string) *testRouter {
	return c.routerOver(c.addresses(), retired...)
}

func (c *cluster) routerOver(source nodes.Source, retired ...string) *testRouter {
	c.t.Helper()
	r, err := New(Options{Source: source, Retired: retired, TLSDir: filepath.Join(c.dir, "controller-tls"),
		Version: "test"})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Follow(ctx) }()
	close := sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, r.Close()); err != nil {
			c.t.Error(err)
		}
	})
	c.t.Cleanup(close)
	waitFor(c.t, "the nodes to be known", func() bool { _, err := r.nodes.all(); return err == nil })
	return &testRouter{Router: r, controllerServer: &controllerServer{r: r}, close: close}
}

// connected waits until the router has a connection to each of the nodes.
func (r *testRouter) connected(t testing.TB, names ...string) {
	t.Helper()
	waitFor(t, fmt.Sprint("connections to ", names), func() bool {
		nodes, err := r.nodes.all()
		up := map[string]bool{}
		for _, n := range nodes {
			up[n.name] = n.ready()
		}
		for _, name := range names {
			if !up[name] {
				return false
			}
		}
		return err == nil
	})
}

func on(nodes ...string) *csi.TopologyRequirement {
	r := &csi.TopologyRequirement{}
	for _, n := range nodes {
		r.Requisite = append(r.Requisite, segment(n))
	}
	return r
}

func segment(n string) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{plugin.TopologyKey: n}}
}

func createReq(name string, where *csi.TopologyRequirement, parameters map[string]string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{Name: name, Parameters: parameters, AccessibilityRequirements: where,
		CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
		VolumeCapabilities: []*csi.VolumeCapability{{
			AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
			AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
		}}}
}

// create creates a volume and returns its id and node.
func (r *testRouter) create(t testing.TB, req *csi.CreateVolumeRequest) (id, node string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	response, err := r.CreateVolume(ctx, req)
	if err != nil {
		t.Fatalf("create %s: %v", req.GetName(), err)
	}
	return response.GetVolume().GetVolumeId(),
		response.GetVolume().GetAccessibleTopology()[0].GetSegments()[plugin.TopologyKey]
}

func wantCode(t testing.TB, what string, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("%s: error %v, want %s", what, err, code)
	}
}

// onDisk returns the ids of volumes by name and node, as they are in the pools.
func (c *cluster) onDisk() map[string][]string {
	c.t.Helper()
	found := map[string][]string{}
	for name, n := range c.nodes {
		for volume, id := range poolVolumes(c.t, filepath.Join(c.dir, n.name, "pool")) {
			found[volume] = append(found[volume], name+"/"+id)
		}
	}
	return found
}

// poolVolumes returns the ids of a pool's volumes by name. A name that is there twice fails the test.
func poolVolumes(t testing.TB, dir string) map[string]string {
	t.Helper()
	pool, err := blockdev.OpenPool(vfs.OS, dir, blockdev.WhoReader)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	recs, err := pool.List()
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]string{}
	for _, r := range recs {
		if ids[r.Name] != "" {
			t.Errorf("pool %s has name %s twice", dir, r.Name)
		}
		ids[r.Name] = r.ID
	}
	return ids
}

// startReplicator starts the node's replicator.
func (n *testNode) startReplicator(socket, poolDir string) {
	c, t := n.c, n.c.t
	t.Helper()
	pool, err := blockdev.OpenPool(vfs.OS, poolDir, blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	site, err := replication.Open(replication.Config{FS: vfs.OS, Pool: pool, Site: c.site,
		Dialer:            c.network.Dialer(c.site),
		PeerAddress:       func(string) string { return "memory" },
		HeartbeatInterval: 10 * time.Millisecond, ApplyInterval: 50 * time.Millisecond,
		Clock: func() clocks.Instant {
			now, n := clocks.Read(time.Now), c.shift.Load()
			return clocks.Instant{BootID: now.BootID, BootNanos: now.BootNanos + n, RawNanos: now.RawNanos + n,
				WallNanos: now.WallNanos + n}
		}})
	if err != nil {
		t.Fatal(err)
	}
	n.shards = shards.New(shards.Options{Name: n.name, Site: site, PollInterval: 50 * time.Millisecond,
		Neighbours: n.neighbours})
	svc := sidecar.New(sidecar.Options{SiteName: c.site, Site: site, Pool: pool, ShimDir: poolDir + "/shim",
		Metrics: sidecar.NewMetrics(site), Shards: n.shards})
	listener, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	svc.Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		n.shards.Close()
		if err := errors.Join(svc.Close(), site.Close(), pool.Close()); err != nil {
			t.Error(err)
		}
	})
	n.sidecar, n.engine = "unix://"+socket, site
	c.started.Store(n.name, n)
}

// neighbour is the replicator of another node, called in this process.
type neighbour struct {
	*shards.Server
	name string
}

func (n neighbour) Address() string { return n.name }

// neighbours are the other nodes whose replicators have been started.
func (n *testNode) neighbours(context.Context) (list []shards.Neighbour, err error) {
	n.c.started.Range(func(name, node any) bool {
		if other := node.(*testNode); other != n {
			list = append(list, neighbour{other.shards.Server(), other.name})
		}
		return true
	})
	return list, nil
}
