// Package overlay says which bytes of one volume are newest in the journal and not yet in the image. It is the "read"
// line of the picture: a read takes what Lookup finds from the journal, and the gaps from the image.
//
// A Map is an ordered set of disjoint byte ranges ("pieces"), each a part of one journal record. Insert cuts away what
// it covers, so the record inserted last wins; the caller inserts in stream order. Once records are in the image, the
// caller removes them with the same offset, length and location that it inserted: pieces that a newer record has
// covered since belong to that record and stay.
//
// It is not a cache and holds no data, only where data lies. It is not persistent: recovery fills it again from the
// journal. It does not keep a segment alive; see Lookup for what a caller must order.
//
// # Memory
//
// Pieces are keyed by their end, not their start. The piece that holds an offset is then simply the first one whose end
// lies behind it, so one descent of the tree finds it, where keys by start need a second one for the predecessor; and a
// piece trimmed at its front keeps its key. An entry and its key take 32 bytes in a B-tree whose nodes are about two
// thirds full after random inserts: measured, 48 bytes a piece, 14 MB for 300k pieces.
//
// # Concurrency
//
// All methods are safe for concurrent use. One RWMutex covers the map; it is held for the time of one operation and
// never over I/O.
package overlay

import (
	"fmt"
	"math"
	"sync"

	"github.com/tidwall/btree"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// Value says where the bytes of a piece come from.
type Value struct {
	// Loc identifies the record. It is compared by Remove and otherwise not looked at.
	Loc journal.Location
	// Skip is the number of bytes into the record's data at which the piece begins. Always 0 where Zero is set.
	Skip int64
	// Zero marks a discard or zero record: the piece reads as zeros and there is no data to fetch.
	Zero bool
}

// Piece is one part of a Lookup's answer: Len bytes of the volume at Off.
type Piece struct {
	Off, Len int64 // bytes
	Value          // meaningful only where Found is set
	// Found is false for a gap: the image has the newest bytes.
	Found bool
}

// Map is the overlay of one volume. Use New.
type Map struct {
	mu     sync.RWMutex
	pieces btree.Map[int64, entry] // by end offset, exclusive; disjoint; none empty
	bytes  int64                   // sum of the lengths
	hits   []hit                   // scratch of Insert and Remove, reused under mu
}

// entry is a Value and the piece's length, packed.
type entry struct {
	segment uint64
	where   uint64 // offset in the segment; zeroBit set for a piece without data
	skip    uint32 // bytes
	length  uint32 // bytes; > 0
}

type hit struct {
	end int64
	entry
}

const (
	zeroBit = 1 << 63
	// maxHits is how much scratch is kept between calls. A discard of a whole volume may need far more, once.
	maxHits = 1024
)

// New returns an empty map.
func New() *Map { return &Map{} }

// Insert makes the n bytes at off those of the record v. Older pieces are cut back to what lies outside the range, and
// dropped when nothing does. n <= 0 does nothing.
//
// The caller has validated the record: a negative off, a range past the largest int64, or, for a piece with data, bytes
// past the 4 GiB that a record's length can say, is a bug and panics.
func (m *Map) Insert(off, n int64, v Value) {
	if n <= 0 {
		return
	}
	checkRange(off, n)
	e := entry{segment: v.Loc.Segment, where: uint64(v.Loc.Offset)}
	if v.Loc.Offset < 0 {
		panic(fmt.Sprintf("overlay: record at negative offset %d of segment %d", v.Loc.Offset, v.Loc.Segment))
	}
	if v.Zero {
		e.where |= zeroBit
	} else {
		if v.Skip < 0 || n > math.MaxUint32-v.Skip {
			panic(fmt.Sprintf("overlay: %d bytes at %d of a record's data; a record is shorter than 4 GiB", n, v.Skip))
		}
		e.skip = uint32(v.Skip)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	end := off + n
	for _, h := range m.overlapping(off, end) {
		m.bytes -= m.cut(h, off, end, true)
	}
	// A range without data can be longer than a length field; it becomes several pieces.
	for off < end {
		e.length = uint32(min(end-off, math.MaxUint32))
		off += int64(e.length)
		m.pieces.Set(off, e)
	}
	m.bytes += n
}

// Remove takes the record at loc out of the n bytes at off. Pieces of other records, newer or older, stay; so do the
// record's own pieces outside the range. Removing what is not there does nothing.
func (m *Map) Remove(off, n int64, loc journal.Location) {
	if n <= 0 {
		return
	}
	checkRange(off, n)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, h := range m.overlapping(off, off+n) {
		if h.location() == loc {
			m.bytes -= m.cut(h, off, off+n, false)
		}
	}
}

// Lookup appends to dst what the map knows about the n bytes at off and returns the result: pieces in order that cover
// the range completely, neighbours and ends cut to it, gaps as pieces with Found unset. It does not allocate when dst
// has room. n <= 0 appends nothing.
//
// The answer is one instant's. It stays good for reading as long as the journal segments it names exist, so a reader
// has to keep them from being recycled between Lookup and the read (the group's trim waits for readers); and where it
// says "gap", the image holds the bytes, since records are applied before they are removed here.
func (m *Map) Lookup(off, n int64, dst []Piece) []Piece {
	if n <= 0 {
		return dst
	}
	checkRange(off, n)
	end := off + n
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.pieces.Ascend(off+1, func(pieceEnd int64, e entry) bool {
		start := pieceEnd - int64(e.length)
		if start >= end {
			return false
		}
		if start > off {
			dst = append(dst, Piece{Off: off, Len: start - off})
			off = start
		}
		stop := min(pieceEnd, end)
		dst = append(dst, Piece{Off: off, Len: stop - off, Value: e.value(off - start), Found: true})
		off = stop
		return off < end
	})
	if off < end {
		dst = append(dst, Piece{Off: off, Len: end - off})
	}
	return dst
}

// Bytes returns how many bytes of the volume the map covers, those that read as zeros included.
func (m *Map) Bytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bytes
}

// Len returns the number of pieces, the measure of the map's memory.
func (m *Map) Len() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pieces.Len()
}

