package journal

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Kind says what a record means. The values are part of the format and never change.
type Kind uint8

const (
	KindWrite     Kind = 1 // data of Length bytes at Offset
	KindDiscard   Kind = 2 // no data; the range reads as zeros, space given back
	KindZero      Kind = 3 // no data; the range reads as zeros, space kept
	KindVolume    Kind = 4 // data is the JSON of a member's description
	KindSyncBegin Kind = 5 // data is the JSON of a sync manifest, Offset a horizon; takes no ordinal, sets the stream's
	KindExtent    Kind = 6 // data as the primary read it during a sync; takes no ordinal
	KindSyncEnd   Kind = 7 // no data; takes no ordinal
	KindHole      Kind = 8 // no data; a range without allocation found during a sync; takes no ordinal
	// KindHorizon has no data and takes no ordinal. The extents, holes and manifest of a sync show the primary's writes
	// up to the ordinal in Offset at most, until the next record with a horizon. Offset is an ordinal here, not bytes.
	KindHorizon Kind = 9
	// KindBookmark names its ordinal; data is JSON with the label. An earlier release refuses a stream, or a journal, that
	// has one.
	KindBookmark Kind = 10
	// KindEpoch is the mark of an epoch: data is JSON, which names the ordinal where the epoch ends in this shard of a
	// group over several nodes. An earlier release refuses a stream, or a journal, that has one.
	KindEpoch Kind = 11
)

// TakesOrdinal reports whether a record of this kind has an ordinal of its own. The others carry the ordinal of the
// record before them; sync-begin carries the one the stream jumps to.
func (k Kind) TakesOrdinal() bool { return k >= KindWrite && k <= KindVolume || k >= KindBookmark }

// HasData reports whether Length bytes follow the header.
func (k Kind) HasData() bool {
	switch k {
	case KindWrite, KindVolume, KindSyncBegin, KindExtent, KindBookmark, KindEpoch:
		return true
	}
	return false
}

// Valid reports whether the format defines k.
func (k Kind) Valid() bool { return k >= KindWrite && k <= KindEpoch }

// String returns the name the design documents use.
func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindDiscard:
		return "discard"
	case KindZero:
		return "zero"
	case KindVolume:
		return "volume"
	case KindSyncBegin:
		return "sync-begin"
	case KindExtent:
		return "extent"
	case KindSyncEnd:
		return "sync-end"
	case KindHole:
		return "hole"
	case KindHorizon:
		return "horizon"
	case KindBookmark:
		return "bookmark"
	case KindEpoch:
		return "epoch"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Header is a record's header, decoded.
type Header struct {
	Kind      Kind
	Shard     uint16 // kept by the format; 0: the records of a journal are all of one shard
	Epoch     uint32 // kept by the format; 0: marks have the epoch in their data (KindEpoch)
	Volume    uint32 // index of the member in its group
	Ordinal   uint64
	Offset    int64  // bytes
	Length    uint32 // bytes
	UnixNanos int64  // wall clock at the site where the write happened
	// DurableOrdinal is the durable ordinal when the record was written to this journal.
	DurableOrdinal uint64
	// DataCRC is the checksum of the data (see the function); the same at every site that holds the record.
	DataCRC uint32
}

// MaxDataBytes bounds a record's data. Longer writes are split by the caller.
const MaxDataBytes = 4 << 20

// dataBytes is how many bytes follow the header, without padding.
func (h *Header) dataBytes() int64 {
	if h.Kind.HasData() {
		return int64(h.Length)
	}
	return 0
}

// check validates what holds for every record, on disk and on the wire.
func (h *Header) check() error {
	switch {
	case !h.Kind.Valid():
		return fmt.Errorf("unknown record kind %d", uint8(h.Kind))
	case h.Offset < 0 || h.Offset+int64(h.Length) < 0:
		return fmt.Errorf("%s record: range of %d bytes at offset %d is not a range", h.Kind, h.Length, h.Offset)
	case h.Kind.HasData() && h.Length > MaxDataBytes:
		return fmt.Errorf("%s record: %d bytes of data, the limit is %d", h.Kind, h.Length, MaxDataBytes)
	case !h.Kind.HasData() && h.DataCRC != 0:
		return fmt.Errorf("%s record: has a data checksum but no data", h.Kind)
	}
	return nil
}

// Fingerprint identifies the record by what is the same at every site that holds it. It is a hash of 64 bits over the
// fields that travel, the data's checksum and the time of the write among them; it is not made to withstand a forger.
func (h *Header) Fingerprint() uint64 {
	var b [45]byte
	le := binary.LittleEndian
	b[0] = uint8(h.Kind)
	le.PutUint64(b[1:], h.Ordinal)
	le.PutUint64(b[9:], uint64(h.Offset))
	le.PutUint32(b[17:], h.Length)
	le.PutUint32(b[21:], h.Volume)
	le.PutUint32(b[25:], h.DataCRC)
	le.PutUint64(b[29:], uint64(h.UnixNanos))
	le.PutUint32(b[37:], h.Epoch)
	le.PutUint16(b[41:], h.Shard)
	sum := sha256.Sum256(b[:])
	return le.Uint64(sum[:])
}

// Location is where a record's data lies: a segment, by sequence, and a byte offset in it.
type Location struct {
	Segment uint64
	Offset  int64
}

// Position is a place between two records of the stream: a segment, by sequence, and a byte offset in it. The end of a
// segment and the first record of the next are the same place in the stream but different, ordered positions.
type Position struct {
	Segment uint64
	Offset  int64
}

// Compare returns -1, 0 or +1 as p lies before, at or behind q.
func (p Position) Compare(q Position) int {
	switch {
	case p.Segment < q.Segment:
		return -1
	case p.Segment > q.Segment:
		return 1
	case p.Offset < q.Offset:
		return -1
	case p.Offset > q.Offset:
		return 1
	}
	return 0
}

// Before reports whether p lies before q.
func (p Position) Before(q Position) bool { return p.Compare(q) < 0 }

// Mark names a durable record, so that a later Open finds out that it is missing. The zero value names none.
type Mark struct {
	Ordinal uint64   // head of the stream behind the record
	End     Position // behind the record
	Chain   uint32   // the record's header checksum, which no other record at that place has
	File    uint64   // number in the name of the segment's file; 0 if not known
}

// Start is the stream position at which the record with this location begins.
func (l Location) Start() Position { return Position{l.Segment, l.Offset - recordHeaderBytes} }

// String formats p as segment:offset.
func (p Position) String() string { return fmt.Sprintf("%d:%d", p.Segment, p.Offset) }
