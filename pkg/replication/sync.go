package replication

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
	// Tail is the record at the ordinal of the sync-begin, which the secondary may never get; nil if it is not known.
	Tail *core.Tail `json:"tail,omitempty"`
}

// saveChangeMap makes what the peer lacks durable. Extents that the peer acknowledged leave the map on disk by it, so
// how far the peer was then is durable before: a peer that was put back to before that is found out.
func (sh *shipper) saveChangeMap() error {
	g := sh.g
	for {
		relied, saved, err := g.changes.save()
		if saved {
			return err
		}
		if _, err := g.step(core.Relied{Delivery: relied, Through: g.changes.forgottenThrough()}, nil); err != nil {
			return err
		}
		g.changes.reliedStored(relied)
	}
}

// markAll marks every extent of every member: the peer has nothing that counts. What has no content at all is found
// out when it is sent, and costs a record of 64 bytes a GiB.
func (sh *shipper) markAll() error {
	g := sh.g
	g.remembered.forget()
	all := changemap.New()
	for _, v := range *g.members.list.Load() {
		all.Mark(v.index, 0, v.size.Load())
	}
	return g.changes.replaceAll(all)
}

// sendSyncBegin tells the secondary that the stream goes on at s.at and that its copy is not one instant from here on.
func (s *sender) sendSyncBegin() error {
	tail, err := s.g.tail(s.at)
	if err != nil {
		return err
	}
	manifest := syncManifest{Tail: tail}
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
	s.g.changes.beginSync(s.at, rangeBytes(s.undo))
	// The members' descriptions may be newer than their records.
	if err := s.g.log.commit(); err != nil {
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
	if err := s.sync.end(); err != nil {
		return err
	}
	s.g.changes.endSync(s.sequence + 1)
	return s.sendBatch()
}

// wantsSync reports whether a sync has to begin. A sync that core waits for begins also if nothing is left to send,
// since the volume with the content has left the group meanwhile: only a sync-end ends the wait.
func (s *sender) wantsSync() bool {
	if s.sync.active() {
		return false
	}
	if s.g.members.needsSync() {
		return true
	}
	if s.g.changes.ending() { // first: core knows of the end by the time that this is false
		return false
	}
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.g.core.Meta.Sync == core.SyncRunning
}

// control is the header of a record that takes no ordinal: it carries the stream's.
func (s *sender) control(kind journal.Kind, data []byte) journal.Header {
	return journal.Header{
		Kind: kind, Ordinal: s.at, Length: uint32(len(data)), UnixNanos: s.g.cfg.Now().UnixNano(),
		DataCRC: journal.DataCRC(data),
	}
}

// sendExtents sends the next run of the change map, content as it is now.
//
// The run leaves the map before it is read: a fold that comes between marks it again and it is sent twice, never
// missed. It does not leave the map when there are folded records behind the stream's place: the stream has to skip
// these first. The journal is synced before the content goes out, since it may hold writes that are not durable yet.
func (s *sender) sendExtents() (sent bool, err error) {
	g := s.g
	index, extent, count, ok := g.changes.next(holeRunExtents)
	if !ok {
		return false, nil
	}
	v := g.members.at(index)
	if v == nil { // removed from the group
		g.changes.removeVolume(index)
		return true, nil
	}

	// What was shipped before the extent has to be in it, so it has to be in the index.
	_ = g.log.indexedEnd()
	off := int64(extent) * changemap.ExtentBytes
	end := min(off+int64(count)*changemap.ExtentBytes, v.size.Load())
	hole, err := v.holeUntil(off, end)
	if err != nil {
		return false, err
	}
	if off >= end {
		g.changes.clear(index, extent, count)
		return true, nil
	}
	isHole := hole-off >= changemap.ExtentBytes || hole == end
	if isHole {
		if hole < end {
			hole -= hole % changemap.ExtentBytes
		}
		end = hole
	} else {
		run := min(syncRunExtents*changemap.ExtentBytes, g.log.maxRecordBytes())
		end = min(end, off+run-run%changemap.ExtentBytes)
	}
	count = uint64((end - off + changemap.ExtentBytes - 1) / changemap.ExtentBytes)
	run := sentExtents{sequence: s.sequence + 1, volume: index, extent: extent, count: count}
	if !g.changes.take(run, s.at) {
		return true, nil
	}

	// A hole is looked for again now that a later write to it would be marked or shipped.
	if isHole {
		if hole, err = v.holeUntil(off, end); err != nil {
			return false, err
		}
		isHole = hole == end
		if !isHole {
			g.changes.putBack()
			return true, nil
		}
	}
	h := s.control(journal.KindHole, nil)
	h.Volume, h.Offset, h.Length = index, off, uint32(end-off)
	var data []byte
	if !isHole {
		data = make([]byte, end-off)
		if _, err := v.ReadAt(data, off); err != nil && g.members.at(index) != v {
			g.changes.putBack() // it left meanwhile
			g.changes.removeVolume(index)
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
	if err := s.addHorizon(); err != nil {
		return false, err
	}
	if err := s.add(h, data); err != nil {
		return false, err
	}
	return true, s.sendBatch()
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
func (sh *shipper) extentsAcked(sequence uint64, place core.Delivery) error {
	g := sh.g
	ended, save := g.changes.acknowledged(sequence, place)
	if save {
		if err := sh.saveChangeMap(); err != nil {
			return err
		}
	}
	if !ended {
		return nil
	}
	if _, err := g.step(core.SyncAcked{}, nil); err != nil {
		return err
	}
	if g.changes.syncEnded() { // marked while core did not yet know of the end
		_, err := g.step(core.Folded{}, nil)
		return err
	}
	klog.InfoS("Sync complete: the peer can be promoted", "group", g.Name())
	return nil
}
