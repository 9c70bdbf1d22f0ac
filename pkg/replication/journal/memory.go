package journal

import (
	"slices"
	"sort"
	"sync"
	"sync/atomic"
)

// Memory keeps copies of the newest records of several journals, so that cursors, which ship and apply records a moment
// after they became durable, do not read and verify them again. The budget is one for all its journals: the oldest
// records of any journal make room for new ones.
//
// It is a cache and nothing else. A cursor asks the journal first which records are live and durable, and gets the same
// records, in the same portions, with and without a Memory.
//
// Memory is made of slabs of slabBytes, which are allocated when they are needed and then used again. A record that is
// larger than a slab is not kept. A slab whose records a cursor has handed out is not used again until the next call of
// the cursor.
//
// All methods are safe for concurrent use.
type Memory struct {
	limit int // slabs

	mu    sync.Mutex
	slabs []*slab // by the time of their first record, the oldest first

	fromMemory, fromFiles atomic.Uint64 // records
}

// DefaultMemoryBytes is a good budget for a process. Shipping reads what was written in the last 20 ms.
const DefaultMemoryBytes = 8 << 20

const (
	slabBytes   = 128 << 10
	slabRecords = 256
)

// slab has records of one journal, one behind the other, possibly with others between them that it does not have.
type slab struct {
	owner   *recent
	data    []byte // of the records; its capacity is slabBytes
	records []kept
	readers int // cursors that use data
}

// kept is a record in a slab.
type kept struct {
	begin Position
	crc   uint32 // what the next record continues
	Record
}

// recent is a journal's part of a Memory. Its fields are guarded by the Memory's lock. The nil recent keeps nothing.
type recent struct {
	memory *Memory
	slabs  []*slab // in stream order
}

// NewMemory returns a memory that keeps up to so many bytes of data, in whole slabs and at least one.
func NewMemory(bytes int64) *Memory { return &Memory{limit: max(1, int(bytes/slabBytes))} }

// MemoryStats is what a Memory has and has done.
type MemoryStats struct {
	HeldBytes, LimitBytes int64
	// FromMemory and FromFiles count the records that cursors have handed out, by where they came from.
	FromMemory, FromFiles uint64
}

// Stats returns what the memory has and has done. A nil memory has nothing.
func (m *Memory) Stats() MemoryStats {
	if m == nil {
		return MemoryStats{}
	}
	s := MemoryStats{LimitBytes: int64(m.limit) * slabBytes, FromMemory: m.fromMemory.Load(),
		FromFiles: m.fromFiles.Load()}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.HeldBytes = int64(len(m.slabs)) * slabBytes
	return s
}

func (m *Memory) newRecent() *recent {
	if m == nil {
		return nil
	}
	return &recent{memory: m}
}

// keep copies records that were appended, with the CRCs that the next ones continue. They need not be durable.
func (r *recent) keep(entries []Entry, crcs []uint32) {
	if r == nil {
		return
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		s := r.roomLocked(len(e.Data))
		if s == nil {
			continue
		}
		at := len(s.data)
		s.data = append(s.data, e.Data...)
		begin := Position{e.Loc.Segment, e.Loc.Offset - recordHeaderBytes}
		s.records = append(s.records, kept{begin, crcs[i], Record{
			Header: e.Header, Data: s.data[at:len(s.data):len(s.data)], Loc: e.Loc,
			End: Position{begin.Segment, begin.Offset + recordBytes(int64(len(e.Data)))},
		}})
	}
}

// roomLocked returns a slab that has room for a record, or nil if none can be had.
func (r *recent) roomLocked(bytes int) *slab {
	if bytes > slabBytes {
		return nil
	}
	if n := len(r.slabs); n > 0 {
		s := r.slabs[n-1]
		if len(s.records) < slabRecords && cap(s.data)-len(s.data) >= bytes {
			return s
		}
	}
	s := r.memory.takeLocked()
	if s != nil {
		s.owner = r
		r.slabs = append(r.slabs, s)
	}
	return s
}

