package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
)

// Sizes of the format, in bytes. The package comment has the layout.
const (
	segmentHeaderBytes  = 4096
	segmentHeaderFields = 512
	segmentHeaderCopyAt = 2048
	recordHeaderBytes   = 64
	recordAlign         = 64

	minSegmentBytes = 64 << 10

	formatVersion = 1
	recordMagic   = 0x524a4c53 // "SLJR"
)

var segmentMagic = [8]byte{'S', 'L', 'P', 'J', 'S', 'E', 'G', '\n'}

// flagAllDurable on a record says that every record before it in the stream was durable when it was written. It is what
// tells a damaged record without an ordinal of its own, an extent, from a torn one: durable ordinals do not move there.
const flagAllDurable = 1

// DataCRC returns the checksum that Header.DataCRC holds: CRC-32C xor CRC-32 (IEEE 802.3), 0 for no data.
//
// CRC-32C alone cannot see data that ends in its own CRC-32C: all such sectors have one and the same checksum, so that
// a torn sector and the stale one in its place look alike. The oracle's blocks did that, and data of file systems and
// databases may. Two polynomials have no such data in common, and both are computed by the processor.
func DataCRC(data []byte) uint32 {
	var c, ieee uint32
	for len(data) > 0 {
		// The second pass finds the piece in the nearest cache.
		piece := data[:min(len(data), 16<<10)]
		c = crc32c.Update(c, piece)
		ieee = crc32.Update(ieee, crc32.IEEETable, piece)
		data = data[len(piece):]
	}
	return c ^ ieee
}

// recordBytes is the space a record with n bytes of data takes in a segment.
func recordBytes(n int64) int64 {
	return recordHeaderBytes + (n+recordAlign-1)&^(recordAlign-1)
}

// diskHeader is a Header with the fields that only the place it is stored in gives it.
type diskHeader struct {
	Header
	crc     uint32 // of this header
	prevCRC uint32 // of the header before it in the stream
	flags   uint8
}

// seed is what the header CRCs of a segment start from, so that a record left over from an earlier use of the file, or
// copied from another segment, does not verify.
func seed(salt, sequence uint64) uint32 {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], salt)
	binary.LittleEndian.PutUint64(b[8:], sequence)
	return crc32c.Sum(b[:])
}

// headerCRC is the checksum of an encoded header at offset off. The offset is part of it so that a record that was
// written to the wrong place, or that lies in the data of another one (a volume may hold a copy of its own journal),
// does not verify.
func headerCRC(seed uint32, off int64, b []byte) uint32 {
	// By hand, since an array passed to package crc32 is an allocation.
	crc := ^seed
	for range 8 {
		crc = crc32c.Table[byte(crc)^byte(off)] ^ crc>>8
		off >>= 8
	}
	return crc32c.Update(^crc, b[8:recordHeaderBytes])
}

// encode fills b, recordHeaderBytes long, for a record at offset off, and sets d.crc.
func (d *diskHeader) encode(b []byte, seed uint32, off int64) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], recordMagic)
	le.PutUint32(b[8:], d.DataCRC)
	le.PutUint32(b[12:], d.prevCRC)
	le.PutUint64(b[16:], d.Ordinal)
	le.PutUint64(b[24:], d.DurableOrdinal)
	le.PutUint64(b[32:], uint64(d.Offset))
	le.PutUint32(b[40:], d.Length)
	le.PutUint32(b[44:], d.Volume)
	le.PutUint32(b[48:], d.Epoch)
	le.PutUint16(b[52:], d.Shard)
	b[54] = uint8(d.Kind)
	b[55] = d.flags
	le.PutUint64(b[56:], uint64(d.UnixNanos))
	d.crc = headerCRC(seed, off, b)
	le.PutUint32(b[4:], d.crc)
}

// hasRecordMagic is the cheap first test of a place that may hold a record.
func hasRecordMagic(b []byte) bool { return binary.LittleEndian.Uint32(b) == recordMagic }

// decode reads the header at offset off from b, at least recordHeaderBytes long, and verifies it by itself: neither its
// data nor its place in the stream.
func (d *diskHeader) decode(b []byte, seed uint32, off int64) error {
	le := binary.LittleEndian
	if !hasRecordMagic(b) {
		return errors.New("no record here")
	}
	d.crc = le.Uint32(b[4:])
	if d.crc != headerCRC(seed, off, b) {
		return errors.New("record header does not match its checksum")
	}
	d.DataCRC = le.Uint32(b[8:])
	d.prevCRC = le.Uint32(b[12:])
	d.Ordinal = le.Uint64(b[16:])
	d.DurableOrdinal = le.Uint64(b[24:])
	d.Offset = int64(le.Uint64(b[32:]))
	d.Length = le.Uint32(b[40:])
	d.Volume = le.Uint32(b[44:])
	d.Epoch = le.Uint32(b[48:])
	d.Shard = le.Uint16(b[52:])
	d.Kind = Kind(b[54])
	d.flags = b[55]
	d.UnixNanos = int64(le.Uint64(b[56:]))
	if d.flags&^flagAllDurable != 0 {
		return fmt.Errorf("unknown record flags %#x", d.flags)
	}
	return d.Header.check()
}

