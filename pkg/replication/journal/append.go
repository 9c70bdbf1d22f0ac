package journal

import (
	"fmt"
	"math"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var padding [recordAlign]byte

// Append adds a record at the head of the stream and returns its header as written: Ordinal is head+1 if the kind takes
// one and head otherwise (sync-begin keeps the caller's, which must not be below head), Shard, DurableOrdinal, DataCRC
// and, if the kind has data, Length are filled in.
//
// When Append returns, the record is in the page cache and so survives the death of the process; Sync makes it survive a
// power loss. On an error no ordinal was used and nothing was added: ErrTooLarge, ErrFull, ErrOutOfOrder, ErrFailed,
// ErrClosed, or the file system's, ENOSPC for one, after which the same append can be tried again.
func (j *Journal) Append(h Header, data []byte) (Header, Location, error) {
	h.DataCRC = DataCRC(data)
	h.Shard = j.o.Shard
	if h.Kind.HasData() {
		if len(data) > MaxDataBytes {
			return Header{}, Location{}, fmt.Errorf("%w: %d bytes of data, the limit is %d", ErrTooLarge, len(data), MaxDataBytes)
		}
		h.Length = uint32(len(data))
	}
	return j.append(h, data, true)
}

// AppendCopy adds a record that another site's journal already has, with its header as it came; only DurableOrdinal is
// this journal's own. Its ordinal must be head+1 for kinds that take one, head for the others, and at least head for
// sync-begin, which sets head to it; otherwise ErrOutOfOrder. Data that does not have the header's DataCRC is ErrDataCRC.
// Durability and the other errors are as with Append.
func (j *Journal) AppendCopy(h Header, data []byte) (Location, error) {
	if h.Kind.HasData() && int64(h.Length) != int64(len(data)) {
		return Location{}, fmt.Errorf("%w: record %d has %d bytes of data, its header says %d", ErrDataCRC, h.Ordinal, len(data), h.Length)
	}
	if len(data) > MaxDataBytes {
		return Location{}, fmt.Errorf("%w: %d bytes of data, the limit is %d", ErrTooLarge, len(data), MaxDataBytes)
	}
	if crc := DataCRC(data); crc != h.DataCRC {
		return Location{}, fmt.Errorf("%w: record %d has %#08x, its header says %#08x", ErrDataCRC, h.Ordinal, crc, h.DataCRC)
	}
	_, loc, err := j.append(h, data, false)
	return loc, err
}

// append writes one record. The checksum of the data was computed before, outside of the lock.
func (j *Journal) append(h Header, data []byte, assign bool) (Header, Location, error) {
	if err := h.check(); err != nil {
		return Header{}, Location{}, fmt.Errorf("journal %s: %w", j.o.Dir, err)
	}
	if !h.Kind.HasData() && len(data) > 0 {
		return Header{}, Location{}, fmt.Errorf("journal %s: %s record with %d bytes of data", j.o.Dir, h.Kind, len(data))
	}
	size := recordBytes(int64(len(data)))
	if size > j.o.SegmentBytes-segmentHeaderBytes {
		return Header{}, Location{}, fmt.Errorf("%w: %d bytes of data do not fit in a segment of %d", ErrTooLarge, len(data), j.o.SegmentBytes)
	}

	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.mu.Lock()
	if err := j.usableLocked(); err != nil {
		j.mu.Unlock()
		return Header{}, Location{}, err
	}
	cur := j.currentLocked()
	if cur != nil && (j.mustRoll || cur.end+size > cur.hdr.segmentBytes) {
		cur = nil
	}
	head := j.head
	j.mu.Unlock()

	if assign && h.Kind != KindSyncBegin {
		h.Ordinal = head
		if h.Kind.TakesOrdinal() {
			h.Ordinal++
		}
	}
	// The last ordinal is not used: a segment behind it could not name its first one.
	if h.Ordinal == math.MaxUint64 {
		return Header{}, Location{}, fmt.Errorf("%w: no ordinals left behind %d", ErrOutOfOrder, head)
	}
	if err := h.follows(head); err != nil {
		return Header{}, Location{}, err
	}
	if cur == nil {
		var err error
		if cur, err = j.nextSegment(); err != nil {
			return Header{}, Location{}, err
		}
	}

	j.mu.Lock()
	d := diskHeader{Header: h, prevCRC: j.chain}
	d.DurableOrdinal = j.durable
	if j.durableEnd == j.end {
		d.flags |= flagAllDurable
	}
	off := cur.end
	j.mu.Unlock()

	// Record N is in the page cache, whole, before N+1 begins: one write call per record, under appendMu. Writing them in
	// parallel at reserved offsets would be faster, but kill -9 could then leave a hole before a record that was
	// acknowledged, and recovery would have to drop that record as part of a torn tail.
	d.encode(j.headBuf[:], cur.hdr.seed(), off)
	if err := j.writeRecord(cur, data, size, off); err != nil {
		// What is on disk at off is unknown. A segment with records in it is not written to again: the next append opens a
		// new one whose header says that this one ends at off, whatever lies behind. That also leaves a bad sector behind.
		// In a segment without records the next append simply overwrites the same place: nothing precedes it, and rolling
		// would use up a segment per attempt.
		j.mu.Lock()
		if cur.end > segmentHeaderBytes {
			j.mustRoll = true
		}
		j.mu.Unlock()
		return Header{}, Location{}, fmt.Errorf("journal: writing record %d to %s at offset %d: %w", h.Ordinal, cur.name, off, err)
	}

	j.mu.Lock()
	cur.note(off, j.head)
	cur.end = off + size
	cur.last = d.Ordinal
	j.chain = d.crc
	j.head = d.Ordinal
	j.end = Position{cur.hdr.sequence, cur.end}
	j.prev = j.end
	j.appended++
	j.mu.Unlock()
	return d.Header, Location{cur.hdr.sequence, off + recordHeaderBytes}, nil
}

// writeRecord writes headBuf and data at off in one call.
func (j *Journal) writeRecord(s *segment, data []byte, size, off int64) error {
	pad := padding[:size-recordHeaderBytes-int64(len(data))]
	var n int
	var err error
	if v, ok := s.f.(vfs.WriteVer); ok {
		j.bufs = [3][]byte{j.headBuf[:], data, pad}
		bufs := j.bufs[:]
		switch {
		case len(data) == 0:
			bufs = bufs[:1]
		case len(pad) == 0:
			bufs = bufs[:2]
		}
		n, err = v.WritevAt(bufs, off)
		j.bufs = [3][]byte{} // does not keep the caller's data alive
	} else {
		j.joinBuf = append(append(append(j.joinBuf[:0], j.headBuf[:]...), data...), pad...)
		n, err = s.f.WriteAt(j.joinBuf, off)
	}
	if err == nil && int64(n) != size {
		err = fmt.Errorf("short write: %d of %d bytes", n, size)
	}
	return err
}

// nextSegment seals the current segment and starts the next one. Called with appendMu held. On an error the stream's
// head and end are as before.
func (j *Journal) nextSegment() (*segment, error) {
	s, err := j.takeFree()
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	// From here on the old segment takes nothing more, even if the header write below fails: the header may be on disk
	// then, saying that the old segment ends here.
	if cur := j.currentLocked(); cur != nil {
		cur.sealed = true
	}
	s.hdr = segmentHeader{
		shard:        j.o.Shard,
		group:        j.o.GroupID,
		timeline:     j.timeline,
		sequence:     j.nextSequence,
		salt:         j.o.Rand(),
		firstOrdinal: j.head + 1,
		prev:         j.prev,
		chain:        j.chain,
		durable:      j.durable,
		durableEnd:   j.durableEnd,
		segmentBytes: j.o.SegmentBytes,
	}
	j.nextSequence++
	j.mu.Unlock()

	var b [segmentHeaderBytes]byte
	s.hdr.encode(b[:])
	if _, err := s.f.WriteAt(b[:], 0); err != nil {
		j.mu.Lock()
		j.free = append(j.free, s)
		j.mu.Unlock()
		return nil, fmt.Errorf("journal: writing the header of %s: %w", s.name, err)
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	s.end = segmentHeaderBytes
	s.last = j.head
	s.synced = 0
	s.sealed, s.released = false, false
	s.index = nil
	j.mustRoll = false
	j.live = append(j.live, s)
	return s, nil
}

// Roll makes the next record start a new segment on the given timeline: a promotion. Nothing is written until then.
func (j *Journal) Roll(timeline [16]byte) error {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usableLocked(); err != nil {
		return err
	}
	j.timeline = timeline
	j.mustRoll = true
	return nil
}
