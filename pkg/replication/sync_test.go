package replication

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// contentVolume makes a volume of the pool that holds content before it is in any group.
func (s *testSite) contentVolume(id string, sizeBytes int64, p []byte) *blockdev.VolumeRecord {
	s.t.Helper()
	rec := s.createVolume(id, sizeBytes)
	image, err := s.pool.OpenImage(id)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := image.WriteAt(p, 0); err != nil {
		s.t.Fatal(err)
	}
	if err := image.Flush(); err != nil {
		s.t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		s.t.Fatal(err)
	}
	return rec
}

// A secondary that has been through a sync, and is in the next one, loses power before each of its disk operations.
// What it says may be promoted then has every member's content: the end of the earlier sync, still in its journal, does
// not make the later one whole.
func TestPowerLossWhenASyncBegins(t *testing.T) {
	rng := seeded(t)
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a := newTestSite(t, net, "a", nil)
	var mu sync.Mutex
	var clones []*vfs.MemFS
	armed := false
	b := &testSite{t: t, name: "b", fs: vfs.NewMem(), net: net, conf: func(c *Config) { c.ApplyInterval = time.Hour }}
	b.before = func(op vfs.Op, _ string) {
		mu.Lock()
		defer mu.Unlock()
		if armed && !slices.Contains([]vfs.Op{vfs.OpOpen, vfs.OpStat, vfs.OpReadDir, vfs.OpRead, vfs.OpSize, vfs.OpNextData,
			vfs.OpSpace}, op) {
			clones = append(clones, b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(3) * 50, RNG: rng}))
		}
	}
	b.open()
	t.Cleanup(b.kill)
	g := a.createGroup("shop", "b", 1, 64<<10, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block(1, 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	caughtUp(t, g, b)

	want := block(7, 4096)
	rec := a.contentVolume("v1", 64<<10, want)
	mu.Lock()
	armed = true
	mu.Unlock()
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, g, b)
	mu.Lock()
	armed = false
	mu.Unlock()
	b.kill()
	a.kill()

	inSync, promoted := 0, 0
	for i, fs := range clones {
		alone := link.NewNetwork(nil)
		s := &testSite{t: t, name: "b", fs: fs, net: alone}
		s.open()
		copied := s.group("shop")
		before, _ := copied.resync.current()
		if before != nil {
			inSync++
		} else {
			promoted++
		}
		if _, err := copied.Promote(true); err != nil {
			t.Fatalf("power loss %d of %d: %v", i, len(clones), err)
		}
		v, err := s.group("shop").Volume("v1")
		if before != nil && err == nil {
			t.Fatalf("power loss %d of %d: promoted in the sync, the copy has the volume that came with it", i, len(clones))
		}
		if err == nil && !bytes.Equal(content(t, v)[:len(want)], want) {
			t.Fatalf("power loss %d of %d: the promoted copy has the volume without its content", i, len(clones))
		}
		s.kill()
		alone.Close()
	}
	t.Logf("%d power losses: %d in the sync, %d promoted", len(clones), inSync, promoted)
	if inSync < 3 || promoted < 3 {
		t.Fatal("too few of both to show anything")
	}
}

// opensWithout demands that a copy can be promoted, as it was before a volume joined.
func opensWithout(t *testing.T, g *Group, id string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.core.Meta.Base; g.core.Whole() || b == nil || b.Has(id) {
		t.Errorf("%s: the copy may be promoted with the write behind the exchange and without the one before it", id)
	}
}

