package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// groupSnapshot is a group snapshot that was taken under load, and is judged later, whatever happens in between.
type groupSnapshot struct {
	at      string // site
	targets []replication.CutTarget
	numbers []int // of the volumes
	cut     blockdev.SnapshotCut
	// must is what was there for certain when it was asked for.
	must floors
}

// snapshot takes a snapshot of the group, or of some of its volumes, at one of the sites while the writers run.
func (w *world) snapshot() error {
	s := w.a
	if w.rng.IntN(2) == 0 && w.b.group() != nil {
		s = w.b
	}
	g := s.group()
	snap, err := w.createSnapshots(s, g)
	if err != nil || len(snap.targets) == 0 {
		return err
	}
	w.observe()
	if snap.must = (floors{w.acked, w.ackedClock}); s == w.a {
		snap.must.ordinal, snap.must.clock = w.h.flushed()
	}
	w.ws.ask(1 + w.rng.IntN(40))
	done := make(chan error, 1)
	go func() {
		var err error
		snap.cut, err = g.Cut(w.ctx, snap.targets)
		done <- err
	}()
	if w.rng.IntN(2) == 0 {
		if ok, err := w.powerLossInCut(s, snap, done); err != nil || !ok {
			return err
		}
	} else if ok, err := w.cutAnswer(s, snap, <-done); err != nil || !ok {
		return err
	}
	w.h.note("a snapshot of volumes %v was taken at %s, at ordinal %d", snap.numbers, s.name, snap.cut.Ordinal)
	w.snapshots = append(w.snapshots, snap)
	w.tally.snapshots.Add(1)
	if s == w.b {
		w.tally.secondarySnapshots.Add(1)
	}
	if w.rng.IntN(3) == 0 {
		again, err := g.Cut(w.ctx, snap.targets)
		if err != nil || again != snap.cut {
			return w.h.violation("the same snapshot taken again is %+v, not %+v: %v", again, snap.cut, err)
		}
	}
	return nil
}

// createSnapshots makes the records, of all members or of some.
func (w *world) createSnapshots(s *memSite, g *replication.Group) (*groupSnapshot, error) {
	w.snapshotsMade++
	snap := &groupSnapshot{at: s.name}
	some := w.rng.IntN(4) == 0
	for number, m := range w.h.models() {
		v, err := g.Volume(m.id)
		if err != nil || some && w.rng.IntN(2) == 0 {
			continue // the secondary has not heard of it yet
		}
		rec, err := s.pool.CreateSnapshot(blockdev.SnapshotRecord{
			ID: fmt.Sprintf("snap-%d-%s", w.snapshotsMade, m.id), Name: fmt.Sprintf("%d-%s", w.snapshotsMade, m.id),
			SourceVolumeID: m.id,
			SizeBytes:      v.Size(), BlockSizeBytes: blockdev.DefaultBlockSizeBytes, State: blockdev.SnapshotCreating,
		})
		if err != nil {
			return nil, err
		}
		snap.targets = append(snap.targets, replication.CutTarget{VolumeID: m.id, SnapshotID: rec.ID})
		snap.numbers = append(snap.numbers, number)
	}
	return snap, nil
}

// cutAnswer judges what a site says to a request for a snapshot. A secondary may be in the middle of a sync.
func (w *world) cutAnswer(s *memSite, snap *groupSnapshot, err error) (taken bool, _ error) {
	switch {
	case err == nil && w.p.exact && snap.cut.Ordinal < snap.must.ordinal:
		return false, w.h.violation("the snapshot at %s is of ordinal %d, %d was durable before it was asked for",
			s.name, snap.cut.Ordinal, snap.must.ordinal)
	case err == nil:
		return true, nil
	case snap.at == siteB && errors.Is(err, core.ErrPrecondition):
		w.h.note("no snapshot at %s: %v", s.name, err)
		w.tally.refusedSnapshots.Add(1)
		return false, nil
	}
	return false, w.h.violation("no snapshot can be taken at %s: %v", s.name, err)
}

// powerLossInCut asks what would be if power failed while the snapshot is taken or copied: the request is repeated
// there, and what it gives is judged.
func (w *world) powerLossInCut(s *memSite, snap *groupSnapshot, done chan error) (taken bool, _ error) {
	var told *blockdev.SnapshotCut
	select {
	case err := <-done:
		ok, err := w.cutAnswer(s, snap, err)
		if err != nil || !ok {
			return ok, err
		}
		told = &snap.cut
		done <- nil
	case <-time.After(time.Duration(w.rng.IntN(3000)) * time.Microsecond):
	}
	percent := w.unsynced()
	clone := s.clone(percent, w.rng)
	ok, err := w.cutAnswer(s, snap, <-done)
	if err != nil || !ok {
		return ok, err
	}
	drill := *snap
	who := fmt.Sprintf("the snapshot at %s after a power loss with %d%% of the unsynced", s.name, percent)
	if err := clone.open(); err != nil {
		return true, w.h.violation("%s would not start: %v", s.name, err)
	}
	defer clone.kill()
	g := clone.group()
	if g == nil {
		return true, w.h.violation("%s would have forgotten its group", s.name)
	}
	drill.cut, err = g.Cut(w.ctx, drill.targets)
	if told == nil {
		if ok, err := w.cutAnswer(clone, &drill, err); err != nil || !ok {
			return true, err
		}
	} else if err != nil || drill.cut != *told {
		return true, w.h.violation("%s is %+v, its caller was told %+v: %v", who, drill.cut, *told, err)
	}
	w.tally.snapshotDrills.Add(1)
	return true, w.judgeSnapshot(clone, who, &drill)
}

