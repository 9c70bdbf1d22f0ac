package gateway

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

const (
	patience    = 30 * time.Second
	volumeBytes = 1 << 20
)

// node is a replicator with its pool, in this process, behind a real port with mutual TLS.
type node struct {
	t          *testing.T
	site, name string
	tls        *tlsfiles.Source
	fs         *vfs.MemFS
	address    string            // kept when it is started again
	peers      map[string]string // addresses

	engine *replication.Site
	stop   func()
}

func (n *node) start() {
	n.t.Helper()
	pool, err := blockdev.OpenPool(n.fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		n.t.Fatal(err)
	}
	dialer, err := link.NewClient(link.ClientOptions{Site: n.site, TLS: n.tls})
	if err != nil {
		n.t.Fatal(err)
	}
	n.engine, err = replication.Open(replication.Config{FS: n.fs, Pool: pool, Site: n.site, Dialer: dialer,
		PeerAddress:    func(peer string) string { return n.peers[peer] },
		CommitInterval: 5 * time.Millisecond, ApplyInterval: 10 * time.Millisecond, HeartbeatInterval: 10 * time.Millisecond,
		RedialInterval: 5 * time.Millisecond})
	if err != nil {
		n.t.Fatal(err)
	}
	address, stop := listen(n.t, n.address, link.ServerOptions{Site: n.site, TLS: n.tls, Handler: n.engine, Node: n.name,
		Locate: n.engine.Locate})
	n.address = address
	n.stop = func() {
		stop()
		n.engine.Kill()
		dialer.Close()
		pool.Close()
		n.stop = func() {}
	}
}

// listen starts a server, by default on any loopback port.
func listen(t testing.TB, address string, opts link.ServerOptions) (at string, stop func()) {
	t.Helper()
	if address == "" {
		address = "127.0.0.1:0"
	}
	opts.Peers = func() []string {
		if opts.Site == "site-a" {
			return []string{"site-b"}
		}
		return []string{"site-a"}
	}
	server, err := link.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(lis) }()
	return lis.Addr().String(), func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// world is site-a with one node, which is called directly, and site-b with nodes b1 and b2 behind a gateway.
type world struct {
	t       *testing.T
	tls     map[string]*tlsfiles.Source // by site
	a       *node
	b       map[string]*node
	gateway *Gateway
	address string
	stop    func()
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, tls: map[string]*tlsfiles.Source{}, b: map[string]*node{}}
	authority, err := tlsfiles.NewAuthority(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"site-a", "site-b"} {
		dir := t.TempDir()
		if err := authority.IssueSite(dir, site, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
		if w.tls[site], err = tlsfiles.OpenDir(dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.tls[site].Close() })
	}
	w.a = w.node("site-a", "a1")
	w.a.start()
	for _, name := range []string{"b1", "b2"} {
		w.b[name] = w.node("site-b", name)
		w.b[name].peers["site-a"] = w.a.address
		w.b[name].start()
	}
	w.startGateway()
	t.Cleanup(func() { w.stop() })
	w.a.peers["site-b"] = w.address
	return w
}

func (w *world) node(site, name string) *node {
	n := &node{t: w.t, site: site, name: name, tls: w.tls[site], fs: vfs.NewMem(), peers: map[string]string{}}
	w.t.Cleanup(func() { n.stop() })
	return n
}

// startGateway starts the next gateway, at the address that the one before had.
func (w *world) startGateway() {
	w.t.Helper()
	client, err := link.NewClient(link.ClientOptions{Site: "site-b", TLS: w.tls["site-b"]})
	if err != nil {
		w.t.Fatal(err)
	}
	w.gateway = New(Options{Site: "site-b", Nodes: client})
	w.know()
	address, stop := listen(w.t, w.address, link.ServerOptions{Site: "site-b", TLS: w.tls["site-b"], Handler: w.gateway,
		Observe: w.gateway.Metrics().Observe})
	w.address = address
	w.stop = func() { stop(); client.Close() }
}

// know tells the gateway of both nodes.
func (w *world) know() {
	w.gateway.Update(map[string]string{"b1": w.b["b1"].address, "b2": w.b["b2"].address})
}

