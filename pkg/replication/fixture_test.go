package replication

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

// testSite is a site on a file system in memory.
type testSite struct {
	t    *testing.T
	name string
	fs   *vfs.MemFS
	net  *link.Network
	pool *blockdev.Pool
	site *Site
	conf func(*Config)
	// before, if set, is called before each operation on the file system.
	before func(op vfs.Op, name string)
	// fails, if set, is asked before each operation whether it fails.
	fails func(op vfs.Op, name string) error
}

const patience = 30 * time.Second

func newTestSite(t *testing.T, net *link.Network, name string, conf func(*Config)) *testSite {
	t.Helper()
	s := &testSite{t: t, name: name, fs: vfs.NewMem(), net: net, conf: conf}
	s.open()
	t.Cleanup(func() { s.kill() })
	return s
}

// open starts the site on its file system, as after a crash.
func (s *testSite) open() {
	s.t.Helper()
	var err error
	var fsys vfs.FS = s.fs
	if s.before != nil {
		fsys = vfs.NewErrFS(s.fs, func(op vfs.Op, name string) error { s.before(op, name); return nil })
	}
	if s.fails != nil {
		fsys = vfs.NewErrFS(s.fs, s.fails)
	}
	if s.pool, err = blockdev.OpenPool(fsys, "/pool", blockdev.WhoReplicator); err != nil {
		s.t.Fatal(err)
	}
	cfg := Config{
		FS: fsys, Pool: s.pool, Site: s.name, Dialer: s.net.Dialer(s.name),
		PeerAddress:    func(string) string { return "memory" },
		CommitInterval: 5 * time.Millisecond, ApplyInterval: 10 * time.Millisecond, HeartbeatInterval: 5 * time.Millisecond,
	}
	if s.conf != nil {
		s.conf(&cfg)
	}
	if s.site, err = Open(cfg); err != nil {
		s.t.Fatal(err)
	}
	s.net.Attach(s.name, s.site)
}

// kill ends the site's process; its page cache, which is the file system, stays.
func (s *testSite) kill() {
	if s.site == nil {
		return
	}
	s.net.Detach(s.name)
	s.site.Kill()
	s.pool.Close()
	s.site = nil
}

// crash ends the site as a power loss does, keeping some share of what was not synced, and starts it again.
func (s *testSite) crash(unsyncedPercent int, rng *rand.Rand) {
	s.t.Helper()
	s.kill() // first: what it tells its peer has to be on the disk that is left
	s.fs = s.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: unsyncedPercent, RNG: rng})
	s.open()
}

func (s *testSite) restart() { s.t.Helper(); s.kill(); s.open() }

func (s *testSite) group(name string) *Group {
	s.t.Helper()
	g, err := s.site.Group(name)
	if err != nil {
		s.t.Fatal(err)
	}
	return g
}

// createGroup makes a primary group with volumes named v0, v1, ...
func (s *testSite) createGroup(name, peer string, volumes int, sizeBytes int64, change func(*GroupSpec)) *Group {
	s.t.Helper()
	spec := GroupSpec{Name: name, Settings: core.Settings{Peer: peer, JournalSizeBytes: MinJournalBytes}}
	if change != nil {
		change(&spec)
	}
	g, err := s.site.CreateGroup(spec)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range volumes {
		rec := s.createVolume(fmt.Sprintf("v%d", i), sizeBytes)
		if err := g.AddVolume(rec, nil); err != nil {
			s.t.Fatal(err)
		}
	}
	return g
}

func (s *testSite) createVolume(id string, sizeBytes int64) *blockdev.VolumeRecord {
	s.t.Helper()
	rec, err := s.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: sizeBytes, Replicable: true,
		Order: blockdev.OrderFlush})
	if err != nil {
		s.t.Fatal(err)
	}
	return rec
}

// orZero returns what p points to, and zero for nil.
func orZero[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

func volumeOf(t *testing.T, g *Group, id string) *Volume {
	t.Helper()
	v, err := g.Volume(id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func mustWrite(t *testing.T, v *Volume, off int64, p []byte) {
	t.Helper()
	if _, err := v.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

func mustFlush(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, v *Volume) []byte {
	t.Helper()
	p := make([]byte, v.Size())
	if _, err := v.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func block(fill byte, n int) []byte { return bytes.Repeat([]byte{fill}, n) }

// eventually fails the test unless the condition holds within the patience that a slow machine needs.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := (&Group{}).WaitFor(ctx, condition); err != nil {
		t.Fatalf("waiting until %s: %v", what, err)
	}
}

// caughtUp waits until the secondary has everything durable and may be promoted.
func caughtUp(t *testing.T, primary *Group, secondary *testSite) *Group {
	t.Helper()
	var g *Group
	eventually(t, "the secondary caught up", func() bool {
		var err error
		if g, err = secondary.site.Group(primary.Name()); err != nil {
			return false
		}
		p, s := primary.Status(), g.Status()
		return p.State == "streaming" && s.Promotable && s.DurableOrdinal == p.HeadOrdinal &&
			orZero(p.AcknowledgedOrdinal) == p.HeadOrdinal
	})
	return g
}

func sameContent(t *testing.T, a, b *Group) {
	t.Helper()
	for _, v := range a.Volumes() {
		if !bytes.Equal(content(t, v), content(t, volumeOf(t, b, v.ID()))) {
			t.Fatalf("volume %s differs between the sites", v.ID())
		}
	}
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// role is a group's role as its core has it.
func role(g *Group) core.Role {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Role
}
