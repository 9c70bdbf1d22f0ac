package shards

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

const (
	patience    = 30 * time.Second
	blockBytes  = 4096
	volumeBytes = 16 << 20
)

// cluster is two sites with one node for each shard, in one process: shard i is on node i of both.
type cluster struct {
	t     *testing.T
	sites map[string][]*member
}

// member is a node.
type member struct {
	c      *cluster
	site   string
	number int
	fs     *vfs.MemFS
	net    *link.Network

	mu      sync.Mutex
	pool    *blockdev.Pool
	engine  *replication.Site
	node    *Node
	deliver func(*shardpb.DeliverRequest) error // is asked before each message to this node
	hook    func(*shardpb.DoRequest) error      // before each part of a command
	fix     func(*shardpb.FixEpochRequest) error
}

func newCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	c := &cluster{t: t, sites: map[string][]*member{}}
	for i := range nodes {
		net := link.NewNetwork(nil)
		t.Cleanup(net.Close)
		for _, site := range []string{"a", "b"} {
			c.sites[site] = append(c.sites[site], &member{c: c, site: site, number: i, fs: vfs.NewMem(), net: net})
		}
	}
	for _, site := range c.sites {
		for _, m := range site {
			m.start()
			t.Cleanup(m.kill)
		}
	}
	return c
}

// start starts the node's process on what is on its disk.
func (m *member) start() {
	m.c.t.Helper()
	pool, err := blockdev.OpenPool(m.fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		m.c.t.Fatal(err)
	}
	engine, err := replication.Open(replication.Config{
		FS: m.fs, Pool: pool, Site: m.site, Dialer: m.net.Dialer(m.site),
		PeerAddress:    func(string) string { return "memory" },
		CommitInterval: 5 * time.Millisecond, ApplyInterval: 10 * time.Millisecond, HeartbeatInterval: 5 * time.Millisecond,
		RedialInterval: 2 * time.Millisecond,
	})
	if err != nil {
		m.c.t.Fatal(err)
	}
	m.net.Attach(m.site, engine)
	node := New(Options{Name: fmt.Sprintf("%s%d", m.site, m.number), Site: engine, PollInterval: 50 * time.Millisecond,
		Neighbours: func(context.Context) (others []Neighbour, err error) {
			for _, other := range m.c.sites[m.site] {
				if other != m {
					others = append(others, other)
				}
			}
			return others, nil
		}})
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pool, m.engine, m.node = pool, engine, node
}

// kill ends the node's process; its page cache stays.
func (m *member) kill() {
	m.mu.Lock()
	pool, engine, node := m.pool, m.engine, m.node
	m.pool, m.engine, m.node = nil, nil, nil
	m.mu.Unlock()
	if engine == nil {
		return
	}
	m.net.Detach(m.site)
	node.Close()
	engine.Kill()
	pool.Close()
}

// crash ends the node as a power loss does.
func (m *member) crash(rng *rand.Rand) {
	m.kill() // first: what it tells other nodes has to be on the disk that is left
	m.fs = m.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
}

func (m *member) server() (*Server, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.node == nil {
		return nil, status.Error(codes.Unavailable, "the node is down")
	}
	return m.node.Server(), nil
}

func (m *member) Address() string { return fmt.Sprintf("%s%d", m.site, m.number) }

func (m *member) ListShards(ctx context.Context, r *shardpb.ListShardsRequest) (*shardpb.ListShardsResponse, error) {
	s, err := m.server()
	if err != nil {
		return nil, err
	}
	return s.ListShards(ctx, r)
}

func (m *member) Deliver(ctx context.Context, r *shardpb.DeliverRequest) (*shardpb.DeliverResponse, error) {
	m.mu.Lock()
	hook := m.deliver
	m.mu.Unlock()
	if hook != nil {
		if err := hook(r); err != nil {
			return nil, err
		}
	}
	s, err := m.server()
	if err != nil {
		return nil, err
	}
	return s.Deliver(ctx, r)
}

