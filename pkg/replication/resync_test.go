package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// batchGate is a dialer whose streams pass some batches in all, and then wait.
type batchGate struct {
	link.Dialer
	mu    sync.Mutex
	left  int
	moved broadcast
}

// allow lets n batches more pass.
func (d *batchGate) allow(n int) {
	d.mu.Lock()
	d.left += n
	d.mu.Unlock()
	d.moved.send()
}

// close makes all streams wait, but for n batches.
func (d *batchGate) close(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

func (d *batchGate) used() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.left <= 0
}

func (d *batchGate) Dial(ctx context.Context, peer, address string) (link.Stream, error) {
	stream, err := d.Dialer.Dial(ctx, peer, address)
	return &countedStream{Stream: stream, gate: d, ctx: ctx}, err
}

type countedStream struct {
	link.Stream
	gate *batchGate
	ctx  context.Context
}

func (s *countedStream) Send(m *linkpb.ToSecondary) error {
	if m.GetBatch() == nil {
		return s.Stream.Send(m)
	}
	for {
		moved := s.gate.moved.wait()
		s.gate.mu.Lock()
		passes := s.gate.left > 0
		if passes {
			s.gate.left--
		}
		s.gate.mu.Unlock()
		if passes {
			return s.Stream.Send(m)
		}
		select {
		case <-moved:
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// groupState is what a group's volumes are at one ordinal.
type groupState struct {
	ordinal uint64
	volumes map[string][]byte
}

func stateOf(t *testing.T, g *Group) groupState {
	t.Helper()
	s := groupState{ordinal: g.journal.Durable(), volumes: map[string][]byte{}}
	for _, v := range g.Volumes() {
		s.volumes[v.id] = content(t, v)
	}
	return s
}

// check demands that a group is what it was, members and sizes included.
func (s *groupState) check(g *Group) error {
	if head := g.journal.Head(); head != s.ordinal {
		return fmt.Errorf("it is at ordinal %d, not at %d", head, s.ordinal)
	}
	if n := len(g.Volumes()); n != len(s.volumes) {
		return fmt.Errorf("it has %d volumes, not %d", n, len(s.volumes))
	}
	for id, want := range s.volumes {
		v, err := g.Volume(id)
		if err != nil {
			return err
		}
		got := make([]byte, v.Size())
		if _, err := v.ReadAt(got, 0); err != nil {
			return err
		}
		if len(got) != len(want) {
			return fmt.Errorf("volume %s has %d bytes, not %d", id, len(got), len(want))
		}
		if i := firstDifference(got, want); i >= 0 {
			return fmt.Errorf("volume %s: offset %d (extent %d) is %#x instead of %#x", id, i, i/changemap.ExtentBytes,
				got[i], want[i])
		}
		rec, err := g.cfg.Pool.Get(id)
		if err != nil {
			return err
		}
		if rec.Group != g.Name() || rec.Secondary || rec.SizeBytes != int64(len(want)) {
			return fmt.Errorf("the record of volume %s says %+v", id, rec)
		}
	}
	return nil
}

// resyncPair is a primary whose peer has a whole copy, and a resync of it that stops in the middle.
type resyncPair struct {
	t    *testing.T
	rng  *rand.Rand
	net  *link.Network
	gate *batchGate
	a, b *testSite
	g    *Group
	// before is the copy before the resync.
	before groupState
	// keeps: no volume leaves during the resync.
	keeps bool
}

const resyncVolumeBytes = 2 << 20

func newResyncPair(t *testing.T, rng *rand.Rand) *resyncPair {
	t.Helper()
	p := &resyncPair{t: t, rng: rng, net: link.NewNetwork(nil)}
	t.Cleanup(p.net.Close)
	p.gate = &batchGate{Dialer: p.net.Dialer("a"), left: 1 << 30}
	p.b = newTestSite(t, p.net, "b", nil)
	p.a = newTestSite(t, p.net, "a", func(c *Config) { c.Dialer = p.gate })
	p.g = p.a.createGroup("shop", "b", 3, resyncVolumeBytes, nil)
	p.write(60)
	mustFlush(t, p.g.Volumes()[0])
	p.before = stateOf(t, caughtUp(t, p.g, p.b))
	return p
}

func (p *resyncPair) write(n int) {
	p.t.Helper()
	for range n {
		volumes := p.g.Volumes()
		v := volumes[p.rng.IntN(len(volumes))]
		off := p.rng.Int64N(v.Size()/4096) * 4096
		n := min(v.Size()-off, (1+p.rng.Int64N(16))*4096)
		switch p.rng.IntN(8) {
		case 0:
			if err := v.Discard(off, n); err != nil {
				p.t.Fatal(err)
			}
		default:
			mustWrite(p.t, v, off, block(byte(1+p.rng.IntN(255)), int(n)))
		}
	}
}

// begin writes, marks extents for a resync, changes members, and lets some batches of the resync pass.
func (p *resyncPair) begin(batches int) {
	p.t.Helper()
	p.gate.close(0)
	p.net.Cut("a") // so that no record of these is on its way before the resync begins
	eventually(p.t, "the stream has ended", func() bool { return !p.g.Status().Connected })
	p.write(20)
	for _, v := range p.g.Volumes() {
		for off := int64(0); off < v.Size(); off += changemap.ExtentBytes {
			if p.rng.IntN(2) == 0 {
				markExtent(p.t, v, off)
			}
		}
	}
	if !p.keeps {
		if err := p.g.RemoveVolume("v2", nil); err != nil {
			p.t.Fatal(err)
		}
	}
	if err := p.g.Resize("v1", resyncVolumeBytes+(1<<20)); err != nil {
		p.t.Fatal(err)
	}
	rec := p.a.contentVolume("v3", resyncVolumeBytes, block(9, 256<<10))
	if err := p.g.AddVolume(rec, nil); err != nil {
		p.t.Fatal(err)
	}
	p.write(20)
	mustFlush(p.t, p.g.Volumes()[0])
	p.gate.close(batches)
	p.net.Heal("a")
	p.gate.moved.send()
	eventually(p.t, "the batches have passed", p.gate.used)
}

// openAlone opens a site on a file system, with no peer that it could reach.
func openAlone(fs vfs.FS, name string) (*Site, *blockdev.Pool, error) {
	pool, err := blockdev.OpenPool(fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		return nil, nil, err
	}
	site, err := Open(Config{FS: fs, Pool: pool, Site: name, CommitInterval: 5 * time.Millisecond,
		ApplyInterval: 5 * time.Millisecond})
	if err != nil {
		pool.Close()
	}
	return site, pool, err
}

// waitPromoted waits for a group whose promotion was decided before a crash.
func waitPromoted(site *Site, name string) (*Group, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var g *Group
	err := (&Group{}).WaitFor(ctx, func() bool {
		var err error
		g, err = site.Group(name)
		return err == nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w; broken: %v", err, site.Broken())
	}
	return g, nil
}

// promoteAfterCrash opens a site after a power loss in the middle of a sync or of a promotion, and demands that the
// group can be promoted and is then what it was before the sync, or what it is after it.
func promoteAfterCrash(fs *vfs.MemFS, states ...groupState) error {
	site, pool, err := openAlone(fs, "b")
	if err != nil {
		return err
	}
	defer pool.Close()
	defer site.Kill()
	g, err := waitPromoted(site, "shop")
	if err != nil {
		return err
	}
	if st := g.Status(); !st.Promotable {
		return fmt.Errorf("it cannot be promoted: %v", st)
	}
	if _, err := g.Promote(true); err != nil {
		return err
	}
	if g, err = site.Group("shop"); err != nil {
		return err
	}
	st := g.Status()
	if st.Role != core.RolePrimary || st.Loss == nil || st.Loss.RecoveredOrdinal != st.HeadOrdinal {
		return fmt.Errorf("promoted, it is %v", st)
	}
	var errs []error
	for _, s := range states {
		err := s.check(g)
		if err == nil {
			return writesAfterwards(g)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// writesAfterwards demands that a promoted group takes writes, and has them.
func writesAfterwards(g *Group) error {
	v := g.Volumes()[0]
	want := block(0xee, 4096)
	if _, err := v.WriteAt(want, 8192); err != nil {
		return err
	}
	if err := v.Flush(); err != nil {
		return err
	}
	if err := g.applier.applyAll(context.Background()); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if _, err := v.ReadAt(got, 8192); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("a write after the promotion is not there")
	}
	return nil
}

// In the middle of a resync, with a volume that left, one that grew and one that came, the secondary is promoted by
// force. It opens as it was before the resync, and power losses before each operation on its disk, of the resync and of
// the promotion, change nothing about that. The old primary then finds the fork, and the loss is exact.
func TestPromoteInTheMiddleOfAResync(t *testing.T) {
	for _, batches := range []int{1, 3, 8, 1 << 20} {
		t.Run(fmt.Sprint(batches), func(t *testing.T) { testPromoteInResync(t, batches) })
	}
}

func testPromoteInResync(t *testing.T, batches int) {
	rng := seeded(t)
	p := newResyncPair(t, rng)
	c := &crashing{mem: p.b.fs, rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), every: 1}
	if testing.Short() {
		c.every = 16
	}
	p.b.kill()
	p.b.before = func(op vfs.Op, name string) { _ = c.before(op, name) }
	p.b.open()
	caughtUp(t, p.g, p.b)
	c.seen = rng.IntN(c.every)
	c.armed.Store(true)
	whole := batches == 1<<20
	if whole {
		// The resync ends: nothing of it is left, and the copy is what the primary is.
		p.begin(0)
		p.gate.allow(1 << 20)
		g := caughtUp(t, p.g, p.b)
		c.armed.Store(false)
		sameContent(t, p.g, g)
		if sets := g.preserved.of(ownerResync); len(sets) != 0 {
			t.Fatalf("%d sets are left of a resync that ended", len(sets))
		}
		if rec, err := p.b.pool.Get("v2"); err != nil || rec.Group != "" {
			t.Fatalf("the volume that left: %+v, %v", rec, err)
		}
		after := stateOf(t, p.g)
		p.b.kill()
		judgeCrashes(t, c.points, func(fs *vfs.MemFS) error { return promoteAfterCrash(fs, p.before, after) })
		return
	}
	p.begin(batches)
	eventually(t, "the resync has begun", func() bool { return p.b.group("shop").Status().State == "syncing" })
	time.Sleep(20 * time.Millisecond) // what passed is applied, or is not
	g := p.b.group("shop")
	if st := g.Status(); !st.Promotable || st.StateReason == "" {
		t.Fatalf("in the middle of a resync: %v", st)
	}
	if _, err := g.Promote(false); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("a planned promotion in the middle of a resync: %v", err)
	}
	loss, err := g.Promote(true)
	if err != nil {
		t.Fatal(err)
	}
	c.armed.Store(false)
	if loss.RecoveredOrdinal != p.before.ordinal {
		t.Fatalf("recovered ordinal %d, the resync began at %d", loss.RecoveredOrdinal, p.before.ordinal)
	}
	g = p.b.group("shop")
	if err := p.before.check(g); err != nil {
		t.Fatal(err)
	}
	if sets := g.preserved.of(ownerResync); len(sets) != 0 {
		t.Fatalf("%d sets are left of a promotion that ended", len(sets))
	}
	if rec, err := p.b.pool.Get("v3"); err == nil && rec.Group != "" {
		t.Fatalf("the volume that came with the resync: %+v", rec)
	}
	p.gate.allow(1 << 20)
	lost := p.g.journal.Head() - p.before.ordinal
	eventually(t, "the loss is exact", func() bool {
		st := p.b.group("shop").Status()
		return st.Loss.Exact && *st.Loss.LostOrdinals == lost && p.g.Status().State == "diverged"
	})
	judgeCrashes(t, c.points, func(fs *vfs.MemFS) error { return promoteAfterCrash(fs, p.before) })
}

func judgeCrashes(t *testing.T, points []crashPoint, judge func(*vfs.MemFS) error) {
	t.Helper()
	errs := make([]error, len(points))
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, point := range points {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = judge(point.fs)
			<-slots
		})
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("power loss before operation %s, with %d%% of the unsynced: %v", points[i].op, points[i].percent, err)
		}
	}
	t.Logf("%d power losses", len(points))
}

// A site that gives way after a fork is promoted by force while it undoes its writes. It opens as it was before: with
// all that it wrote past the fork.
func TestPromoteInTheMiddleOfAYield(t *testing.T) {
	rng := seeded(t)
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	gate := &batchGate{Dialer: net.Dialer("site-b"), left: 1 << 30}
	a := newTestSite(t, net, "site-a", nil)
	b := newTestSite(t, net, "site-b", func(c *Config) { c.Dialer = gate })
	g := a.createGroup("shop", "site-b", 2, shopBytes, nil)
	writeSome(t, g, rng, 40)
	caughtUp(t, g, b)
	net.Cut("site-a")
	if _, err := b.group("shop").Promote(true); err != nil {
		t.Fatal(err)
	}
	writeSome(t, g, rng, 30)
	writeSome(t, b.group("shop"), rng, 20)
	net.Heal("site-a")
	awaitState(t, a, core.StateDiverged)
	before := stateOf(t, g)
	gate.close(2)
	mustYield(t, a)
	eventually(t, "the undoing has begun", func() bool {
		return gate.used() && a.group("shop").Status().Before != nil
	})
	fs := a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
	site, pool, err := openAlone(fs, "site-a")
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer site.Kill()
	if g, err = waitPromoted(site, "shop"); err != nil {
		t.Fatal(err)
	}
	for _, promoted := range []*Group{g, a.group("shop")} {
		if _, err := promoted.Promote(true); err != nil {
			t.Fatal(err)
		}
		promoted, err := promoted.site.Group("shop")
		if err != nil {
			t.Fatal(err)
		}
		if err := before.check(promoted); err != nil {
			t.Fatal(err)
		}
		if err := writesAfterwards(promoted); err != nil {
			t.Fatal(err)
		}
	}
	gate.allow(1 << 20)
	awaitState(t, a, core.StateDiverged) // two forks again, and neither overwrites the other
}

// The secondary was promoted in the middle of a resync, and the old primary gives way. It had forgotten what its peer
// had acknowledged in the resync, changed members meanwhile, and becomes a copy of the new primary all the same.
func TestYieldAfterAPromotionInAResync(t *testing.T) {
	for _, batches := range []int{8, 40} {
		t.Run(fmt.Sprint(batches), func(t *testing.T) {
			p := newResyncPair(t, seeded(t))
			p.keeps = true // what left its group at a is a volume of a, which no copy takes the place of
			p.begin(batches)
			eventually(t, "the resync has begun", func() bool { return p.b.group("shop").Status().Before != nil })
			if _, err := p.b.group("shop").Promote(true); err != nil {
				t.Fatal(err)
			}
			g := p.b.group("shop")
			if err := p.before.check(g); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, volumeOf(t, g, "v2"), 0, block(77, 8192))
			mustFlush(t, g.Volumes()[0])
			p.gate.allow(1 << 20)
			awaitState(t, p.a, core.StateDiverged)
			mustYield(t, p.a)
			copied := caughtUp(t, p.b.group("shop"), p.a)
			sameContent(t, p.b.group("shop"), copied)
			if n := len(copied.Volumes()); n != 3 {
				t.Fatalf("the copy has %d volumes", n)
			}
		})
	}
}