// judgeSnapshots judges every snapshot at the sites that run.
func (w *world) judgeSnapshots(when string) error {
	for _, s := range []*memSite{w.a, w.b} {
		for _, snap := range w.snapshots {
			if snap.at != s.name || s.site == nil {
				continue
			}
			who := fmt.Sprintf("the snapshot of ordinal %d at %s, %s", snap.cut.Ordinal, s.name, when)
			if err := w.judgeSnapshot(s, who, snap); err != nil {
				return err
			}
			w.tally.judgedSnapshots.Add(1)
		}
		if s.site != nil {
			if err := w.judgeChanges(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// judgeSnapshot waits until a snapshot is complete, and demands that it is a prefix like any copy.
func (w *world) judgeSnapshot(s *memSite, who string, snap *groupSnapshot) error {
	models := w.h.models()
	shown := make(content, len(models))
	for v := range shown {
		shown[v] = shownVolume{absent: true, perBlock: 1}
	}
	for i, target := range snap.targets {
		var rec *blockdev.SnapshotRecord
		err := w.eventually(who, func() (bool, string) {
			var err error
			rec, err = s.pool.GetSnapshot(target.SnapshotID)
			return err != nil || rec.State == blockdev.SnapshotReady ||
				rec.State == blockdev.SnapshotFailed, fmt.Sprintf("%+v, %v", rec, err)
		})
		if err != nil {
			return err
		}
		if rec == nil || rec.State != blockdev.SnapshotReady || rec.Cut != snap.cut {
			return w.h.violation("%s: the record is %+v, the cut was %+v", who, rec, snap.cut)
		}
		image, err := openSnapshot(s, target.SnapshotID)
		if err != nil {
			return w.h.violation("%s: %v", who, err)
		}
		shown[snap.numbers[i]], err = w.h.read(w.p.seed, snap.numbers[i], image, true)
		image.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
	}
	if !w.p.exact {
		return w.h.checkOrder(who, shown, snap.must.clock, afterAck)
	}
	if n := w.h.length(); snap.cut.Ordinal > n {
		return w.h.violation("%s is of an ordinal that was never written, the last one is %d", who, n)
	}
	want := w.h.image(snap.cut.Ordinal)
	for v := range want {
		want[v].absent = want[v].absent || shown[v].absent
	}
	return w.h.checkImage(who, shown, want)
}

func openSnapshot(s *memSite, id string) (*blockdev.Image, error) {
	path, err := s.pool.SnapshotImagePath(id)
	if err != nil {
		return nil, err
	}
	return blockdev.OpenImage(s.fs, path)
}

// judgeChanges demands of every snapshot with a parent that what differs is among the changed blocks.
func (w *world) judgeChanges(s *memSite) error {
	for _, snap := range w.snapshots {
		if snap.at != s.name {
			continue
		}
		for _, target := range snap.targets {
			rec, err := s.pool.GetSnapshot(target.SnapshotID)
			if err != nil || rec.ParentID == "" {
				continue // judgeSnapshot has looked at it
			}
			if err := w.judgeDelta(s, rec); err != nil {
				return err
			}
			w.tally.deltas.Add(1)
		}
	}
	return nil
}

func (w *world) judgeDelta(s *memSite, rec *blockdev.SnapshotRecord) error {
	m, err := changes.Between(s.fs, s.pool, rec.ParentID, rec.ID)
	if err != nil {
		return w.h.violation("what changed between %s and %s is not known: %v", rec.ParentID, rec.ID, err)
	}
	before, err := openSnapshot(s, rec.ParentID)
	if err != nil {
		return err
	}
	defer before.Close()
	after, err := openSnapshot(s, rec.ID)
	if err != nil {
		return err
	}
	defer after.Close()
	old, now := make([]byte, changemap.ExtentBytes), make([]byte, changemap.ExtentBytes)
	for off := int64(0); off < after.Size(); off += changemap.ExtentBytes {
		clear(old)
		n := min(after.Size()-off, changemap.ExtentBytes)
		if k := min(n, before.Size()-off); k > 0 {
			if _, err := before.ReadAt(old[:k], off); err != nil {
				return err
			}
		}
		if _, err := after.ReadAt(now[:n], off); err != nil {
			return err
		}
		if string(old[:n]) != string(now[:n]) && !m.Has(0, uint64(off/changemap.ExtentBytes)) {
			return w.h.violation("extent %d of %s differs from its parent %s and is not among the changed ones",
				off/changemap.ExtentBytes, rec.ID, rec.ParentID)
		}
	}
	return nil
}