// follows says whether a record may come next in a stream whose head is at head.
func (h *Header) follows(head uint64) error {
	switch {
	case h.Kind.TakesOrdinal() && h.Ordinal != head+1,
		h.Kind == KindSyncBegin && h.Ordinal < head,
		!h.Kind.TakesOrdinal() && h.Kind != KindSyncBegin && h.Ordinal != head:
		return fmt.Errorf("%w: %s record with ordinal %d after %d", ErrOutOfOrder, h.Kind, h.Ordinal, head)
	}
	return nil
}

// segmentHeader is the decoded header of a segment file.
type segmentHeader struct {
	shard        uint16
	group        [16]byte
	timeline     [16]byte
	sequence     uint64
	salt         uint64
	firstOrdinal uint64 // of the last record before this segment, plus one
	prev         Position
	chain        uint32
	durable      uint64   // durable ordinal at creation
	durableEnd   Position // where the durable part of the stream ended at creation
	segmentBytes int64
	prevFile     uint64 // number of prev's file
	generation   uint64 // of the checkpoint at creation
}

func (s *segmentHeader) seed() uint32 { return seed(s.salt, s.sequence) }

// encode fills b, segmentHeaderBytes long.
func (s *segmentHeader) encode(b []byte) {
	clear(b[:segmentHeaderBytes])
	le := binary.LittleEndian
	copy(b[0:], segmentMagic[:])
	le.PutUint32(b[8:], formatVersion)
	le.PutUint16(b[12:], s.shard)
	copy(b[16:], s.group[:])
	copy(b[32:], s.timeline[:])
	le.PutUint64(b[48:], s.sequence)
	le.PutUint64(b[56:], s.salt)
	le.PutUint64(b[64:], s.firstOrdinal)
	le.PutUint64(b[72:], s.prev.Segment)
	le.PutUint64(b[80:], uint64(s.prev.Offset))
	le.PutUint32(b[88:], s.chain)
	le.PutUint64(b[96:], s.durable)
	le.PutUint64(b[104:], uint64(s.segmentBytes))
	le.PutUint64(b[112:], s.durableEnd.Segment)
	le.PutUint64(b[120:], uint64(s.durableEnd.Offset))
	le.PutUint64(b[128:], s.prevFile)
	le.PutUint64(b[136:], s.generation)
	le.PutUint32(b[segmentHeaderFields-4:], crc32c.Sum(b[:segmentHeaderFields-4]))
	copy(b[segmentHeaderCopyAt:], b[:segmentHeaderFields])
}

// decode reads the fields from b, segmentHeaderFields long.
func (s *segmentHeader) decode(b []byte) error {
	le := binary.LittleEndian
	if !bytes.Equal(b[:8], segmentMagic[:]) {
		return errors.New("no segment header")
	}
	if le.Uint32(b[segmentHeaderFields-4:]) != crc32c.Sum(b[:segmentHeaderFields-4]) {
		return errors.New("segment header does not match its checksum")
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return fmt.Errorf("segment has format version %d, this program knows %d", v, formatVersion)
	}
	s.shard = le.Uint16(b[12:])
	copy(s.group[:], b[16:])
	copy(s.timeline[:], b[32:])
	s.sequence = le.Uint64(b[48:])
	s.salt = le.Uint64(b[56:])
	s.firstOrdinal = le.Uint64(b[64:])
	s.prev = Position{le.Uint64(b[72:]), int64(le.Uint64(b[80:]))}
	s.chain = le.Uint32(b[88:])
	s.durable = le.Uint64(b[96:])
	s.segmentBytes = int64(le.Uint64(b[104:]))
	s.durableEnd = Position{le.Uint64(b[112:]), int64(le.Uint64(b[120:]))}
	s.prevFile = le.Uint64(b[128:])
	s.generation = le.Uint64(b[136:])
	if s.sequence == 0 || s.prev.Segment >= s.sequence || s.firstOrdinal == 0 ||
		s.segmentBytes < minSegmentBytes || s.segmentBytes%segmentHeaderBytes != 0 {
		return errors.New("segment header has impossible fields")
	}
	return nil
}