// primary makes a group at site-a, with one volume in it.
func (w *world) primary(name string) (*replication.Group, *replication.Volume) {
	w.t.Helper()
	g, err := w.a.engine.CreateGroup(replication.GroupSpec{
		Name: name, Settings: core.Settings{Peer: "site-b", JournalSizeBytes: replication.MinJournalBytes},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	pool, err := blockdev.OpenPool(w.a.fs, "/pool", blockdev.WhoDriver)
	if err != nil {
		w.t.Fatal(err)
	}
	defer pool.Close()
	id := "v-" + name
	rec, err := pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: volumeBytes, Replicable: true,
		Order: blockdev.OrderFlush})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		w.t.Fatal(err)
	}
	v, err := g.Attach(id)
	if err != nil {
		w.t.Fatal(err)
	}
	return g, v
}

func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("never: %s", what)
		}
	}
}

// holders are the nodes of site-b that have a group, running or not.
func (w *world) holders(g *replication.Group) (names []string) {
	w.t.Helper()
	for _, name := range []string{"b1", "b2"} {
		if _, err := w.b[name].fs.Stat(filepath.Join("/pool/groups", g.ID())); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// copied waits until the only copy of a group has all that its primary has, and returns its node.
func (w *world) copied(g *replication.Group) *node {
	w.t.Helper()
	w.eventually("group "+g.Name()+" is copied", func() bool {
		p := g.Status()
		return p.State == "streaming" && p.AcknowledgedOrdinal != nil && *p.AcknowledgedOrdinal == p.HeadOrdinal &&
			len(w.holders(g)) > 0
	})
	names := w.holders(g)
	if len(names) != 1 {
		w.t.Fatalf("group %s is on nodes %v", g.Name(), names)
	}
	return w.b[names[0]]
}

func write(t *testing.T, v *replication.Volume, fill byte) {
	t.Helper()
	if _, err := v.WriteAt(bytes.Repeat([]byte{fill}, 64<<10), int64(fill)<<10); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestOneCopy: whatever dies and comes back, each group stays on one node, and its copy is right.
func TestOneCopy(t *testing.T) {
	w := newWorld(t)
	const groups = 8
	primaries, volumes := make([]*replication.Group, groups), make([]*replication.Volume, groups)
	used := map[string]bool{}
	for i := range groups {
		primaries[i], volumes[i] = w.primary(fmt.Sprintf("group-%d", i))
		write(t, volumes[i], 1)
		used[w.copied(primaries[i]).name] = true
	}
	// Group ids are random: one in 128 runs has all on one node.
	t.Logf("nodes with groups: %v", used)
	home := func(i int) string { return w.copied(primaries[i]).name }
	before := make([]string, groups)
	for i := range groups {
		before[i] = home(i)
	}
	check := func(what string, fill byte) {
		t.Helper()
		for i := range groups {
			write(t, volumes[i], fill)
			if now := home(i); now != before[i] {
				t.Errorf("%s: group %d has gone from %s to %s", what, i, before[i], now)
			}
		}
	}
	w.stop()
	w.startGateway() // knows nothing of the one before
	check("another gateway", 2)
	for i, name := range []string{"b1", "b2"} {
		w.b[name].stop()
		// Its pod is gone from the list of addresses, its node is not.
		w.gateway.Update(without(w, name))
		for g := range groups {
			write(t, volumes[g], byte(10+i))
		}
		w.eventually("groups of "+name+" are refused, and the status says why", func() bool {
			for g := range groups {
				if before[g] == name && !strings.Contains(primaries[g].Status().StateReason, "may be on "+name) {
					return false
				}
			}
			return true
		})
		for g := range groups {
			if have := w.holders(primaries[g]); len(have) != 1 {
				t.Fatalf("while %s is away, group %d is on %v", name, g, have)
			}
		}
		w.b[name].start()
		w.know()
		check("node "+name+" was away", byte(20+i))
	}
	for i := range groups {
		image, err := w.copied(primaries[i]).engine.Group(primaries[i].Name())
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := image.Volume(volumes[i].ID())
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, volumes[i]), content(t, theirs)) {
			t.Errorf("the copy of group %d differs", i)
		}
	}
}

// without are both nodes, one of them without an address.
func without(w *world, name string) map[string]string {
	addresses := map[string]string{"b1": w.b["b1"].address, "b2": w.b["b2"].address}
	addresses[name] = ""
	return addresses
}

func content(t *testing.T, v *replication.Volume) []byte {
	t.Helper()
	p := make([]byte, v.Size())
	if _, err := v.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAddressesSwapped: addresses that have come to be each other's must not begin second copies.
func TestAddressesSwapped(t *testing.T) {
	w := newWorld(t)
	g, v := w.primary("shop")
	write(t, v, 1)
	home := w.copied(g).name
	w.stop()
	w.startGateway()
	w.gateway.Update(map[string]string{"b1": w.b["b2"].address, "b2": w.b["b1"].address})
	w.eventually("the status says whom the gateway meets", func() bool {
		return strings.Contains(g.Status().StateReason, "this is node")
	})
	w.know()
	write(t, v, 2)
	if now := w.copied(g).name; now != home {
		t.Errorf("the group has gone from %s to %s", home, now)
	}
}

// TestNameOfAnotherGroup: a site has one group of a name, whichever node it is on. A peer is told which one it is only
// of its own.
func TestNameOfAnotherGroup(t *testing.T) {
	w := newWorld(t)
	for peer, want := range map[string]string{"site-a": "on node %s of site site-b is another one",
		"": "site site-b takes no group"} {
		for _, n := range w.b {
			name := "taken-" + n.name + "-by-" + peer + "x"
			if _, err := n.engine.CreateGroup(replication.GroupSpec{
				Name: name, Settings: core.Settings{Peer: peer, JournalSizeBytes: replication.MinJournalBytes},
			}); err != nil {
				t.Fatal(err)
			}
			g, _ := w.primary(name)
			reason := want
			if peer != "" {
				reason = fmt.Sprintf(want, n.name)
			}
			w.eventually("the group is refused", func() bool { return strings.Contains(g.Status().StateReason, reason) })
			if have := w.holders(g); len(have) > 0 {
				t.Errorf("it is on %v", have)
			}
		}
	}
}

// TestFailoverAndBack: the copy is promoted, the old primary hears of it through the gateway, says what was lost, and
// the way back to a site with several nodes leads to the right one.
func TestFailoverAndBack(t *testing.T) {
	w := newWorld(t)
	g, v := w.primary("shop")
	write(t, v, 1)
	home := w.copied(g)
	promoted, err := home.engine.Group("shop")
	if err != nil {
		t.Fatal(err)
	}
	// Cut off, so that there is something to lose.
	w.stop()
	write(t, v, 2)
	if _, err := promoted.Promote(true); err != nil {
		t.Fatal(err)
	}
	w.startGateway()
	w.eventually("both sides know of the divergence", func() bool {
		loss := promoted.Status().Loss
		return g.Status().State == "diverged" && loss.Exact && loss.LostWrites != nil && *loss.LostWrites > 0
	})

	// The other way round: site-a is primary again of a new group, which was the copy. Demote in order, promote there.
	back, volume := w.primary("back")
	write(t, volume, 3)
	there := w.copied(back)
	if err := back.Detach(volume.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := back.Demote(); err != nil {
		t.Fatal(err)
	}
	switched, err := there.engine.Group("back")
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the copy can be promoted without loss", func() bool {
		_, err := switched.Promote(false)
		return err == nil
	})
	w.eventually("the old primary follows", func() bool {
		return switched.Status().State == "streaming" && back.Status().Role == core.RoleSecondary
	})
	if _, err := switched.Demote(); err != nil {
		t.Fatal(err)
	}
	var reason error
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%v; site-a: %v; site-b: %v", reason, back.Status(), switched.Status())
		}
	})
	w.eventually("and takes over again", func() bool { _, reason = back.Promote(false); return reason == nil })
	w.eventually("and is followed through the gateway, by the same node", func() bool {
		return back.Status().State == "streaming"
	})
	if now := w.copied(back); now != there {
		t.Errorf("the copy is on %s, was on %s", now.name, there.name)
	}
}
