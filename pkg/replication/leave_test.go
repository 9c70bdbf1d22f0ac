package replication

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A volume in use leaves only through exclusive; what it held is in its image at the instant that leave returns, and
// the group goes on without it.
func TestLeaveInUse(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	v, err := g.Attach("v0")
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	caughtUp(t, g, b)
	if err := g.RemoveVolume("v0", nil); !errors.Is(err, ErrInUse) {
		t.Fatalf("removing a volume in use: %v", err)
	}
	refused := errors.New("not now")
	if err := g.RemoveVolume("v0", func(func() error) error { return refused }); !errors.Is(err, refused) {
		t.Fatal(err)
	}
	mustWrite(t, v, 4096, block('b', 4096)) // still a member
	image, err := a.pool.OpenImage("v0")
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	err = g.RemoveVolume("v0", func(leave func() error) error {
		mustWrite(t, v, 8192, block('c', 4096)) // the last one that was in flight
		if err := leave(); err != nil {
			return err
		}
		p := make([]byte, 12288)
		if _, err := image.ReadAt(p, 0); err != nil || p[0] != 'a' || p[4096] != 'b' || p[8192] != 'c' {
			t.Errorf("the image has %q %q %q: %v", p[0], p[4096], p[8192], err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(g.members.attached()); n != 0 {
		t.Errorf("%d attached volumes", n)
	}
	if rec, err := a.pool.Get("v0"); err != nil || rec.Group != "" || rec.Remote != "" {
		t.Errorf("%v, %v", rec, err)
	}
	mustWrite(t, volumeOf(t, g, "v1"), 0, block('e', 4096))
	mustFlush(t, volumeOf(t, g, "v1"))
	gb := caughtUp(t, g, b)
	sameContent(t, g, gb)
	// Its copy stays, as it was when it left, and is of no group.
	rec, err := b.pool.Get("v0")
	if err != nil || !rec.Secondary || rec.Group != "" || rec.Remote != "site-a" {
		t.Fatalf("%v, %v", rec, err)
	}
	copied, err := b.pool.OpenImage("v0")
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	p := make([]byte, 12288)
	if _, err := copied.ReadAt(p, 0); err != nil || p[0] != 'a' || p[4096] != 'b' || p[8192] != 'c' {
		t.Errorf("the copy has %q %q %q: %v", p[0], p[4096], p[8192], err)
	}
}

// A volume that goes to another group takes its copy along, from nothing: what the volume has lost since must not come
// back in the copy, whichever group's stream the peer hears first.
func TestCopyGoesToTheNextGroup(t *testing.T) {
	for _, tc := range []struct {
		name   string
		delete bool // the first group, before the peer has heard that the volume left
		back   bool // into the first group again
	}{{name: "move"}, {name: "first group gone", delete: true}, {name: "and back", back: true}} {
		t.Run(tc.name, func(t *testing.T) {
			net, a, b := pair(t)
			g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
			mustWrite(t, volumeOf(t, g, "v0"), 128<<10, block('o', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			caughtUp(t, g, b)
			// In sync before, so that no initial sync mends what joining forgets.
			next := a.createGroup("next", "site-b", 0, 0, nil)
			caughtUp(t, next, b)
			net.Cut("site-a")
			if err := volumeOf(t, g, "v0").Discard(0, 1<<20); err != nil {
				t.Fatal(err)
			}
			if err := g.RemoveVolume("v0", nil); err != nil {
				t.Fatal(err)
			}
			if tc.delete {
				if err := a.site.DeleteGroup("shop", false); err != nil {
					t.Fatal(err)
				}
			}
			join := func(g *Group) {
				rec, err := a.pool.Get("v0")
				if err != nil {
					t.Fatal(err)
				}
				if err := g.AddVolume(rec, nil); err != nil {
					t.Fatal(err)
				}
			}
			join(next)
			if tc.back {
				if err := next.RemoveVolume("v0", nil); err != nil {
					t.Fatal(err)
				}
				join(g)
				next = g
			}
			mustWrite(t, volumeOf(t, next, "v0"), 0, block('n', 4096))
			mustFlush(t, volumeOf(t, next, "v0"))
			net.Heal("site-a")
			sameContent(t, next, caughtUp(t, next, b))
			if tc.back {
				caughtUp(t, a.group("next"), b)
			}
			rec, err := b.pool.Get("v0")
			if err != nil || rec.Group != next.Name() || !rec.Secondary {
				t.Fatalf("%v, %v", rec, err)
			}
			// What is heard once more after a restart changes nothing.
			b.restart()
			a.restart()
			sameContent(t, a.group(next.Name()), caughtUp(t, a.group(next.Name()), b))
		})
	}
}

// A copy is taken over only from a group that follows the same peer.
func TestForeignVolumeIsNotTaken(t *testing.T) {
	_, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	gb := caughtUp(t, g, b)
	if _, err := gb.Promote(true); err != nil { // now it is site-b's own
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	next := a.createGroup("next", "site-b", 0, 0, nil)
	rec, err := a.pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := next.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the peer refused it", func() bool { _, err := b.site.Group("next"); return err == nil })
	if rec, err := b.pool.Get("v0"); err != nil || rec.Secondary || rec.Group != "shop" {
		t.Fatalf("%v, %v", rec, err)
	}
	if got := content(t, volumeOf(t, gb, "v0")); got[0] != 'a' {
		t.Fatal("the volume of a promoted group was emptied")
	}
}

// Records of a volume that has left reach a peer whose list of members is ahead, as a sync's is.
func TestSyncAfterLeaving(t *testing.T) {
	net, a, b := pair(t)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)
	net.Cut("site-a")
	mustWrite(t, volumeOf(t, g, "v0"), 0, block('b', 4096))
	mustWrite(t, volumeOf(t, g, "v1"), 0, block('c', 4096))
	if err := volumeOf(t, g, "v1").markContent(); err != nil { // as after a fold: the next contact is a sync
		t.Fatal(err)
	}
	if err := g.applier.applyAll(g.ctx); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, volumeOf(t, g, "v1"))
	if err := g.applier.applyAll(g.ctx); err != nil {
		t.Fatal(err)
	}
	if err := volumeOf(t, g, "v1").markContent(); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	net.Heal("site-a")
	sameContent(t, g, caughtUp(t, g, b))
	b.restart()
	mustWrite(t, volumeOf(t, g, "v1"), 4096, block('d', 4096))
	mustFlush(t, volumeOf(t, g, "v1"))
	sameContent(t, g, caughtUp(t, g, b))
}

// A volume joins, leaves and perhaps joins again while the link is down, and a sync comes. The sync's list of members
// has the end of that, and the stream behind it still has the record of each step.
func TestSyncAfterComingAndGoing(t *testing.T) {
	for _, tc := range []struct {
		name    string
		again   bool
		restart bool
	}{{"left", false, false}, {"back", true, false}, {"back, restarted", true, true}} {
		t.Run(tc.name, func(t *testing.T) {
			net, a, b := pair(t)
			g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
			mustWrite(t, volumeOf(t, g, "v0"), 0, block('a', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			caughtUp(t, g, b)
			net.Cut("site-a")
			a.createVolume("guest", 1<<20)
			joined := 1
			if tc.again {
				joined = 3
			}
			for i := range joined {
				rec, err := a.pool.Get("guest")
				if err != nil {
					t.Fatal(err)
				}
				if err := g.AddVolume(rec, nil); err != nil {
					t.Fatal(err)
				}
				mustWrite(t, volumeOf(t, g, "guest"), 0, block('b'+byte(i), 4096))
				mustFlush(t, volumeOf(t, g, "guest"))
				if i == joined-1 && tc.again {
					break
				}
				if err := g.RemoveVolume("guest", nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := volumeOf(t, g, "v0").markContent(); err != nil { // as after a fold: the next contact is a sync
				t.Fatal(err)
			}
			if tc.restart {
				a.restart()
				g = a.group("shop")
			}
			net.Heal("site-a")
			sameContent(t, g, caughtUp(t, g, b))
			b.restart()
			mustWrite(t, volumeOf(t, g, "v0"), 4096, block('d', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			sameContent(t, g, caughtUp(t, g, b))
			if _, err := b.group("shop").Volume("guest"); tc.again != (err == nil) {
				t.Errorf("the volume that came and went, at the copy: %v", err)
			}
		})
	}
}

// moves drives a volume through its groups while clones of both sites' disks are taken, before every operation that
// changes one of them.
type moves struct {
	t     *testing.T
	rng   *rand.Rand
	a, b  *testSite
	mu    sync.Mutex
	armed bool
	want  map[string][]byte // content that was flushed, by volume
	seen  []moment
}

type moment struct {
	a, b *vfs.MemFS
	want map[string][]byte
	step string
}

const movedBytes = 256 << 10

func (m *moves) before(step string) func(vfs.Op, string) {
	return func(op vfs.Op, _ string) {
		switch op {
		case vfs.OpOpen, vfs.OpStat, vfs.OpReadDir, vfs.OpRead, vfs.OpSize, vfs.OpNextData, vfs.OpSpace, vfs.OpPreallocate:
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		if !m.armed {
			return
		}
		keep := m.rng.IntN(3) * 50
		// The peer's first: it never holds what its primary has not on stable storage.
		b := m.b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: keep, RNG: m.rng})
		a := m.a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: keep, RNG: m.rng})
		want := map[string][]byte{}
		for id, p := range m.want {
			want[id] = slices.Clone(p)
		}
		m.seen = append(m.seen, moment{a, b, want, fmt.Sprintf("%s, %s", step, op)})
	}
}

func (m *moves) arm(armed bool) {
	m.mu.Lock()
	m.armed = armed
	m.mu.Unlock()
}

// write writes and flushes in an unused place, and remembers it.
func (m *moves) write(dev blockdev.Device, id string, off int64, fill byte) {
	m.t.Helper()
	if _, err := dev.WriteAt(block(fill, 4096), off); err != nil {
		m.t.Fatal(err)
	}
	if err := dev.Flush(); err != nil {
		m.t.Fatal(err)
	}
	m.mu.Lock()
	copy(m.want[id][off:], block(fill, 4096))
	m.mu.Unlock()
}

// take takes v0 out of a group as a replicator does under load: the last writes come while it is about to leave, and
// those behind them go to the image the moment that it has left.
func (m *moves) take(g *Group, off int64, fill byte) {
	m.t.Helper()
	image, err := m.a.pool.OpenImage("v0")
	if err != nil {
		m.t.Fatal(err)
	}
	defer image.Close()
	m.arm(true)
	err = g.RemoveVolume("v0", func(leave func() error) error {
		m.arm(false)
		m.write(volumeOf(m.t, g, "v0"), "v0", off, fill)
		m.arm(true)
		err := leave()
		m.arm(false)
		if err == nil {
			m.write(image, "v0", off, fill+1)
		}
		m.arm(true)
		return err
	})
	m.arm(false)
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *moves) put(g *Group, off int64, fill byte) {
	m.t.Helper()
	rec, err := m.a.pool.Get("v0")
	if err != nil {
		m.t.Fatal(err)
	}
	m.arm(true)
	err = g.AddVolume(rec, func(v *Volume) error {
		m.arm(false)
		m.write(v, "v0", off, fill)
		m.arm(true)
		return nil
	})
	m.arm(false)
	if err != nil {
		m.t.Fatal(err)
	}
}

// A power loss at any operation of leaving, joining and moving, at either site, leaves a volume in the one group, in
// none or in the other, with everything that was flushed; it can go on from there, and the copy becomes the same.
func TestCrashWhileMoving(t *testing.T) {
	rng := seeded(t)
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	m := &moves{t: t, rng: rng, want: map[string][]byte{"v0": make([]byte, movedBytes), "v1": make([]byte, movedBytes)}}
	fast := func(c *Config) { c.ApplyInterval = time.Hour }
	for _, s := range []struct {
		name string
		site **testSite
	}{{"site-a", &m.a}, {"site-b", &m.b}} {
		*s.site = &testSite{t: t, name: s.name, fs: vfs.NewMem(), net: net, conf: fast, before: m.before("at " + s.name)}
		(*s.site).open()
		t.Cleanup((*s.site).kill)
	}
	g := m.a.createGroup("shop", "site-b", 2, movedBytes, nil)
	m.write(volumeOf(t, g, "v1"), "v1", 0, 1)
	m.write(volumeOf(t, g, "v0"), "v0", 0, 2)
	caughtUp(t, g, m.b)
	next := m.a.createGroup("next", "site-b", 0, 0, nil)
	caughtUp(t, next, m.b)
	at := int64(0)
	for i, to := range []*Group{next, g} {
		from := []*Group{g, next}[i]
		m.write(volumeOf(t, from, "v0"), "v0", at+4096, byte(10+i))
		m.write(volumeOf(t, g, "v1"), "v1", at+4096, byte(20+i))
		m.take(from, at+8192, byte(30+i))
		m.put(to, at+12288, byte(40+i))
		m.arm(true) // the peer's steps
		caughtUp(t, to, m.b)
		m.arm(false)
		at += 16384
	}
	m.a.kill()
	m.b.kill()
	t.Logf("%d crashes", len(m.seen))
	if len(m.seen) < 80 {
		t.Fatalf("only %d crashes", len(m.seen))
	}
	// Opening all of them with a peer takes long; each is opened alone.
	for i, at := range m.seen {
		m.check(t, at, i%10 == int(rng.Uint32()%10))
	}
}

func (m *moves) check(t *testing.T, at moment, withPeer bool) {
	t.Helper()
	net := link.NewNetwork(nil)
	defer net.Close()
	a := &testSite{t: t, name: "site-a", fs: at.a, net: net}
	a.open()
	defer a.kill()
	if broken := a.site.Broken(); len(broken) > 0 {
		t.Fatalf("%s: %v", at.step, broken)
	}
	for id, want := range at.want {
		rec, err := a.pool.Get(id)
		if err != nil {
			t.Fatalf("%s: %v", at.step, err)
		}
		got := make([]byte, movedBytes)
		if g, err := a.site.GroupOf(id); err == nil {
			if rec.Group != g.Name() {
				t.Fatalf("%s: volume %s is in group %s, its record says %q", at.step, id, g.Name(), rec.Group)
			}
			got = content(t, volumeOf(t, g, id))
		} else {
			if rec.Group != "" {
				t.Fatalf("%s: volume %s is in no group, its record says %q", at.step, id, rec.Group)
			}
			image, err := a.pool.OpenImage(id)
			if err != nil {
				t.Fatal(err)
			}
			_, err = image.ReadAt(got, 0)
			image.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: volume %s differs from what was flushed", at.step, id)
		}
	}
	next := a.group("next")
	if g, err := a.site.GroupOf("v0"); err == nil && g != next {
		if err := g.RemoveVolume("v0", nil); err != nil {
			t.Fatalf("%s: %v", at.step, err)
		}
	}
	rec, err := a.pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := next.AddVolume(rec, nil); err != nil {
		t.Fatalf("%s: %v", at.step, err)
	}
	if !bytes.Equal(content(t, volumeOf(t, next, "v0")), at.want["v0"]) {
		t.Fatalf("%s: the volume differs after it was moved again", at.step)
	}
	if !withPeer {
		return
	}
	b := &testSite{t: t, name: "site-b", fs: at.b, net: net}
	b.open()
	defer b.kill()
	t.Logf("%s: with its peer", at.step)
	for _, name := range []string{"next", "shop"} {
		sameContent(t, a.group(name), caughtUp(t, a.group(name), b))
	}
}
