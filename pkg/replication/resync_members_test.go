package replication

import (
	"bytes"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// startResync begins a resync of all members and stops it after some batches.
func (p *resyncPair) startResync(batches int) {
	p.t.Helper()
	p.gate.close(0)
	for _, v := range p.g.Volumes() {
		markExtent(p.t, v, 0)
	}
	p.gate.close(batches)
	p.gate.moved.send()
	eventually(p.t, "the resync has begun", func() bool {
		return p.gate.used() && p.b.group("shop").Status().Before != nil
	})
}

// opensAsBefore demands, of power losses at this instant, that the copy opens as it was before the resync.
func (p *resyncPair) opensAsBefore() {
	p.t.Helper()
	for _, percent := range []int{0, 50, 100} {
		fs := p.b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: p.rng})
		if err := promoteAfterCrash(fs, p.before); err != nil {
			p.t.Fatal(err)
		}
	}
}

// A volume moves to another group while its old group's copy is in a resync. The volume stays a part of what the old
// group opens as, and the other group's copy gets it when the resync ends.
func TestVolumeMovesDuringAResync(t *testing.T) {
	p := newResyncPair(t, seeded(t))
	other := p.a.createGroup("other", "b", 0, 0, nil)
	caughtUp(t, other, p.b) // it shares the gate, and has no batch left for it
	p.startResync(2)
	if err := p.g.RemoveVolume("v2", nil); err != nil {
		t.Fatal(err)
	}
	rec, err := p.a.pool.Get("v2")
	if err != nil {
		t.Fatal(err)
	}
	if err := other.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	// Only the resync's end stays away. Both groups share the gate; the other one needs few batches.
	p.gate.allow(1)
	p.opensAsBefore()
	p.gate.allow(40)
	eventually(t, "the resync ends", func() bool { return p.b.group("shop").Status().Before == nil })
	p.gate.allow(1 << 20)
	copied := caughtUp(t, other, p.b)
	sameContent(t, other, copied)
	sameContent(t, p.g, caughtUp(t, p.g, p.b))
	if rec, err := p.b.pool.Get("v2"); err != nil || rec.Group != "other" {
		t.Fatalf("the moved volume's copy: %+v, %v", rec, err)
	}
}

// While a resync keeps a volume, another group's claim on its copy is refused, with the reason.
func TestBaseKeepsItsVolumes(t *testing.T) {
	p := newResyncPair(t, seeded(t))
	other := p.a.createGroup("other", "b", 0, 0, nil)
	caughtUp(t, other, p.b) // it shares the gate, and has no batch left for it
	p.startResync(1)
	m := core.Member{Index: other.core.Meta.NextIndex(), VolumeID: "v1", SizeBytes: resyncVolumeBytes, Joins: 99}
	_, err := p.b.group("other").copies.claim(m)
	if err == nil || !strings.Contains(err.Error(), "until its sync ends") {
		t.Fatalf("a claim on a volume that the base has: %v", err)
	}
	p.opensAsBefore()
	p.gate.allow(1 << 20)
	caughtUp(t, p.g, p.b)
}

// A volume leaves the group and joins it again during a resync, so its copy is emptied and filled anew. The copy opens
// as before all the while.
func TestVolumeRejoinsDuringAResync(t *testing.T) {
	p := newResyncPair(t, seeded(t))
	p.startResync(1)
	if err := p.g.RemoveVolume("v2", nil); err != nil {
		t.Fatal(err)
	}
	rec, err := p.a.pool.Get("v2")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	for range 60 {
		p.gate.allow(1)
		eventually(t, "the batch has passed", func() bool { return p.gate.used() || p.g.Status().State == "streaming" })
		if p.b.group("shop").Status().Before == nil {
			break
		}
		fs := p.b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: p.rng.IntN(101), RNG: p.rng})
		clone := &testSite{t: t, name: "b", fs: fs, net: link.NewNetwork(nil)}
		clone.open()
		whole := clone.group("shop").Status().Before == nil
		clone.kill()
		if !whole {
			if err := promoteAfterCrash(fs, p.before); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.gate.allow(1 << 20)
	sameContent(t, p.g, caughtUp(t, p.g, p.b))
}

// A sync makes a volume smaller, because the primary's disk was put back to before it grew. The copy opens with the
// size and the content of before.
func TestVolumeShrinksDuringAResync(t *testing.T) {
	p := newResyncPair(t, seeded(t))
	p.startResync(1)
	g := p.b.group("shop")
	v := volumeOf(t, g, "v1")
	g.mu.Lock()
	m := *g.core.Meta.At(v.index)
	g.mu.Unlock()
	m.SizeBytes = resyncVolumeBytes / 2
	g.members.mu.Lock()
	err := g.copies.shrink(v, m)
	g.members.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if rec, err := p.b.pool.Get("v1"); err != nil || rec.SizeBytes != m.SizeBytes {
		t.Fatalf("the record after it: %+v, %v", rec, err)
	}
	if _, err := g.step(core.MemberChanged{Member: m}, nil); err != nil {
		t.Fatal(err)
	}
	p.opensAsBefore()
}

// A view shows a volume that its copy's primary makes smaller, because its disk was put back, or because this site gave
// way, to before the volume grew. The view keeps its size and its content, also when the volume grows again and over a
// restart.
func TestViewOfAVolumeThatShrinks(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	const small, large = 96 << 10, 256 << 10
	g := a.createGroup("shop", "b", 1, large, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block(1, large-8<<10))
	mustFlush(t, v)
	copied := caughtUp(t, g, b)
	view := mustView(t, copied, ViewSpec{Name: "look", LimitBytes: 1 << 30})
	want := viewContent(t, view.volumes[0])
	shows := func(when string) {
		t.Helper()
		v, err := b.group("shop").View("look")
		if err != nil {
			t.Fatal(err)
		}
		if got := viewContent(t, v.volumes[0]); !bytes.Equal(got, want) {
			t.Fatalf("%s: the view differs from offset %d on", when, firstDifference(got, want))
		}
	}
	net.Cut("a") // a stream would bring the size back
	eventually(t, "the link is down", func() bool { return !copied.Status().Connected })
	m := *copied.core.Meta.At(v.index)
	m.SizeBytes = small
	copied.members.mu.Lock()
	err := copied.copies.shrink(volumeOf(t, copied, "v0"), m)
	copied.members.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := copied.step(core.MemberChanged{Member: m}, nil); err != nil {
		t.Fatal(err)
	}
	shows("smaller")
	b.restart()
	shows("smaller, after a restart")
	if err := g.Resize("v0", large+64<<10); err != nil { // in order before what is written there
		t.Fatal(err)
	}
	mustWrite(t, v, 0, block(2, large))
	net.Heal("a")
	mustFlush(t, v)
	caughtUp(t, g, b)
	shows("grown again")
	b.restart()
	shows("grown again, after a restart")
}
