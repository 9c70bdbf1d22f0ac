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

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// cutLog is what was asked of a group by one writer, so that what its volumes hold at an ordinal is known.
type cutLog struct {
	mu   sync.Mutex
	base uint64 // ordinal before the first operation
	ops  []cutOp
	size map[string]int64
}

type cutOp struct {
	volume string // "" for a record without content
	off, n int64
	fill   byte // 0 for a discard or zeros
}

// at is the content of a volume at an ordinal.
func (l *cutLog) at(volume string, ordinal uint64) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := make([]byte, l.size[volume])
	for _, o := range l.ops[:max(ordinal, l.base)-l.base] {
		if o.volume == volume {
			copy(p[o.off:o.off+o.n], block(o.fill, int(o.n)))
		}
	}
	return p
}

func (l *cutLog) note(o cutOp) {
	l.mu.Lock()
	l.ops = append(l.ops, o)
	l.mu.Unlock()
}

// do draws an operation, notes it and carries it out. There is no other writer.
func (l *cutLog) do(rng *rand.Rand, g *Group, most int64) error {
	volumes := g.Volumes()
	v := volumes[rng.IntN(len(volumes))]
	const sector = 4096
	o := cutOp{volume: v.id, off: rng.Int64N(v.Size()/sector) * sector, fill: byte(rng.IntN(256))}
	o.n = min(v.Size()-o.off, (1+rng.Int64N(most/sector))*sector)
	var err error
	switch {
	case o.fill < 10:
		o.fill = 0
		l.note(o)
		err = v.Discard(o.off, o.n)
	case o.fill < 20:
		o.fill = 0
		l.note(o)
		err = v.Zero(o.off, o.n)
	default:
		o.n = min(o.n, g.log.maxRecordBytes()) // one record, one ordinal
		l.note(o)
		_, err = v.WriteAt(block(o.fill, int(o.n)), o.off)
	}
	return err
}

// openSite opens a site on any file system, without a peer.
func openSite(fs vfs.FS) (*Site, *blockdev.Pool, error) {
	pool, err := blockdev.OpenPool(fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		return nil, nil, err
	}
	site, err := Open(Config{FS: fs, Pool: pool, Site: "site-a", CommitInterval: 5 * time.Millisecond,
		ApplyInterval: 3 * time.Millisecond})
	if err != nil {
		pool.Close()
	}
	return site, pool, err
}

// newCutLog begins a log for a group whose volumes are blank.
func newCutLog(g *Group) *cutLog {
	l := &cutLog{base: g.journal.Head(), size: map[string]int64{}}
	for _, v := range g.Volumes() {
		l.size[v.id] = v.Size()
	}
	return l
}

func createSnapshots(t testing.TB, pool *blockdev.Pool, suffix string, volumes ...string) []CutTarget {
	t.Helper()
	var targets []CutTarget
	for _, id := range volumes {
		vol, err := pool.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		rec, err := pool.CreateSnapshot(blockdev.SnapshotRecord{
			ID: "snap-" + id + "-" + suffix, Name: id + "-" + suffix, SourceVolumeID: id, SizeBytes: vol.SizeBytes,
			BlockSizeBytes: vol.BlockSizeBytes, State: blockdev.SnapshotCreating,
		})
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, CutTarget{VolumeID: id, SnapshotID: rec.ID})
	}
	return targets
}

// waitReady waits until snapshots are ready; an error says which one failed. A copy leaves others half of the disk's
// time, and waits for the disk after each MiB: on one that is busy with others it takes long, and ends.
func waitReady(pool *blockdev.Pool, targets []CutTarget) error {
	ctx, cancel := context.WithTimeout(context.Background(), 6*patience)
	defer cancel()
	for _, target := range targets {
		var err error
		waitErr := (&Group{}).WaitFor(ctx, func() bool {
			var rec *blockdev.SnapshotRecord
			rec, err = pool.GetSnapshot(target.SnapshotID)
			if err == nil && rec.State == blockdev.SnapshotFailed {
				err = errors.New("failed: " + rec.FailReason)
			}
			return err != nil || rec.State == blockdev.SnapshotReady
		})
		if err = errors.Join(err, waitErr); err != nil {
			return fmt.Errorf("snapshot %s: %w", target.SnapshotID, err)
		}
	}
	return nil
}

func snapshotContent(fs vfs.FS, pool *blockdev.Pool, id string) ([]byte, error) {
	path, err := pool.SnapshotImagePath(id)
	if err != nil {
		return nil, err
	}
	return vfs.ReadFile(fs, path, 1<<30)
}

// checkCut demands that snapshots are complete and hold their volumes at the cut's ordinal.
func checkCut(fs vfs.FS, pool *blockdev.Pool, l *cutLog, cut blockdev.SnapshotCut, targets []CutTarget) error {
	if err := waitReady(pool, targets); err != nil {
		return err
	}
	for _, target := range targets {
		rec, err := pool.GetSnapshot(target.SnapshotID)
		if err != nil {
			return err
		}
		if rec.Cut != cut {
			return fmt.Errorf("the record of %s says %+v, not %+v", target.SnapshotID, rec.Cut, cut)
		}
		got, err := snapshotContent(fs, pool, target.SnapshotID)
		if err != nil {
			return err
		}
		want := l.at(target.VolumeID, cut.Ordinal)
		if int64(len(got)) != rec.SizeBytes || len(got) < len(want) {
			return fmt.Errorf("%s has %d bytes, its record says %d", target.SnapshotID, len(got), rec.SizeBytes)
		}
		if i := firstDifference(got[:len(want)], want); i >= 0 {
			return fmt.Errorf("%s, taken at ordinal %d, is not the volume at that ordinal: offset %d (extent %d) is %#x "+
				"instead of %#x",
				target.SnapshotID, cut.Ordinal, i, i/changemap.ExtentBytes, got[i], want[i])
		}
	}
	return nil
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// checkChanges demands that the changed extents between two snapshots have all in which they differ. It reports how
// many they are, and how many differ.
func checkChanges(fs vfs.FS, pool *blockdev.Pool, base, target string) (said, differ uint64, err error) {
	m, err := changes.Between(fs, pool, base, target)
	if err != nil {
		return 0, 0, err
	}
	a, err := snapshotContent(fs, pool, base)
	if err != nil {
		return 0, 0, err
	}
	b, err := snapshotContent(fs, pool, target)
	if err != nil {
		return 0, 0, err
	}
	for off := 0; off < len(b); off += changemap.ExtentBytes {
		end := min(off+changemap.ExtentBytes, len(b))
		old := make([]byte, end-off)
		if off < len(a) {
			copy(old, a[off:min(end, len(a))])
		}
		if bytes.Equal(old, b[off:end]) {
			continue
		}
		differ++
		if !m.Has(0, uint64(off/changemap.ExtentBytes)) {
			return 0, 0, fmt.Errorf("extent %d differs between %s and %s and is not among the changed ones",
				off/changemap.ExtentBytes, base, target)
		}
	}
	return m.Len(), differ, nil
}
