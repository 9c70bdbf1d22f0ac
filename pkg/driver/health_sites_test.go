package driver

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability/capabilitytest"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/sidecar"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const patience = 30 * time.Second

// replicator is a real one on a pool in memory, served on a Unix socket.
type siteReplicator struct {
	t        *testing.T
	endpoint string
	site     *replication.Site
}

// startReplicator opens a site on a file system. before is called before each operation of it on a file.
func startReplicator(t *testing.T, net *link.Network, name string, mem *vfs.MemFS, poolDir string,
	before func(vfs.Op, string) error) *siteReplicator {
	t.Helper()
	fsys := vfs.NewErrFS(mem, before)
	pool, err := blockdev.OpenPool(fsys, poolDir, blockdev.WhoReplicator)
	if err != nil {
		t.Fatal(err)
	}
	site, err := replication.Open(replication.Config{
		FS: fsys, Pool: pool, Site: name, Dialer: net.Dialer(name), PeerAddress: func(string) string { return "memory" },
		CommitInterval: 5 * time.Millisecond, ApplyInterval: 10 * time.Millisecond, HeartbeatInterval: 5 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	net.Attach(name, site)
	dir := t.TempDir()
	r := &siteReplicator{t: t, endpoint: "unix://" + filepath.Join(dir, "r.sock"), site: site}
	svc := sidecar.New(sidecar.Options{SiteName: name, Site: site, Pool: pool, ShimDir: filepath.Join(dir, "shim"),
		Metrics: sidecar.NewMetrics(site)})
	listener, err := unixsocket.Listen(r.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	svc.Register(server)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := svc.Close(); err != nil {
			t.Error(err)
		}
		net.Detach(name)
		site.Kill()
		pool.Close()
	})
	return r
}

// group waits until a site has a group, and returns it.
func (r *siteReplicator) group(name string) *replication.Group {
	r.t.Helper()
	var g *replication.Group
	eventually(r.t, "there is a group", func() bool {
		var err error
		g, err = r.site.Group(name)
		return err == nil
	})
	return g
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := (&replication.Group{}).WaitFor(ctx, condition); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// become waits until the conditions of a volume are these.
func (h *node) become(id string, want ...string) {
	h.t.Helper()
	var got []string
	eventually(h.t, strings.Join(append([]string{"the conditions are"}, want...), " "), func() bool {
		got = summary(h.controllerHealth(id))
		return slices.Equal(got, want)
	})
}

func write(t *testing.T, g *replication.Group, id string, off int64) {
	t.Helper()
	v, err := g.Volume(id)
	if err == nil {
		_, err = v.WriteAt([]byte("written"), off)
	}
	if err == nil {
		err = v.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestHealthOfReplication brings the conditions of replication about with two real replicators, and undoes what can be
// undone.
func TestHealthOfReplication(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	h := &node{machine: newMachine(), t: t, mem: vfs.NewMem(), dir: t.TempDir()}
	var diskFull atomic.Bool
	east := startReplicator(t, net, "east", h.mem, "/slipstream-test-pool", func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && diskFull.Load() && strings.HasPrefix(name, "/slipstream-test-pool/volumes/") {
			return syscall.ENOSPC
		}
		return nil
	})
	// The other site acknowledges nothing while it is held: the sync cannot end.
	held := make(chan struct{})
	release := sync.OnceFunc(func() { close(held) })
	west := startReplicator(t, net, "west", vfs.NewMem(), "/pool", func(op vfs.Op, name string) error {
		if op == vfs.OpDatasync && strings.HasSuffix(name, ".seg") {
			<-held
		}
		return nil
	})
	// before west ends, which waits for its disk
	t.Cleanup(release)
	h.sidecar = &fakeSidecar{endpoint: east.endpoint, shimDir: filepath.Join(h.dir, "shim")} // where it is, and no more
	h.start(h.mem)
	h.sidecar = nil
	t.Cleanup(h.stop)
	h.d.sidecar.Patience = patience

	// The first sync, held up at the other site. The volume has content, so that there is something to copy.
	id := h.create("v", capabilitytest.Mount(capabilitytest.Writer, ""),
		map[string]string{parameter.KeyReplicable: "true"})
	image, err := h.d.store.Pool.OpenImage(id)
	h.must(err)
	_, err = image.WriteAt([]byte("content"), mib)
	h.must(err)
	h.must(image.Close())
	_, err = h.d.sidecar.JoinGroup(context.Background(), &sidecarpb.JoinGroupRequest{Group: "shop", VolumeId: id,
		Create: true, Settings: &sidecarpb.GroupSettings{Remote: new("west")}})
	h.must(err)
	h.become(id, "DEGRADED ReplicationSyncing")
	release()
	h.become(id)
	h.wantStorage()
	g := east.group("shop")
	write(t, g, id, 0)
	eventually(t, "the copy can be promoted", func() bool {
		s := west.group("shop").Status()
		return s.Promotable && s.DurableOrdinal == g.Status().HeadOrdinal
	})

	// A disk that is full under the images.
	diskFull.Store(true)
	write(t, g, id, 4096)
	h.become(id, "DEGRADED ApplyStuck")
	h.wantWords(h.controllerHealth(id), "shop", "no space")
	diskFull.Store(false)
	h.become(id)

	// No contact.
	net.Cut("east")
	h.become(id, "DEGRADED ReplicationSuspended")
	h.wantWords(h.controllerHealth(id), "shop", "west")
	h.wantStorage("STORAGE_DEGRADED ReplicationSuspended")
	if entries := h.storageHealth(); len(entries) == 1 && !strings.Contains(entries[0].GetMessage(), "shop (west)") {
		t.Errorf("%v does not name the group and its peer", entries)
	}

	// Behind its target, which was not set before.
	target := func(millis int64) {
		t.Helper()
		err := h.d.sidecar.ModifyGroup(context.Background(), &sidecarpb.ModifyGroupRequest{
			Name: "shop", Settings: &sidecarpb.GroupSettings{RpoTargetMillis: &millis},
		})
		h.must(err)
	}
	write(t, g, id, 12288)
	target(1)
	h.become(id, "DEGRADED ReplicationSuspended", "DEGRADED ReplicationLagging")
	target(time.Hour.Milliseconds())
	h.become(id, "DEGRADED ReplicationSuspended")
	target(0)
	net.Heal("east")
	h.become(id)
	h.wantStorage()

	// A planned move, begun and taken back.
	_, err = g.Demote()
	h.must(err)
	h.become(id, "INACCESSIBLE GroupDemoted")
	h.wantWords(h.controllerHealth(id), "slipctl group promote shop")
	_, err = g.Promote(true)
	h.must(err)
	h.become(id)

	// Split brain.
	net.Cut("east")
	write(t, g, id, 8192)
	other := west.group("shop")
	_, err = other.Promote(true)
	h.must(err)
	write(t, other, id, 8192)
	net.Heal("east")
	h.become(id, "DEGRADED ReplicationDiverged")
	h.wantWords(h.controllerHealth(id), "shop", "west", "slipctl group status shop", "both took writes")
	list := h.listHealth()
	if len(list) != 1 || list[0] != id {
		t.Errorf("list of abnormal volumes: %q", list)
	}
}

func (h *node) listHealth() []string {
	h.t.Helper()
	response, err := h.c.ControllerListVolumeHealth(context.Background(), nil)
	h.must(err)
	return entryIDs(response)
}