// A volume in use joins. What was written past the group until the exchange, and what is written through it behind
// that, go to the peer as one: no copy that may be promoted has the later without the earlier.
func TestJoiningInUseIsOneInstantAtThePeer(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	g := a.createGroup("shop", "b", 1, 64<<10, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block(1, 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)
	for _, blank := range []bool{true, false} {
		id := map[bool]string{true: "blank", false: "used"}[blank]
		var rec *blockdev.VolumeRecord
		if blank {
			rec = a.createVolume(id, 64<<10)
		} else {
			rec = a.contentVolume(id, 64<<10, block(9, 4096))
		}
		image, err := a.pool.OpenImage(id)
		if err != nil {
			t.Fatal(err)
		}
		err = g.AddVolume(rec, func(v *Volume) error {
			// Past the group, when the peer may have been sent all that the volume had.
			if _, err := image.WriteAt(block(2, 4096), 4096); err != nil {
				return err
			}
			if err := image.Flush(); err != nil {
				return err
			}
			mustWrite(t, v, 8192, block(3, 4096))
			mustFlush(t, v)
			head := g.Status().HeadOrdinal
			eventually(t, "the peer has the write behind the exchange",
				func() bool { return copied.Status().DurableOrdinal >= head })
			opensWithout(t, copied, id)
			return nil
		})
		image.Close()
		if err != nil {
			t.Fatal(err)
		}
		caughtUp(t, g, b)
		sameContent(t, g, copied)
	}
}

// The exchange of a volume in use fails half way: what is written past the group goes nowhere, so no copy may be
// promoted until the addition was repeated, or the volume taken out again.
func TestFailedExchangeKeepsTheCopyFromPromotion(t *testing.T) {
	for _, repeat := range []bool{true, false} {
		t.Run(fmt.Sprintf("repeat=%t", repeat), func(t *testing.T) {
			net := link.NewNetwork(nil)
			t.Cleanup(net.Close)
			a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
			g := a.createGroup("shop", "b", 1, 64<<10, nil)
			v0 := volumeOf(t, g, "v0")
			mustWrite(t, v0, 0, block(1, 4096))
			mustFlush(t, v0)
			copied := caughtUp(t, g, b)
			rec := a.contentVolume("v1", 64<<10, block(9, 4096))
			image, err := a.pool.OpenImage("v1")
			if err != nil {
				t.Fatal(err)
			}
			defer image.Close()
			broken := errors.New("broken")
			if err := g.AddVolume(rec, func(*Volume) error { return broken }); !errors.Is(err, broken) {
				t.Fatal(err)
			}
			if _, err := image.WriteAt(block(2, 4096), 4096); err != nil { // past the group
				t.Fatal(err)
			}
			mustWrite(t, v0, 0, block(3, 4096))
			mustFlush(t, v0)
			head := g.Status().HeadOrdinal
			eventually(t, "the peer has what was written since", func() bool { return copied.Status().DurableOrdinal >= head })
			opensWithout(t, copied, "v1")
			if repeat {
				err = g.AddVolume(rec, func(*Volume) error { return nil })
			} else {
				err = g.RemoveVolume("v1", nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			caughtUp(t, g, b)
			sameContent(t, g, copied)
		})
	}
}

// A sync begins while a volume is being added at the primary. That it is being added is the primary's affair: a copy
// that took the mark over would refuse snapshots of the volume for good.
func TestSyncDuringAnAddition(t *testing.T) {
	net := link.NewNetwork(nil)
	defer net.Close()
	a, b := newTestSite(t, net, "a", nil), newTestSite(t, net, "b", nil)
	g := a.createGroup("shop", "b", 1, 64<<10, nil)
	copied := caughtUp(t, g, b)
	rec := a.contentVolume("v1", 64<<10, block(9, 4096))
	has := func(what string) {
		mustFlush(t, volumeOf(t, g, "v0"))
		head := g.Status().HeadOrdinal
		eventually(t, what, func() bool { return copied.Status().DurableOrdinal >= head })
	}
	if err := g.AddVolume(rec, func(*Volume) error {
		has("the copy has heard of the new member")
		net.Cut("a")
		eventually(t, "the link is down", func() bool { return !g.Status().Connected })
		net.Heal("a")
		mustWrite(t, volumeOf(t, g, "v0"), 0, block(1, 4096))
		has("the copy has what comes after the beginning of another sync")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, g, b)
	mustCut(t, copied, createSnapshots(t, b.pool, "1", "v0", "v1"))
}
