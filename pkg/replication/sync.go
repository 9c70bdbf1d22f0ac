package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/overlay"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// syncRunExtents is how many neighbouring extents one batch of a sync carries.
	syncRunExtents = 8
	// holeRunExtents bounds one record about a range without content: 1 GiB.
	holeRunExtents = maxRangeBytes / changemap.ExtentBytes
	// saveMapExtents is after how many acknowledged extents the map on disk is brought up to date, so that an
	// interrupted sync does not begin again from its start: 1 GiB.
	saveMapExtents = 1 << 14
)

// syncManifest is the data of a sync-begin record.
type syncManifest struct {
	Members []core.Member `json:"members"`
}

// sentExtents is a run of extents on its way.
type sentExtents struct {
	sequence uint64 // batch
	volume   uint32
	extent   uint64
	count    uint64
}

func (s *sentExtents) restore(m *changemap.Map) {
	for i := range s.count {
		m.MarkExtent(s.volume, s.extent+i)
	}
}

// syncProgress is for status alone.
type syncProgress struct {
	doneBytes, totalBytes atomic.Uint64
	unsaved               uint64 // extents acknowledged since the map was saved; guarded by mapMu
}

// mapDirty reports whether there is something to sync, or will be: while a volume in use joins.
func (g *Group) mapDirty() bool {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	return g.pending.Len() > 0 || len(g.joining) > 0
}

// awaitsJoining reports whether a volume that joins is all that keeps a sync from ending.
func (g *Group) awaitsJoining() bool {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	return g.pending.Len() == 0 && len(g.joining) > 0
}

// changeMapBytes is what the peer lacks besides records.
func (g *Group) changeMapBytes() uint64 {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	n := g.pending.Bytes()
	for _, s := range g.inFlight {
		n += s.count * changemap.ExtentBytes
	}
	return n
}

// saveChangeMap makes what is pending or in flight durable. Extents that the peer acknowledged leave the map on disk by
// it, so how far the peer was then is durable before: a peer that was put back to before that is found out.
func (g *Group) saveChangeMap() error {
	for {
		g.mapMu.Lock()
		relied := g.relied
		if !g.reliedSaved.Before(relied) {
			defer g.mapMu.Unlock()
			return g.saveMapLocked()
		}
		g.mapMu.Unlock()
		if _, err := g.step(core.Relied{Delivery: relied}, nil); err != nil {
			return err
		}
		g.mapMu.Lock()
		if g.reliedSaved.Before(relied) {
			g.reliedSaved = relied
		}
		g.mapMu.Unlock()
	}
}

// saveMapLocked writes the map. The caller holds mapMu.
func (g *Group) saveMapLocked() error {
	all := g.pending.Clone()
	for _, s := range g.inFlight {
		s.restore(all)
	}
	g.progress.unsaved = 0
	who := g.checkpoint.read().Owner
	generation, err := g.checkpoint.replaceFile(fileMap, g.mapGeneration, func(generation uint64) error {
		tag := changemap.Tag{Group: who.group, Pool: who.pool, Generation: generation}
		return g.cfg.Pool.WithReserve(func() error { return all.SaveTagged(g.cfg.FS, g.path(changeMapFile), tag) })
	})
	g.mapGeneration = generation
	return err
}

// markAll marks every extent of every member: the peer has nothing that counts. What has no content at all is found
// out when it is sent, and costs a record of 64 bytes a GiB.
func (g *Group) markAll() error {
	g.forgetPeer()
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	g.pending, g.inFlight = changemap.New(), nil
	for _, v := range *g.volumes.Load() {
		g.pending.Mark(v.index, 0, v.size.Load())
	}
	return g.saveMapLocked() // mu is held; nothing is forgotten
}