func (m *member) Do(ctx context.Context, r *shardpb.DoRequest) (*shardpb.DoResponse, error) {
	m.mu.Lock()
	hook := m.hook
	m.mu.Unlock()
	if hook != nil {
		if err := hook(r); err != nil {
			return nil, err
		}
	}
	s, err := m.server()
	if err != nil {
		return nil, err
	}
	return s.Do(ctx, r)
}

func (m *member) FixEpoch(ctx context.Context, r *shardpb.FixEpochRequest) (*shardpb.FixEpochResponse, error) {
	m.mu.Lock()
	hook := m.fix
	m.mu.Unlock()
	if hook != nil {
		if err := hook(r); err != nil {
			return nil, err
		}
	}
	s, err := m.server()
	if err != nil {
		return nil, err
	}
	return s.FixEpoch(ctx, r)
}

func (m *member) ReleaseEpoch(ctx context.Context,
	r *shardpb.ReleaseEpochRequest) (*shardpb.ReleaseEpochResponse, error) {
	s, err := m.server()
	if err != nil {
		return nil, err
	}
	return s.ReleaseEpoch(ctx, r)
}

func (m *member) groupName() string { return fmt.Sprintf("shop-%d", m.number) }

// group returns the node's shard, or nil.
func (m *member) group() *replication.Group {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.engine == nil {
		return nil
	}
	g, err := m.engine.Group(m.groupName())
	if err != nil {
		return nil
	}
	return g
}

// role is that of the node's shard; zero while it is not open, as it is while a promotion restores its images.
func (m *member) role() (role core.Role) {
	if g := m.group(); g != nil {
		role = g.Status().Role
	}
	return role
}

// stop ends all nodes.
func (c *cluster) stop() {
	for _, site := range c.sites {
		for _, m := range site {
			m.kill()
		}
	}
}

// create makes the shards at site a, each with one volume.
func (c *cluster) create(change func(*core.Settings)) {
	c.t.Helper()
	for i, m := range c.sites["a"] {
		spec := replication.GroupSpec{Name: m.groupName(), Settings: core.Settings{Peer: "b",
			JournalSizeBytes: replication.MinJournalBytes,
			Shard:            core.Shard{Group: "shop", ID: epoch.ShardID(i), EpochMillis: 100}}}
		if change != nil {
			change(&spec.Settings)
		}
		g, err := m.engine.CreateGroup(spec)
		if err != nil {
			c.t.Fatal(err)
		}
		rec, err := m.pool.Create(blockdev.VolumeRecord{ID: fmt.Sprintf("v%d", i), Name: fmt.Sprintf("v%d", i),
			SizeBytes: volumeBytes, Replicable: true, Order: blockdev.OrderAck})
		if err != nil {
			c.t.Fatal(err)
		}
		if err := g.AddVolume(rec, nil); err != nil {
			c.t.Fatal(err)
		}
	}
}

// shown is the epoch that a node's copy shows.
func (m *member) shown() epoch.ID {
	if g := m.group(); g != nil {
		return g.Shard().Progress().Shown
	}
	return epoch.ID{}
}

// waitShown waits until all copies at a site show an epoch, the same.
func (c *cluster) waitShown(site string) epoch.ID {
	c.t.Helper()
	var first epoch.ID
	c.eventually("all copies show one epoch", func() bool {
		first = c.sites[site][0].shown()
		for _, m := range c.sites[site] {
			if g := m.group(); g == nil || first.IsZero() || m.shown() != first ||
				len(g.Shard().Progress().Shards) != len(c.sites[site]) {
				return false
			}
		}
		return true
	})
	return first
}

func (c *cluster) eventually(what string, condition func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, site := range c.sites {
				for _, m := range site {
					if g := m.group(); g != nil {
						id, _ := g.Shard().Identity()
						c.t.Logf("%s%d: %+v %+v %v", m.site, m.number, id, g.Shard().Progress(), g.Status())
					}
				}
			}
			c.t.Fatalf("waiting until %s", what)
		}
	}
}

