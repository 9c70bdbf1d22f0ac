package operator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/space"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/router"
	"github.com/slipstream-storage/slipstream/pkg/shards"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// realNode starts a driver and a replicator, reached over mutual TLS, and returns the way to them and a maker of
// volumes.
func realNode(t *testing.T) (engine.Replicators, func(name string, replicable bool) string) {
	t.Helper()
	replicators, create := realNodes(t, link.NewNetwork(nil), "a")
	return replicators, create["a"]
}

// otherNode is a replicator in this process as another node of its site.
type otherNode struct {
	*shards.Server
	name string
}

func (o otherNode) Address() string { return o.name }

// realNodes is realNode for several nodes of site-a, whose replicators reach each other. Site-b is reached by network.
func realNodes(t *testing.T, network *link.Network,
	names ...string) (engine.Replicators, map[string]func(name string, replicable bool) string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "op") // short, for the paths of sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	authority, err := tlsfiles.NewAuthority(filepath.Join(dir, "authority"), "test")
	if err != nil {
		t.Fatal(err)
	}
	for sub, name := range map[string]string{"node": tlsfiles.NodeName, "controller": tlsfiles.ControllerName} {
		if err := authority.IssueSite(filepath.Join(dir, sub), name, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	addresses, err := testsite.FreeAddresses(len(names))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var all []shards.Neighbour
	others := func(context.Context) ([]shards.Neighbour, error) {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all), nil
	}
	source, create := nodes.Static{}, map[string]func(string, bool) string{}
	for i, name := range names {
		at := filepath.Join(dir, name)
		socket, node := realReplicator(t, at, name, network, others)
		mu.Lock()
		all = append(all, otherNode{node.Server(), name})
		mu.Unlock()
		source[name] = addresses[i]
		create[name] = realDriver(t, driver.Options{Endpoint: filepath.Join(at, "csi.sock"), NodeID: name,
			PoolDir: filepath.Join(at, "pool"), SidecarEndpoint: "unix://" + socket, TCPAddress: addresses[i],
			TLSDir: filepath.Join(dir, "node"), Capacity: space.CapacityOptions{OvercommitRatio: 1}, Version: "test"})
	}
	replicators, err := router.NewReplicators(source, nil, filepath.Join(dir, "controller"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- replicators.Follow(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, replicators.Close()); err != nil {
			t.Error(err)
		}
	})
	return replicators, create
}

// realReplicator starts the replicator of a node of site-a, and returns its socket.
func realReplicator(t *testing.T, dir, name string, network *link.Network,
	others func(context.Context) ([]shards.Neighbour, error)) (socket string, node *shards.Node) {
	t.Helper()
	pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(dir, "pool"), blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	engine, err := replication.Open(replication.Config{FS: vfs.OS, Pool: pool, Site: "site-a",
		Dialer: network.Dialer("site-a"), PeerAddress: func(string) string { return "memory" }})
	if err != nil {
		t.Fatal(err)
	}
	node = shards.New(shards.Options{Name: name, Site: engine, Neighbours: others})
	service := sidecar.New(sidecar.Options{SiteName: "site-a", Site: engine, Pool: pool, Shards: node,
		ShimDir: filepath.Join(dir, "shim"), Metrics: sidecar.NewMetrics(engine)})
	socket = filepath.Join(dir, "s.sock")
	listener, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	service.Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		node.Close()
		if err := errors.Join(service.Close(), engine.Close(), pool.Close()); err != nil {
			t.Error(err)
		}
	})
	return socket, node
}

// realDriver starts a driver, and returns a maker of its volumes.
func realDriver(t *testing.T, options driver.Options) func(name string, replicable bool) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	d, err := driver.New(ctx, options)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx) }()
	conn, err := grpc.NewClient("unix://"+options.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, conn.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return func(name string, replicable bool) string {
		t.Helper()
		response, err := csi.NewControllerClient(conn).CreateVolume(ctx, &csi.CreateVolumeRequest{Name: name,
			Parameters:    map[string]string{parameter.KeyReplicable: fmt.Sprint(replicable)},
			CapacityRange: &csi.CapacityRange{RequiredBytes: 1 << 20},
			VolumeCapabilities: []*csi.VolumeCapability{{
				AccessType: &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}},
				AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}},
		}, grpc.WaitForReady(true))
		if err != nil {
			t.Fatal(err)
		}
		return response.GetVolume().GetVolumeId()
	}
}

// groupsAt names the groups of all nodes.
func groupsAt(v *engine.View) (names []string) {
	for _, n := range v.Nodes {
		names = slices.AppendSeq(names, maps.Keys(n.Groups))
	}
	return names
}