// takeLocked returns an empty slab, the newest one from now on: another one, or the oldest that no cursor uses.
func (m *Memory) takeLocked() *slab {
	if len(m.slabs) < m.limit {
		s := &slab{data: make([]byte, 0, slabBytes)}
		m.slabs = append(m.slabs, s)
		return s
	}
	for i, s := range m.slabs {
		if s.readers > 0 {
			continue
		}
		s.owner.slabs = slices.DeleteFunc(s.owner.slabs, func(other *slab) bool { return other == s })
		m.slabs = append(slices.Delete(m.slabs, i, i+1), s)
		s.data, s.records = s.data[:0], s.records[:0]
		return s
	}
	return nil
}

// forget gives up everything that is kept of a journal. A cursor may go on using what it has.
func (r *recent) forget() {
	if r == nil {
		return
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	r.memory.slabs = slices.DeleteFunc(r.memory.slabs, func(s *slab) bool { return s.owner == r })
	r.slabs = nil
}

// read returns the records from a position up to limit, in the same segment, that fit in maxBytes, and at least one, in
// dst; and the CRC that the next record continues. It has all of them or returns none. The slabs in held must be let go
// when the records are of no use any more.
func (r *recent) read(at, limit Position, maxBytes int64, dst []Record, held []*slab) ([]Record, []*slab, uint32) {
	if r == nil {
		return nil, nil, 0
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	dst, held = dst[:0], held[:0]
	begin, crc := at, uint32(0)
	i := sort.Search(len(r.slabs), func(i int) bool { return at.Before(r.slabs[i].records[0].begin) }) - 1
	for complete := false; !complete; i++ {
		if i < 0 || i == len(r.slabs) {
			return nil, nil, 0
		}
		s := r.slabs[i]
		n := sort.Search(len(s.records), func(n int) bool { return !s.records[n].begin.Before(at) })
		for from := n; !complete; n++ {
			if n == len(s.records) && n > from {
				break // the next slab may go on
			}
			if n == len(s.records) || s.records[n].begin != at {
				return nil, nil, 0
			}
			k := &s.records[n]
			if len(dst) > 0 && k.End.Offset-begin.Offset > maxBytes {
				complete = true
				break
			}
			dst, crc, at = append(dst, k.Record), k.crc, k.End
			complete = at == limit
		}
		held = append(held, s)
	}
	for _, s := range held {
		s.readers++
	}
	r.memory.fromMemory.Add(uint64(len(dst)))
	return dst, held, crc
}

// positionAfter returns the position before the first record of a segment whose ordinal is above the given one, if the
// memory has that record and the one before it. The ordinals of a segment's records do not descend; those of different
// segments can, after a rewind.
func (r *recent) positionAfter(segment, ordinal uint64) (Position, bool) {
	if r == nil {
		return Position{}, false
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	before := Position{segment, segmentHeaderBytes} // where the record begins that has no gap before it
	for _, s := range r.slabs {
		from := sort.Search(len(s.records), func(n int) bool { return s.records[n].begin.Segment >= segment })
		to := sort.Search(len(s.records), func(n int) bool { return s.records[n].begin.Segment > segment })
		records := s.records[from:to]
		n := sort.Search(len(records), func(n int) bool { return records[n].Header.Ordinal > ordinal })
		if n > 0 {
			before = records[n-1].End
		}
		if n < len(records) {
			return before, records[n].begin == before
		}
	}
	return Position{}, false
}

// copyData fills p from the data of the record at loc, beginning skip bytes into it, and reports whether the memory has
// it.
func (r *recent) copyData(loc Location, skip int64, p []byte) bool {
	if r == nil {
		return false
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	begin := Position{loc.Segment, loc.Offset - recordHeaderBytes}
	i := sort.Search(len(r.slabs), func(i int) bool { return begin.Before(r.slabs[i].records[0].begin) }) - 1
	if i < 0 {
		return false
	}
	records := r.slabs[i].records
	n := sort.Search(len(records), func(n int) bool { return !records[n].begin.Before(begin) })
	if n == len(records) || records[n].begin != begin || int64(len(records[n].Data)) < skip+int64(len(p)) {
		return false
	}
	copy(p, records[n].Data[skip:])
	return true
}

// unpin ends the use of slabs that read returned.
func (r *recent) unpin(held []*slab) {
	if len(held) == 0 {
		return
	}
	r.memory.mu.Lock()
	defer r.memory.mu.Unlock()
	for _, s := range held {
		s.readers--
	}
}
