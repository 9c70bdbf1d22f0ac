package operator

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/router"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// realNode starts a driver and a replicator, reached over mutual TLS, and returns the way to them and a maker of
// volumes.
func realNode(t *testing.T) (Engine, func(name string, replicable bool) string) {
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
	pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(dir, "pool"), blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	network := link.NewNetwork(nil)
	engine, err := replication.Open(replication.Config{FS: vfs.OS, Pool: pool, Site: "site-a",
		Dialer: network.Dialer("site-a"), PeerAddress: func(string) string { return "memory" }})
	if err != nil {
		t.Fatal(err)
	}
	service := sidecar.New(sidecar.Options{SiteName: "site-a", Site: engine, Pool: pool,
		ShimDir: filepath.Join(dir, "shim"), Metrics: sidecar.NewMetrics(engine)})
	socket := filepath.Join(dir, "s.sock")
	listener, err := unixsocket.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	service.Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := errors.Join(service.Close(), engine.Close(), pool.Close()); err != nil {
			t.Error(err)
		}
	})
	addresses, err := testsite.FreeAddresses(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d, err := driver.New(ctx, driver.Options{Endpoint: filepath.Join(dir, "csi.sock"), NodeID: "a",
		PoolDir: filepath.Join(dir, "pool"), SidecarEndpoint: "unix://" + socket, TCPAddress: addresses[0],
		TLSDir: filepath.Join(dir, "node"), Capacity: space.CapacityOptions{OvercommitRatio: 1}, Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	replicators, err := router.NewReplicators(nodes.Static{"a": addresses[0]}, nil, filepath.Join(dir, "controller"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { ended <- d.Run(ctx) }()
	go func() { ended <- replicators.Follow(ctx) }()
	conn, err := grpc.NewClient("unix://"+filepath.Join(dir, "csi.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, <-ended, replicators.Close(), conn.Close(), d.Close()); err != nil {
			t.Error(err)
		}
	})
	return replicators, func(name string, replicable bool) string {
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

// TestRealEngine: a driver and a replicator as they are do what the operator asks for, and what they then say is what
// was asked for: nothing is asked for twice.
func TestRealEngine(t *testing.T) {
	engine, create := realNode(t)
	s := newSite(t, "a")
	recorder := events.NewFakeRecorder(1000)
	s.events = recorder
	s.watcher = NewWatcher(engine, func(_, _ *View) {})
	s.reset()
	site := remote("site-b")
	rate, journal := resource.MustParse("1M"), resource.MustParse("100M")
	site.Spec.Address = "b.example.org:9443"
	site.Spec.Defaults = v1alpha1.ReplicationSettings{RPOTarget: &metav1.Duration{Duration: 1500 * time.Millisecond},
		JournalSize: &journal, JournalFull: v1alpha1.JournalFullStall, ShipRate: &rate}
	s.create(site, labelled("shop"))
	bind := func(claim, id string) {
		s.claim("shop", claim, "a")
		pv := volume("vol-shop-"+claim, "shop", claim, "a")
		s.get(pv, "", pv.Name)
		pv.Spec.CSI.VolumeHandle = id
		s.update(pv)
	}
	eventually(t, "the node answers", func() bool {
		s.watcher.Look(context.Background())
		n := s.watcher.View().Nodes["a"]
		return n != nil && n.Err == nil && !n.Without
	})
	one, plain := create("one", true), create("plain", false)
	bind("one", one)
	bind("plain", plain)
	s.settle("shop")
	g := s.group("shop", "shop")
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
	wantCondition(t, g, v1alpha1.ConditionPeerReachable, metav1.ConditionFalse, "NotConnected")
	wantCondition(t, g, v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionTrue, "AsDeclared")
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
	s.settle("shop")
	if again := calls(); len(again) > 0 {
		t.Errorf("asked for again: %q", again)
	}

	act := func(kind v1alpha1.ActionType, name string, force bool) v1alpha1.GroupActionStatus {
		t.Helper()
		s.settle("shop")
		spec := v1alpha1.GroupActionSpec{Group: "shop", Type: kind, Force: force}
		if force {
			spec.Confirm = s.group("shop", "shop").Status.Confirm
		}
		return s.act(name, spec).Status
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
	s.settle("shop")
	if g = s.group("shop", "shop"); g.Status.Role != v1alpha1.RolePrimary || g.Status.State == "Demoted" {
		t.Errorf("after all of them: %s, %s", g.Status.Role, g.Status.State)
	}

	// A group ends in every state, also in that in which nothing can be taken out of it.
	if a := act(v1alpha1.ActionDemote, "again", false); a.Phase != v1alpha1.ActionSucceeded {
		t.Errorf("%+v", a)
	}
	ns := labelled("shop")
	s.get(ns, "", "shop")
	ns.Labels = nil
	s.update(ns)
	s.settle("shop")
	if groups := s.watcher.View().groups; len(groups) > 0 {
		t.Errorf("left at the engine: %v", groups)
	}
}