// TestRealEngine: a driver and a replicator as they are do what the operator asks for, and what they then say is what
// was asked for: nothing is asked for twice.
func TestRealEngine(t *testing.T) {
	replicators, create := realNode(t)
	s := newSite(t, "a")
	recorder := events.NewFakeRecorder(1000)
	s.Events = recorder
	s.Watcher = engine.NewWatcher(replicators, func(_, _ *engine.View) {})
	s.Reset()
	site := operatortest.Remote("site-b")
	rate, journal := resource.MustParse("1M"), resource.MustParse("100M")
	site.Spec.Address = "b.example.org:9443"
	site.Spec.Defaults = v1alpha1.ReplicationSettings{RPOTarget: &metav1.Duration{Duration: 1500 * time.Millisecond},
		JournalSize: &journal, JournalFull: v1alpha1.JournalFullStall, ShipRate: &rate,
		KeepTails: new(int32(3)), KeepTailsFor: &metav1.Duration{Duration: 720 * time.Hour}}
	s.Create(site, operatortest.Labelled("shop"))
	bind := func(claim, id string) {
		s.Claim("shop", claim, "a")
		pv := operatortest.Volume("vol-shop-"+claim, "shop", claim, "a")
		s.Get(pv, "", pv.Name)
		pv.Spec.CSI.VolumeHandle = id
		s.Update(pv)
	}
	eventually(t, "the node answers", func() bool {
		s.Watcher.Look(context.Background())
		n := s.Watcher.View().Nodes["a"]
		return n != nil && n.Err == nil && !n.Without
	})
	one, plain := create("one", true), create("plain", false)
	bind("one", one)
	bind("plain", plain)
	s.Settle("shop")
	g := s.Group("shop", "shop")
	if len(g.Status.EngineGroups) != 1 || g.Status.Role != v1alpha1.RolePrimary {
		t.Fatalf("status: %+v", g.Status)
	}
	states := map[string]v1alpha1.MemberState{}
	for _, m := range g.Status.Members {
		states[m.Volume] = m.State
	}
	if states[one] != v1alpha1.MemberIn || states[plain] != v1alpha1.MemberNeedsRestage {
		t.Errorf("members: %+v", g.Status.Members)
	}
	operatortest.WantCondition(t, g, v1alpha1.ConditionPeerReachable, metav1.ConditionFalse, "NotConnected")
	operatortest.WantCondition(t, g, v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionTrue, "AsDeclared")
	calls := func() (calls []string) {
		for len(recorder.Events) > 0 {
			if e := <-recorder.Events; strings.Contains(e, "Group of group") || strings.Contains(e, "Volume of group") {
				calls = append(calls, e)
			}
		}
		return calls
	}
	if made := calls(); len(made) != 2 {
		t.Errorf("calls: %q", made)
	}
	s.Settle("shop")
	if again := calls(); len(again) > 0 {
		t.Errorf("asked for again: %q", again)
	}

	act := func(kind v1alpha1.ActionType, name string, force bool) v1alpha1.GroupActionStatus {
		t.Helper()
		s.Settle("shop")
		spec := v1alpha1.GroupActionSpec{Group: "shop", Type: kind, Force: force}
		if force {
			spec.Confirm = s.Group("shop", "shop").Status.Confirm
		}
		return s.Act(name, spec).Status
	}
	for i, kind := range []v1alpha1.ActionType{v1alpha1.ActionSuspend, v1alpha1.ActionResume, v1alpha1.ActionDemote} {
		if a := act(kind, fmt.Sprint("a", i), false); a.Phase != v1alpha1.ActionSucceeded || len(a.Steps) != 1 {
			t.Errorf("%s: %+v", kind, a)
		}
	}
	if a := act(v1alpha1.ActionFailover, "refused", false); a.Phase != v1alpha1.ActionFailed ||
		!strings.Contains(a.Message, "--force") {
		t.Errorf("the peer is not heard: %+v", a)
	}
	if a := act(v1alpha1.ActionFailover, "back", true); a.Phase != v1alpha1.ActionSucceeded || a.Result.RTO == nil {
		t.Errorf("forced: %+v", a)
	}
	s.Settle("shop")
	if g = s.Group("shop", "shop"); g.Status.Role != v1alpha1.RolePrimary || g.Status.State == "Demoted" {
		t.Errorf("after all of them: %s, %s", g.Status.Role, g.Status.State)
	}

	// A group ends in every state, also in that in which nothing can be taken out of it.
	if a := act(v1alpha1.ActionDemote, "again", false); a.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("%+v", a)
	}
	ns := operatortest.Labelled("shop")
	s.Get(ns, "", "shop")
	ns.Labels = nil
	s.Update(ns)
	s.Settle("shop")
	if groups := groupsAt(s.Watcher.View()); len(groups) > 0 {
		t.Errorf("left at the engine: %v", groups)
	}
}
