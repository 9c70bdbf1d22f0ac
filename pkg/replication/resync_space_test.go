package replication

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// The disk of the secondary is full in the middle of a resync that is larger than the journal: what the resync would
// overwrite cannot be kept. The resync waits and says what it needs; the old copy can be promoted all the while; when
// there is space, the resync continues and ends.
func TestResyncWaitsForSpace(t *testing.T) {
	rng := seeded(t)
	const size = 24 << 20
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	var full atomic.Bool
	b := &testSite{t: t, name: "b", fs: vfs.NewMem(), net: net}
	b.fails = func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpWrite && strings.HasSuffix(name, ".kept") {
			return syscall.ENOSPC
		}
		return nil
	}
	b.open()
	t.Cleanup(b.kill)
	a := newTestSite(t, net, "a", nil)
	g := a.createGroup("shop", "b", 1, size, nil)
	v := volumeOf(t, g, "v0")
	fill := func(with byte) {
		for off := int64(0); off < size; off += 256 << 10 {
			mustWrite(t, v, off, block(with, 64<<10))
		}
		mustFlush(t, v)
	}
	fill(1)
	copied := caughtUp(t, g, b)
	before := stateOf(t, copied)

	full.Store(true)
	g.changes.mark(v.index, 0, size)
	for off := int64(0); off < size; off += changemap.ExtentBytes {
		mustWrite(t, v, off, block(2, 4096))
	}
	markExtent(t, v, 0)
	eventually(t, "the resync waits for space", func() bool {
		st := copied.Status()
		return st.State == core.StateSyncing && strings.Contains(st.ApplyError, "keep") &&
			strings.Contains(st.ApplyError, syscall.ENOSPC.Error())
	})
	if st := copied.Status(); !st.Promotable || st.Before == nil || st.Before.Ordinal != before.ordinal {
		t.Fatalf("while the resync waits for space: %v", st)
	}
	for range 5 {
		fs := b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
		if err := promoteAfterCrash(fs, before); err != nil {
			t.Fatal(err)
		}
	}
	// A restart changes nothing.
	b.restart()
	copied = b.group("shop")
	eventually(t, "the resync waits for space again", func() bool { return copied.Status().ApplyError != "" })
	if g.Status().State == core.StateStreaming {
		t.Fatal("the resync has ended without space")
	}

	full.Store(false)
	copied = caughtUp(t, g, b)
	sameContent(t, g, copied)
	if st := copied.Status(); st.Before != nil || st.ApplyError != "" {
		t.Fatalf("after the resync: %v", st)
	}
}

// A pool that is nearly full takes no resync that would fill it: the reserve of the site's own volumes counts what
// has to be kept. The status says so, and the old copy opens.
func TestResyncLeavesTheReserve(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	b := newTestSite(t, net, "b", nil)
	b.fs.SetCapacity(1 << 30)
	a := newTestSite(t, net, "a", nil)
	g := a.createGroup("shop", "b", 1, 4<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block(1, 1<<20))
	mustFlush(t, v)
	copied := caughtUp(t, g, b)
	before := stateOf(t, copied)
	total, free, err := b.fs.Space("/")
	if err != nil {
		t.Fatal(err)
	}
	b.fs.SetCapacity((total - free) * 100 / 94) // 6 % are free, 5 % of it for other volumes
	mustWrite(t, v, 0, block(2, 1<<20))
	markExtent(t, v, 0)
	eventually(t, "the resync waits for space", func() bool {
		return strings.Contains(copied.Status().StateReason, "waits for space")
	})
	if st := copied.Status(); !st.Promotable {
		t.Fatalf("while the resync waits for space: %v", st)
	}
	if _, err := copied.Promote(true); err != nil {
		t.Fatal(err)
	}
	if err := before.check(b.group("shop")); err != nil {
		t.Fatal(err)
	}
}
