package replication

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Writers put many times the journal through while a copy does not come to its end by itself, because the copier is
// held: so nothing that they wait for waits for the copy. All that is copied meanwhile is copied by apply.
func TestWritersDoNotWaitForACopy(t *testing.T) {
	rng := seeded(t)
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	const volumeBytes = 64 << 20
	g := s.createGroup("shop", "", 1, volumeBytes, nil)
	l := newCutLog(g)
	v := volumeOf(t, g, "v0")
	fill := func(fill byte) {
		for off := int64(0); off < volumeBytes; off += g.log.maxRecordBytes() {
			l.note(cutOp{volume: "v0", off: off, n: g.log.maxRecordBytes(), fill: fill})
			mustWrite(t, v, off, block(fill, int(g.log.maxRecordBytes())))
		}
	}
	fill(1)
	targets := createSnapshots(t, s.pool, "1", "v0")
	cut := mustCut(t, g, targets)
	g.cuts.opMu.Lock() // where the copier begins
	// A copier that had begun before that has one run left to do at most.
	const journals = 8
	written := int64(0)
	for written < journals*MinJournalBytes {
		const n = 16 << 10
		o := cutOp{volume: "v0", off: rng.Int64N(volumeBytes/2/n) * n, n: n, fill: byte(2 + rng.IntN(200))}
		l.note(o)
		mustWrite(t, v, o.off, block(o.fill, n))
		written += n
	}
	copies := g.Cuts()
	if len(copies) != 1 || copies[0].DoneBytes >= copies[0].TotalBytes || copies[0].Failed != nil {
		t.Fatalf("%d bytes were written while the copy was %v", written, copies)
	}
	t.Logf("%d bytes went through a journal of %d while %d of %d bytes were copied", written, int64(MinJournalBytes),
		copies[0].DoneBytes, copies[0].TotalBytes)
	g.cuts.opMu.Unlock()
	if err := checkCut(s.fs, s.pool, l, cut, targets); err != nil {
		t.Fatal(err)
	}
}

