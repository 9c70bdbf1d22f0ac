package journal

// Kind says what a record means. The values are part of the format and never change.
type Kind uint8

const (
	KindWrite     Kind = 1 // data of Length bytes at Offset
	KindDiscard   Kind = 2 // no data; the range reads as zeros, space given back
	KindZero      Kind = 3 // no data; the range reads as zeros, space kept
	KindVolume    Kind = 4 // data is the JSON of a member's description
	KindSyncBegin Kind = 5 // data is the JSON of a sync manifest; takes no ordinal, sets the stream's
	KindExtent    Kind = 6 // data as the primary read it during a sync; takes no ordinal
	KindSyncEnd   Kind = 7 // no data; takes no ordinal
	KindHole      Kind = 8 // no data; a range without allocation found during a sync; takes no ordinal
)

// TakesOrdinal reports whether a record of this kind has an ordinal of its own. The others carry the ordinal of the
// record before them; sync-begin carries the one the stream jumps to.
func (k Kind) TakesOrdinal() bool { return k >= KindWrite && k <= KindVolume }

// HasData reports whether Length bytes follow the header.
func (k Kind) HasData() bool {
	return k == KindWrite || k == KindVolume || k == KindSyncBegin || k == KindExtent
}

// Header is a record's header, decoded.
type Header struct {
	Kind      Kind
	Shard     uint16 // node of the group that wrote it; 0 today
	Epoch     uint32 // cut across shards; 0 today
	Volume    uint32 // index of the member in its group
	Ordinal   uint64
	Offset    int64  // bytes
	Length    uint32 // bytes
	UnixNanos int64  // wall clock at the site where the write happened
	// DurableOrdinal is the durable ordinal when the record was written to this journal.
	DurableOrdinal uint64
	// DataCRC is the CRC-32C of the data; the same at every site that holds the record.
	DataCRC uint32
}

// MaxDataBytes bounds a record's data. Longer writes are split by the caller.
const MaxDataBytes = 4 << 20

// Location is where a record's data lies: a segment, by sequence, and a byte offset in it.
type Location struct {
	Segment uint64
	Offset  int64
}
