package journal

import (
	"fmt"
	"math"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var padding [recordAlign]byte

// maxRunRecords bounds the records that one call writes: their buffers, three each, are far from the kernel's limit,
// and more would not make the call cheaper.
const maxRunRecords = 64

// Entry is one record of a batch that is appended.
type Entry struct {
	// Header is what the caller gives, as of Append or AppendCopies; AppendAll completes it.
	Header Header
	Data   []byte
	// Loc is where the data lies, once the record was appended.
	Loc Location
}

// Append adds a record at the head of the stream and returns its header as written: Ordinal is head+1 if the kind takes
// one and head otherwise (sync-begin keeps the caller's, which must not be below head), Shard, DurableOrdinal, DataCRC
// and, if the kind has data, Length are filled in.
//
// When Append returns, the record is in the page cache and so survives the death of the process; Sync makes it survive
// a power loss. On an error no ordinal was used and nothing was added: ErrTooLarge, ErrFull, ErrOutOfOrder, ErrFailed,
// ErrClosed, or the file system's, ENOSPC for one, after which the same append can be tried again.
func (j *Journal) Append(h Header, data []byte) (Header, Location, error) {
	entries := [1]Entry{{Header: h, Data: data}}
	_, err := j.AppendAll(entries[:])
	if err != nil {
		return Header{}, Location{}, err
	}
	return entries[0].Header, entries[0].Loc, nil
}

// AppendAll adds records one behind the other, as Append does, with few write calls. It returns how many were added:
// fewer than all only with the error that kept the next one out.
func (j *Journal) AppendAll(entries []Entry) (int, error) {
	for i := range entries {
		e := &entries[i]
		e.Header.DataCRC = DataCRC(e.Data)
		e.Header.Shard = j.o.Shard
		if e.Header.Kind.HasData() {
			// Before Length, which has 32 bits, could come out small.
			if len(e.Data) > MaxDataBytes {
				return 0, tooLarge(len(e.Data))
			}
			e.Header.Length = uint32(len(e.Data))
		}
	}
	return j.append(entries, true)
}

// AppendCopies adds records that another site's journal already has, with their headers as they came. Only
// DurableOrdinal is this journal's own. A record's ordinal must be head+1 for kinds that take one, head for the others,
// and at least head for sync-begin, which sets head to it. Otherwise the error is ErrOutOfOrder. Data of another length
// than the header's is ErrDataCRC. DecodeWire has verified that data has the header's DataCRC; it is not verified again
// here. Durability, the other errors and the result are those of AppendAll.
func (j *Journal) AppendCopies(entries []Entry) (int, error) {
	for i := range entries {
		h, data := &entries[i].Header, entries[i].Data
		if h.Kind.HasData() && int64(h.Length) != int64(len(data)) {
			return 0, fmt.Errorf("%w: record %d has %d bytes of data, its header says %d", ErrDataCRC, h.Ordinal,
				len(data), h.Length)
		}
		if len(data) > MaxDataBytes {
			return 0, tooLarge(len(data))
		}
	}
	return j.append(entries, false)
}

func tooLarge(n int) error {
	return fmt.Errorf("%w: %d bytes of data, the limit is %d", ErrTooLarge, n, MaxDataBytes)
}

// append writes records. The checksums of the data were computed before, outside of the lock.
func (j *Journal) append(entries []Entry, assign bool) (int, error) {
	for i := range entries {
		h, data := &entries[i].Header, entries[i].Data
		if err := h.check(); err != nil {
			return 0, fmt.Errorf("journal %s: %w", j.o.Dir, err)
		}
		if !h.Kind.HasData() && len(data) > 0 {
			return 0, fmt.Errorf("journal %s: %s record with %d bytes of data", j.o.Dir, h.Kind, len(data))
		}
	}
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	for done := 0; done < len(entries); {
		n, err := j.appendRun(entries[done:], assign)
		if done += n; err != nil {
			return done, err
		}
	}
	return len(entries), nil
}

// appendRun writes as many of the first entries as fit into the current segment and into one call. It writes all that
// it set out to write, or nothing with an error. Called with appendMu held.
func (j *Journal) appendRun(entries []Entry, assign bool) (int, error) {
	j.mu.Lock()
	if err := j.usableLocked(); err != nil {
		j.mu.Unlock()
		return 0, err
	}
	cur := j.currentLocked()
	if cur != nil && (j.mustRoll || cur.end+recordBytes(int64(len(entries[0].Data))) > cur.hdr.segmentBytes) {
		cur = nil
	}
	head := j.head
	j.mu.Unlock()

	if err := assignOrdinal(&entries[0].Header, head, assign); err != nil {
		return 0, err
	}
	if cur == nil {
		var err error
		if cur, err = j.nextSegment(recordBytes(int64(len(entries[0].Data)))); err != nil {
			return 0, err
		}
	}

	j.mu.Lock()
	d := diskHeader{prevCRC: j.chain}
	durable := j.durable
	if j.durableEnd == j.end {
		d.flags |= flagAllDurable
	}
	off := cur.end
	j.mu.Unlock()

	// Record N is in the page cache, whole, before N+1 begins: records are written by one thread, in the order of their
	// places, under appendMu. Writing them in parallel at reserved offsets would be faster, but kill -9 could then leave a
	// hole before a record that was acknowledged, and recovery would have to drop that record as part of a torn tail.
	at, n := off, 0
	bufs := j.bufs[:0]
	for ; n < min(len(entries), maxRunRecords); n++ {
		e := &entries[n]
		size := recordBytes(int64(len(e.Data)))
		if n > 0 {
			// The first record behind a roll tells of it, and what cannot follow is refused as the first one of its run.
			if at+size > cur.hdr.segmentBytes || assignOrdinal(&e.Header, head, assign) != nil {
				break
			}
			d.prevCRC, d.flags = d.crc, d.flags&^flagAllDurable
		}
		e.Header.DurableOrdinal = durable
		d.Header = e.Header
		head = d.Ordinal
		b := j.heads[n][:]
		d.encode(b, cur.hdr.seed(), at)
		j.crcs[n] = d.crc
		bufs = append(bufs, b)
		if len(e.Data) > 0 {
			bufs = append(bufs, e.Data)
		}
		if pad := size - recordHeaderBytes - int64(len(e.Data)); pad > 0 {
			bufs = append(bufs, padding[:pad])
		}
		e.Loc = Location{cur.hdr.sequence, at + recordHeaderBytes}
		at += size
	}
	err := j.writeRun(cur, bufs, at-off, off)
	clear(bufs) // does not keep the caller's data alive
	if err != nil {
		// What is on disk at off is unknown. A segment with records in it is not written to again: the next append opens a
		// new one whose header says that this one ends at off, whatever lies behind. That also leaves a bad sector behind.
		// In a segment without records the next append simply overwrites the same place: nothing precedes it, and rolling
		// would use up a segment per attempt.
		j.mu.Lock()
		if cur.end > segmentHeaderBytes {
			j.mustRoll = true
		}
		j.mu.Unlock()
		return 0, fmt.Errorf("journal: writing record %d to %s at offset %d: %w", entries[0].Header.Ordinal, cur.name,
			off, err)
	}

	// Before the records can become durable, so that a cursor does not read what is about to be in memory.
	j.recent.keep(entries[:n], j.crcs[:n])
	j.mu.Lock()
	for i := range entries[:n] {
		cur.note(entries[i].Loc.Offset-recordHeaderBytes, j.head)
		j.head = entries[i].Header.Ordinal
	}
	cur.end = at
	cur.last = j.head
	j.chain = d.crc
	j.end = Position{cur.hdr.sequence, cur.end}
	j.prev, j.prevFile = j.end, fileNumber(cur.name)
	j.appended += uint64(n)
	j.mu.Unlock()
	return n, nil
}

// assignOrdinal gives a record that comes after head its ordinal, or checks the one it has.
func assignOrdinal(h *Header, head uint64, assign bool) error {
	if assign && h.Kind != KindSyncBegin {
		h.Ordinal = head
		if h.Kind.TakesOrdinal() {
			h.Ordinal++
		}
	}
	// The last ordinal is not used: a segment behind it could not name its first one.
	if h.Ordinal == math.MaxUint64 {
		return fmt.Errorf("%w: no ordinals left behind %d", ErrOutOfOrder, head)
	}
	return h.follows(head)
}

// writeRun writes bufs, size bytes in all, at off in one call.
func (j *Journal) writeRun(s *segment, bufs [][]byte, size, off int64) error {
	var n int
	var err error
	if v, ok := s.f.(vfs.WriteVer); ok {
		n, err = v.WritevAt(bufs, off)
	} else {
		j.joinBuf = j.joinBuf[:0]
		for _, b := range bufs {
			j.joinBuf = append(j.joinBuf, b...)
		}
		n, err = s.f.WriteAt(j.joinBuf, off)
	}
	if err == nil && int64(n) != size {
		err = fmt.Errorf("short write: %d of %d bytes", n, size)
	}
	return err
}

// nextSegment seals the current segment and starts the next one, which has room for a record of need bytes. Called with
// appendMu held. On an error the stream's head and end are as before.
func (j *Journal) nextSegment(need int64) (*segment, error) {
	s, err := j.takeFree(need)
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
		segmentBytes: s.size,
		prevFile:     j.prevFile,
	}
	if j.o.Generation != nil {
		s.hdr.generation = j.o.Generation()
	}
	j.nextSequence++
	j.mu.Unlock()

	var b [segmentHeaderBytes]byte
	s.hdr.encode(b[:])
	if _, err := s.f.WriteAt(b[:], 0); err != nil {
		j.giveBack(s)
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