// sendSyncBegin tells the secondary that the stream goes on at s.at and that its copy is not one instant from here on.
func (s *sender) sendSyncBegin() error {
	var manifest syncManifest
	s.g.mu.Lock()
	for _, m := range s.g.core.Meta.Members {
		manifest.Members = append(manifest.Members, m.Described())
	}
	s.g.mu.Unlock()
	data, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	if err := s.sync.begin(); err != nil {
		return err
	}
	s.g.mapMu.Lock()
	s.g.syncEnd = 0
	s.g.mapMu.Unlock()
	s.g.progress.doneBytes.Store(0)
	s.g.progress.totalBytes.Store(s.g.changeMapBytes())
	// The members' descriptions may be newer than their records.
	if err := s.g.commit(); err != nil {
		return err
	}
	h := s.control(journal.KindSyncBegin, data)
	s.horizon = s.g.journal.Durable()
	h.Offset = int64(s.horizon)
	if err := s.add(h, data); err != nil {
		return err
	}
	return s.sendBatch()
}

// sendSyncEnd tells the secondary that its copy is the primary's prefix again when it has everything sent so far.
func (s *sender) sendSyncEnd() error {
	if err := s.add(s.control(journal.KindSyncEnd, nil), nil); err != nil {
		return err
	}
	if err := s.sendBatch(); err != nil {
		return err
	}
	if err := s.sync.end(); err != nil {
		return err
	}
	s.g.mapMu.Lock()
	s.g.syncEnd = s.sequence
	s.g.mapMu.Unlock()
	return nil
}

// control is the header of a record that takes no ordinal: it carries the stream's.
func (s *sender) control(kind journal.Kind, data []byte) journal.Header {
	return journal.Header{
		Kind: kind, Ordinal: s.at, Length: uint32(len(data)), UnixNanos: s.g.cfg.Now().UnixNano(), DataCRC: journal.DataCRC(data),
	}
}

// sendExtents sends the next run of the change map, content as it is now.
//
// The run leaves the map before it is read: a fold that comes between marks it again and it is sent twice, never
// missed. It does not leave the map when there are folded records behind the stream's place: the stream has to skip these
// first. The journal is synced before the content goes out, since it may hold writes that are not durable yet.
func (s *sender) sendExtents() (sent bool, err error) {
	g := s.g
	g.mapMu.Lock()
	index, extent, count, ok := g.pending.NextRun(changemap.Cursor{}, holeRunExtents)
	if !ok {
		g.mapMu.Unlock()
		return false, nil
	}
	v := g.volume(index)
	if v == nil { // removed from the group
		g.pending.Drop(index)
		g.mapMu.Unlock()
		return true, nil
	}
	g.mapMu.Unlock()

	// What was shipped before the extent has to be in it, so it has to be in the index.
	_ = g.indexedEnd()
	off := int64(extent) * changemap.ExtentBytes
	end := min(off+int64(count)*changemap.ExtentBytes, v.size.Load())
	hole, err := v.holeUntil(off, end)
	if err != nil {
		return false, err
	}
	if off >= end {
		g.clearRun(index, extent, count)
		return true, nil
	}
	isHole := hole-off >= changemap.ExtentBytes || hole == end
	if isHole {
		if hole < end {
			hole -= hole % changemap.ExtentBytes
		}
		end = hole
	} else {
		run := min(syncRunExtents*changemap.ExtentBytes, g.maxRecordBytes())
		end = min(end, off+run-run%changemap.ExtentBytes)
	}
	count = uint64((end - off + changemap.ExtentBytes - 1) / changemap.ExtentBytes)
	run := sentExtents{sequence: s.sequence + 1, volume: index, extent: extent, count: count}
	if !g.takeRun(run, s.at) {
		return true, nil
	}

	// A hole is looked for again now that a later write to it would be marked or shipped.
	if isHole {
		if hole, err = v.holeUntil(off, end); err != nil {
			return false, err
		}
		isHole = hole == end
		if !isHole {
			g.mapMu.Lock()
			run.restore(g.pending)
			g.inFlight = g.inFlight[:len(g.inFlight)-1]
			g.mapMu.Unlock()
			return true, nil
		}
	}
	h := s.control(journal.KindHole, nil)
	h.Volume, h.Offset, h.Length = index, off, uint32(end-off)
	var data []byte
	if !isHole {
		data = make([]byte, end-off)
		if _, err := v.ReadAt(data, off); err != nil && g.volume(index) != v {
			g.dropInFlight(index) // it left meanwhile
			return true, nil
		} else if err != nil {
			return false, fmt.Errorf("group %s: sync: %w", g.Name(), err)
		}
		if vfs.AllZero(data) {
			data = nil
		} else {
			h.Kind, h.DataCRC = journal.KindExtent, journal.DataCRC(data)
		}
	}
	if err := g.commit(); err != nil {
		return false, err
	}
	if durable := g.journal.Durable(); durable > s.horizon {
		s.horizon = durable
		ahead := s.control(journal.KindHorizon, nil)
		ahead.Offset = int64(durable)
		if err := s.add(ahead, nil); err != nil {
			return false, err
		}
	}
	if err := s.add(h, data); err != nil {
		return false, err
	}
	return true, s.sendBatch()
}