// A disk that is full fails the snapshot, and nothing else: writers go on, and the next snapshot is one.
func TestCopyThatFailsHarmsNobody(t *testing.T) {
	mem := vfs.NewMem()
	var full atomic.Bool
	fs := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && full.Load() && strings.HasPrefix(name, "/pool/snapshots/") {
			return syscall.ENOSPC
		}
		return nil
	})
	site, pool, err := openSite(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer site.Kill()
	s := &testSite{t: t, name: "site-a", fs: mem, pool: pool, site: site}
	g := s.createGroup("shop", "", 1, 4<<20, nil)
	l := newCutLog(g)
	rng := seeded(t)
	for range 50 {
		if err := l.do(rng, g, 256<<10); err != nil {
			t.Fatal(err)
		}
	}
	targets := createSnapshots(t, pool, "1", "v0")
	done := make(chan error, 1)
	cut := mustCut(t, g, targets)
	full.Store(true)
	go func() {
		for range 400 { // more than the journal holds
			if err := l.do(rng, g, 256<<10); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	rec, err := pool.GetSnapshot(targets[0].SnapshotID)
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != blockdev.SnapshotReady {
		// The record itself may be on the full disk.
		full.Store(false)
		eventually(t, "the snapshot has failed", func() bool {
			rec, err = pool.GetSnapshot(targets[0].SnapshotID)
			return err == nil && rec.State == blockdev.SnapshotFailed
		})
		if !strings.Contains(rec.FailReason, syscall.ENOSPC.Error()) {
			t.Fatalf("it failed because of %q", rec.FailReason)
		}
		if again := mustCut(t, g, targets); again != cut {
			t.Fatalf("repeated: %+v, was %+v", again, cut)
		}
	}
	full.Store(false)
	next := createSnapshots(t, pool, "2", "v0")
	if err := checkCut(mem, pool, l, mustCut(t, g, next), next); err != nil {
		t.Fatal(err)
	}
}

// A secondary is cut at what it has; the snapshot stays as it is through a promotion and the writes behind it. In the
// middle of a sync there is nothing to cut.
func TestCutOnSecondary(t *testing.T) {
	rng := seeded(t)
	net := link.NewNetwork(nil)
	defer net.Close()
	a := newTestSite(t, net, "site-a", nil)
	b := newTestSite(t, net, "site-b", nil)
	ga := a.createGroup("shop", "site-b", 2, 3<<20, nil)
	l := newCutLog(ga)
	write := func(n int) {
		for range n {
			if err := l.do(rng, ga, 128<<10); err != nil {
				t.Fatal(err)
			}
		}
		mustFlush(t, ga.Volumes()[0])
	}
	write(40)
	gb := caughtUp(t, ga, b)
	targets := createSnapshots(t, b.pool, "1", "v0", "v1")
	atLeast := gb.journal.Durable()
	write(20)
	cut := mustCut(t, gb, targets)
	if cut.Ordinal < atLeast || cut.Ordinal > ga.journal.Durable() {
		t.Fatalf("cut at ordinal %d, durable there were %d, here %d", cut.Ordinal, atLeast, ga.journal.Durable())
	}
	write(20)
	caughtUp(t, ga, b)
	net.Cut("site-a")
	if _, err := gb.Promote(true); err != nil {
		t.Fatal(err)
	}
	for _, v := range gb.Volumes() {
		for off := int64(0); off < v.Size(); off += 64 << 10 {
			mustWrite(t, v, off, block(0xee, 4096))
		}
	}
	if err := checkCut(b.fs, b.pool, l, cut, targets); err != nil {
		t.Fatal(err)
	}
	// The next one is of the new timeline, and its parent is the secondary's.
	next := createSnapshots(t, b.pool, "2", "v0", "v1")
	after := mustCut(t, gb, next)
	if after.Timeline == cut.Timeline || after.Ordinal <= cut.Ordinal {
		t.Fatalf("cut %+v before the promotion, %+v after it", cut, after)
	}
	if err := waitReady(b.pool, next); err != nil {
		t.Fatal(err)
	}
	for i := range next {
		if _, _, err := checkChanges(b.fs, b.pool, targets[i].SnapshotID, next[i].SnapshotID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCutIsRefusedInASync(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-b", nil)
	g := s.createGroup("shop", "site-a", 1, 1<<20, nil)
	targets := createSnapshots(t, s.pool, "1", "v0")
	g.mu.Lock()
	g.core.Meta.Role, g.core.Meta.Copy = core.RoleSecondary, core.CopyPartial
	g.mu.Unlock()
	_, err := g.Cut(context.Background(), targets)
	if !errors.Is(err, core.ErrPrecondition) || !strings.Contains(err.Error(), "sync") {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.core.Meta.Copy = core.CopyWhole
	g.mu.Unlock()
	mustCut(t, g, targets)
}

// A volume does not leave its group while it is being copied; when its snapshot goes, it does. A group that is deleted
// by force takes the copies with it.
func TestCopyAndMembers(t *testing.T) {
	mem := vfs.NewMem()
	gate := make(chan struct{})
	fs := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && strings.HasSuffix(name, "/image") && strings.HasPrefix(name, "/pool/snapshots/") {
			<-gate
		}
		return nil
	})
	site, pool, err := openSite(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer site.Kill()
	s := &testSite{t: t, name: "site-a", fs: mem, pool: pool, site: site}
	g := s.createGroup("shop", "", 2, 2<<20, nil)
	for _, v := range g.Volumes() {
		mustWrite(t, v, 0, block(1, 4096))
	}
	targets := createSnapshots(t, s.pool, "1", "v0", "v1")
	mustCut(t, g, targets)
	copied := g.cuts.copiesOf("v0")
	err = g.RemoveVolume("v0", nil)
	if len(copied) == 0 || !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), targets[0].SnapshotID) {
		t.Fatalf("removing a volume that is copied to %v: %v", copied, err)
	}
	close(gate)
	if err := g.ReleaseCut(targets[0].SnapshotID); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	if err := s.site.DeleteGroup("shop", true); err != nil {
		t.Fatal(err)
	}
	for _, target := range targets {
		rec, err := s.pool.GetSnapshot(target.SnapshotID)
		if err != nil || rec.State != blockdev.SnapshotFailed && rec.State != blockdev.SnapshotReady {
			t.Fatalf("%+v, %v", rec, err)
		}
	}
}

// A volume grows while it is copied: the snapshot keeps its size.
func TestCopyOfAVolumeThatGrows(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 1, 2<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 2<<20-4096, block(7, 4096))
	want := content(t, v)
	first := createSnapshots(t, s.pool, "1", "v0")
	mustCut(t, g, first)
	if err := g.Resize("v0", 3<<20); err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < 3<<20; off += 64 << 10 {
		mustWrite(t, v, off, block(9, 64<<10))
	}
	second := createSnapshots(t, s.pool, "2", "v0")
	mustCut(t, g, second)
	if err := waitReady(s.pool, append(first, second...)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		id   string
		want []byte
	}{{first[0].SnapshotID, want}, {second[0].SnapshotID, block(9, 3<<20)}} {
		got, err := snapshotContent(s.fs, s.pool, c.id)
		if err != nil || !bytes.Equal(got, c.want) {
			t.Fatalf("snapshot %s has %d bytes, want %d, equal %v, %v", c.id, len(got), len(c.want), bytes.Equal(got, c.want),
				err)
		}
	}
	m, err := changes.Between(s.fs, s.pool, first[0].SnapshotID, second[0].SnapshotID)
	if err != nil || m.Len() != 3<<20/(64<<10) {
		t.Fatalf("%v, %v", m, err)
	}
}
