package changemap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/RoaringBitmap/roaring/v2"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
)

const (
	magic         = "SLIPCMAP"
	version       = 1
	taggedVersion = 2
	headerBytes   = 24
	tagBytes      = 40
	sumBytes      = 4
)

// ErrCorrupt is in the chain of every error about an encoded map that is not what MarshalBinary returned. Nothing can
// be concluded about which extents were marked: only a copy of all of the group's extents is safe.
var ErrCorrupt = errors.New("change map is damaged")

// ErrVersion is in the chain when a map was written by a newer version. It is intact; that version can read it.
var ErrVersion = errors.New("change map has an unknown version")

// MarshalBinary returns the map in the package comment's layout, without a tag. It never fails.
func (m *Map) MarshalBinary() ([]byte, error) { return m.encode(nil) }

func (m *Map) encode(tag *Tag) ([]byte, error) {
	out := make([]byte, headerBytes, 4096)
	copy(out, magic)
	binary.LittleEndian.PutUint32(out[8:], version)
	binary.LittleEndian.PutUint32(out[12:], uint32(len(m.order)))
	if tag != nil {
		binary.LittleEndian.PutUint32(out[8:], taggedVersion)
		out = append(append(out, tag.Group[:]...), tag.Pool[:]...)
		out = binary.LittleEndian.AppendUint64(out, tag.Generation)
	}
	for _, v := range m.order {
		// Runs are how a sequential writer and a full copy look. Optimizing a copy keeps this method free of writes
		// to the map.
		b := m.volumes[v].Clone()
		b.RunOptimize()
		bits, err := b.ToBytes()
		if err != nil {
			return nil, fmt.Errorf("encode bitmap of volume %d: %w", v, err)
		}
		out = binary.LittleEndian.AppendUint32(out, v)
		out = binary.LittleEndian.AppendUint32(out, uint32(len(bits)))
		out = append(out, bits...)
	}
	binary.LittleEndian.PutUint64(out[16:], uint64(len(out)+sumBytes))
	return binary.LittleEndian.AppendUint32(out, crc32c.Sum(out)), nil
}

// decode is the inverse of MarshalBinary. Errors name the byte offset and wrap ErrCorrupt or ErrVersion. The map does
// not refer to b.
func decode(b []byte) (_ *Map, tag Tag, _ error) {
	if len(b) < headerBytes+sumBytes {
		return nil, tag, corrupt(len(b), "it ends after %d bytes, in its header", len(b))
	}
	if string(b[:8]) != magic {
		return nil, tag, corrupt(0, "magic is %q, want %q", b[:8], magic)
	}
	body, sum := b[:len(b)-sumBytes], binary.LittleEndian.Uint32(b[len(b)-sumBytes:])
	// A version that is merely a flipped bit is damage; so length and checksum, which every version has in this place,
	// are looked at first.
	if n := binary.LittleEndian.Uint64(b[16:]); n != uint64(len(b)) {
		return nil, tag, corrupt(16, "it says that it has %d bytes and has %d", n, len(b))
	}
	if got := crc32c.Sum(body); got != sum {
		return nil, tag, corrupt(len(body), "CRC-32C is %#08x, want %#08x", got, sum)
	}
	v := binary.LittleEndian.Uint32(b[8:])
	if v != version && v != taggedVersion {
		return nil, tag, fmt.Errorf("%w: version %d at offset 8, this program reads up to %d; upgrade it", ErrVersion,
			v, taggedVersion)
	}
	count := binary.LittleEndian.Uint32(b[12:])
	m := New()
	at := headerBytes
	if v == taggedVersion {
		if at += tagBytes; at > len(body) {
			return nil, tag, corrupt(headerBytes, "it ends within its tag")
		}
		copy(tag.Group[:], body[headerBytes:])
		copy(tag.Pool[:], body[headerBytes+16:])
		tag.Generation = binary.LittleEndian.Uint64(body[headerBytes+32:])
	}
	for range count {
		next, err := m.decodeVolume(body, at)
		if err != nil {
			return nil, tag, err
		}
		at = next
	}
	if at != len(body) {
		return nil, tag, corrupt(at, "%d bytes behind the last of %d volumes", len(body)-at, count)
	}
	return m, tag, nil
}

// decodeVolume adds the volume encoded at an offset of body and returns the offset behind it.
func (m *Map) decodeVolume(body []byte, at int) (next int, err error) {
	if len(body)-at < 8 {
		return 0, corrupt(at, "it ends within a volume's header")
	}
	v := binary.LittleEndian.Uint32(body[at:])
	n := binary.LittleEndian.Uint32(body[at+4:])
	if len(m.order) > 0 && v <= m.order[len(m.order)-1] {
		return 0, corrupt(at, "volume %d comes behind volume %d", v, m.order[len(m.order)-1])
	}
	at += 8
	if uint64(n) > uint64(len(body)-at) {
		return 0, corrupt(at, "bitmap of volume %d has %d bytes, %d are left", v, n, len(body)-at)
	}
	bits := roaring.New()
	read, err := readBitmap(bits, body[at:at+int(n)])
	if err != nil {
		return 0, corrupt(at, "bitmap of volume %d: %v", v, err)
	}
	switch {
	case read != int64(n):
		return 0, corrupt(at, "bitmap of volume %d has %d bytes, of which %d were read", v, n, read)
	case bits.IsEmpty():
		return 0, corrupt(at, "bitmap of volume %d is empty", v)
	case bits.Maximum() >= maxExtents:
		return 0, corrupt(at, "extent %d of volume %d is outside of the largest volume", bits.Maximum(), v)
	}
	m.volumes[v] = bits
	m.order = append(m.order, v)
	return at + int(n), nil
}

// readBitmap reads and validates a bitmap. The library is made for bitmaps that it wrote itself: with a checksum forged
// over arbitrary bytes it may index out of range, which here is an error like any other.
func readBitmap(bits *roaring.Bitmap, b []byte) (read int64, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not a bitmap: %v", p)
		}
	}()
	// A reader that is not the library's own makes it copy instead of pointing into b.
	read, err = bits.ReadFrom(struct{ *bytes.Reader }{bytes.NewReader(b)})
	if err != nil {
		return 0, err
	}
	return read, bits.Validate()
}

func corrupt(offset int, format string, args ...any) error {
	return fmt.Errorf("%w: offset %d: %s", ErrCorrupt, offset, fmt.Sprintf(format, args...))
}