// overlapping returns the pieces that share bytes with [off, end), in order. The slice is scratch: valid until the next
// call, and a copy, so that the tree may be changed while it is walked.
func (m *Map) overlapping(off, end int64) []hit {
	if cap(m.hits) > maxHits {
		m.hits = nil
	}
	hits := m.hits[:0]
	m.pieces.Ascend(off+1, func(pieceEnd int64, e entry) bool {
		if pieceEnd-int64(e.length) >= end {
			return false
		}
		hits = append(hits, hit{pieceEnd, e})
		return pieceEnd < end
	})
	m.hits = hits
	return hits
}

// cut takes [off, end) out of a piece that overlaps it and returns how many bytes that was. replaced says that the
// caller puts a piece that ends at end next; one that is there now need not be deleted first, which spares the
// overwrite of a block by the same block, the most frequent insert of all, half of its work.
func (m *Map) cut(h hit, off, end int64, replaced bool) int64 {
	start := h.end - int64(h.length)
	taken := min(h.end, end) - max(start, off)
	switch {
	case h.end > end:
		right := h.entry
		right.length = uint32(h.end - end)
		right.advance(end - start)
		m.pieces.Set(h.end, right)
	case h.end < end || !replaced:
		m.pieces.Delete(h.end)
	}
	if start < off {
		left := h.entry
		left.length = uint32(off - start)
		m.pieces.Set(off, left)
	}
	return taken
}

// advance moves the entry's place in the record's data. Pieces without data have none.
func (e *entry) advance(n int64) {
	if e.where&zeroBit == 0 {
		e.skip += uint32(n)
	}
}

func (e *entry) location() journal.Location {
	return journal.Location{Segment: e.segment, Offset: int64(e.where &^ zeroBit)}
}

// value returns the entry's Value as seen from the piece's n-th byte.
func (e *entry) value(n int64) Value {
	v := Value{Loc: e.location(), Zero: e.where&zeroBit != 0}
	if !v.Zero {
		v.Skip = int64(e.skip) + n
	}
	return v
}

func checkRange(off, n int64) {
	if off < 0 || n > math.MaxInt64-off {
		panic(fmt.Sprintf("overlay: range of %d bytes at offset %d", n, off))
	}
}