// dropInFlight forgets the last run that was taken from the map, which is of a volume that has left.
func (g *Group) dropInFlight(volume uint32) {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	g.inFlight = g.inFlight[:len(g.inFlight)-1]
	g.pending.Drop(volume)
}

// takeRun moves a run from what is to be sent to what is on its way. It reports false, and moves nothing, when records past
// the ordinal at were folded.
func (g *Group) takeRun(run sentExtents, at uint64) bool {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	if g.folded > at {
		return false
	}
	g.pending.ClearRun(run.volume, run.extent, run.count)
	g.inFlight = append(g.inFlight, run)
	return true
}

func (g *Group) clearRun(volume uint32, extent, count uint64) {
	g.mapMu.Lock()
	defer g.mapMu.Unlock()
	g.pending.ClearRun(volume, extent, count)
}

// holeUntil returns the first offset in [off, end] from which there may be content. Up to there the volume reads as
// zeros. Content moves from the index to the image, so the index is looked at before the image has its last word; the
// look at the image before both only keeps the index's range small.
func (v *Volume) holeUntil(off, end int64) (int64, error) {
	end, err := v.imageHoleUntil(off, end)
	if err != nil || end == off {
		return end, err
	}
	for _, p := range v.overlay.Lookup(off, end-off, make([]overlay.Piece, 0, 16)) {
		if p.Found && !p.Zero {
			end = p.Off
			break
		}
	}
	return v.imageHoleUntil(off, end)
}

func (v *Volume) imageHoleUntil(off, end int64) (int64, error) {
	data, _, err := v.image.NextData(off)
	if errors.Is(err, io.EOF) {
		return end, nil
	}
	if err != nil {
		return off, fmt.Errorf("volume %s: sync: find data after %d: %w", v.id, off, err)
	}
	return min(end, max(off, data)), nil
}

// extentsAcked forgets what the secondary has on stable storage, and ends the sync when that was all. place is how far
// the secondary is with it.
func (g *Group) extentsAcked(sequence uint64, place core.Delivery) error {
	g.mapMu.Lock()
	n := 0
	for n < len(g.inFlight) && g.inFlight[n].sequence <= sequence {
		g.progress.unsaved += g.inFlight[n].count
		g.progress.doneBytes.Add(g.inFlight[n].count * changemap.ExtentBytes)
		n++
	}
	g.inFlight = g.inFlight[n:]
	if n > 0 && g.relied.Before(place) {
		g.relied = place
	}
	ended := g.syncEnd != 0 && sequence >= g.syncEnd && g.pending.Len() == 0 && len(g.inFlight) == 0
	if ended {
		g.syncEnd = 0
	}
	save := ended || g.progress.unsaved >= saveMapExtents
	g.mapMu.Unlock()
	if save {
		if err := g.saveChangeMap(); err != nil {
			return err
		}
	}
	if !ended {
		return nil
	}
	g.progress.doneBytes.Store(0)
	g.progress.totalBytes.Store(0)
	klog.InfoS("Sync complete: the peer can be promoted", "group", g.Name())
	_, err := g.step(core.SyncAcked{}, nil)
	return err
}