// chain writes one after the other, on the shards in turn: each write is caused by the one before, whose answer the
// writer has. Write k is on shard k%n, in block k/n.
type chain struct {
	c    *cluster
	site string
	next uint64
}

// write does the next write, and reports whether it was answered.
func (w *chain) write() error {
	members := w.c.sites[w.site]
	g := members[w.next%uint64(len(members))].group()
	if g == nil {
		return replication.ErrClosed
	}
	v, err := g.Volume(fmt.Sprintf("v%d", w.next%uint64(len(members))))
	if err != nil {
		return err
	}
	block := make([]byte, blockBytes)
	binary.LittleEndian.PutUint64(block, w.next+1)
	off := int64(w.next/uint64(len(members))) % (volumeBytes / blockBytes) * blockBytes
	if _, err := v.WriteAt(block, off); err != nil {
		return err
	}
	done := make(chan error, 1)
	if lead := v.Commit(func(err error) { done <- err }); lead != nil {
		lead()
	}
	if err := <-done; err != nil {
		return err
	}
	w.next++
	return nil
}

// wholeAt fails the test unless a node has all writes of the chain that are on its shard. The blocks were written once.
func (w *chain) wholeAt(m *member) {
	w.c.t.Helper()
	v, err := m.group().Volume(fmt.Sprintf("v%d", m.number))
	if err != nil {
		w.c.t.Fatal(err)
	}
	n := uint64(len(w.c.sites[w.site]))
	p := make([]byte, blockBytes)
	for k := uint64(m.number); k < w.next; k += n {
		if _, err := v.ReadAt(p, int64(k/n)*blockBytes); err != nil || binary.LittleEndian.Uint64(p) != k+1 {
			w.c.t.Fatalf("write %d is not there: %v", k+1, err)
		}
	}
}

// check reads the copies at a site, and returns how many writes of a chain they have. A write whose cause is missing
// fails the test.
func (c *cluster) check(site string) uint64 {
	c.t.Helper()
	members := c.sites[site]
	have, last := map[uint64]bool{}, uint64(0)
	for i, m := range members {
		v, err := m.group().Volume(fmt.Sprintf("v%d", i))
		if err != nil {
			c.t.Fatal(err)
		}
		p := make([]byte, volumeBytes)
		if _, err := v.ReadAt(p, 0); err != nil {
			c.t.Fatal(err)
		}
		for off := 0; off < len(p); off += blockBytes {
			if k := binary.LittleEndian.Uint64(p[off:]); k != 0 {
				have[k] = true
				last = max(last, k)
			}
		}
	}
	for k := uint64(1); k <= last; k++ {
		if !have[k] {
			c.t.Fatalf("write %d is there, and write %d that caused it is not", last, k)
		}
	}
	return last
}

// promote promotes the group at a site, by way of one of its nodes.
func (c *cluster) promote(site string, by int, force bool) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.sites[site][by].node.Promote(ctx, "shop", force); err != nil {
		c.t.Fatal(err)
	}
}

// delayMessages delays messages between nodes: by milliseconds, half of them for longer than a write takes on a busy
// machine, and now and then the commit of an epoch for longer than answers are held.
func (c *cluster) delayMessages(rng *rand.Rand) {
	var mu sync.Mutex
	draw := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return rng.IntN(n)
	}
	for _, m := range c.sites["a"] {
		m.mu.Lock()
		m.deliver = func(r *shardpb.DeliverRequest) error {
			time.Sleep([]time.Duration{0, 1, 3, 12, 12, 12}[draw(6)] * time.Millisecond)
			if r.GetCommit() != nil && draw(10) == 0 {
				time.Sleep(70 * time.Millisecond)
			}
			return nil
		}
		m.mu.Unlock()
	}
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}
