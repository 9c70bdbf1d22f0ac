// Package changemap says which 64 KiB extents of a group's volumes the peer lacks, when the records that would say so
// are no longer in the journal. Trim folds records into it; a resync walks it and clears it.
//
// It is one roaring bitmap of extent numbers for each member volume, by the member's index in the group. A map is a
// statement about a superset: an extent that is marked may be the same at the peer, one that is not marked is the same
// once the journal's records are there too. So everything errs to marking.
//
// It is not a record of what changed when, and not an allocation map. It does not know volume sizes: the caller clips
// the last extent.
//
// # Concurrency
//
// A Map is not synchronized, not even for reading beside writing; the group's lock covers it. Clone takes a copy that
// can be walked or saved outside of that lock.
//
// # Layout
//
// As Save writes it; all integers little endian:
//
//	 0   8  magic "SLIPCMAP"
//	 8   4  version: 1, or 2 with a tag
//	12   4  number of volumes
//	16   8  length of all of this in bytes, checksum included
//	24      in version 2, whose the map is:
//	          0 16  group id
//	         16 16  pool id
//	         32  8  generation: how often the file was written
//	        for each volume with a marked extent, ascending by index:
//	          0  4  index of the member in its group
//	          4  4  length L of its bitmap in bytes
//	          8  L  bitmap of extent numbers, the portable format of RoaringFormatSpec
//	 -4   4  CRC-32C of everything before it
//
// The length is there because a checksum alone would accept one truncated file in 2^32. A reader refuses versions that
// it does not know: a map misread as empty would lose data.
package changemap

import (
	"fmt"
	"maps"
	"slices"

	"github.com/RoaringBitmap/roaring/v2"
)

const (
	// ExtentBytes is the unit of change tracking.
	ExtentBytes = 64 << 10
	// MaxVolumeBytes is the largest volume a map can describe.
	MaxVolumeBytes = 64 << 40

	maxExtents = MaxVolumeBytes / ExtentBytes
)

// Map is a set of extents. Use New.
type Map struct {
	volumes map[uint32]*roaring.Bitmap // no empty bitmaps
	order   []uint32                   // keys of volumes, ascending
}

// Cursor is a position in (volume, extent) order. The zero Cursor is the beginning; the position behind a run of n
// extents at e of volume v is Cursor{v, e + n}.
type Cursor struct {
	Volume uint32
	Extent uint64
}

// New returns an empty map.
func New() *Map { return &Map{volumes: map[uint32]*roaring.Bitmap{}} }

// Mark marks every extent that shares a byte with the n bytes at off of a volume. n <= 0 marks nothing. A range that
// does not lie within MaxVolumeBytes is a bug of the caller and panics: not to mark it would lose data.
func (m *Map) Mark(volume uint32, off, n int64) {
	if n <= 0 {
		return
	}
	if off < 0 || off >= MaxVolumeBytes || n > MaxVolumeBytes-off {
		panic(fmt.Sprintf("changemap: range of %d bytes at offset %d of volume %d is outside of the largest volume", n,
			off, volume))
	}
	m.bitmap(volume).AddRange(uint64(off)/ExtentBytes, uint64(off+n-1)/ExtentBytes+1)
}

// MarkExtent marks one extent. One past MaxVolumeBytes is a bug of the caller and panics.
func (m *Map) MarkExtent(volume uint32, extent uint64) {
	if extent >= maxExtents {
		panic(fmt.Sprintf("changemap: extent %d of volume %d is outside of the largest volume", extent, volume))
	}
	m.bitmap(volume).Add(uint32(extent))
}

// ClearRun unmarks n extents. Clearing what is not marked does nothing.
func (m *Map) ClearRun(volume uint32, extent, n uint64) {
	b := m.volumes[volume]
	if b == nil || extent >= maxExtents {
		return
	}
	b.RemoveRange(extent, extent+min(n, maxExtents-extent))
	if b.IsEmpty() {
		m.Drop(volume)
	}
}

// Has reports whether an extent is marked.
func (m *Map) Has(volume uint32, extent uint64) bool {
	b := m.volumes[volume]
	return b != nil && extent < maxExtents && b.Contains(uint32(extent))
}

// Volume returns the extents of one volume, as those of volume 0: what a Log takes.
func (m *Map) Volume(volume uint32) *Map {
	only := New()
	if b := m.volumes[volume]; b != nil {
		only.volumes[0], only.order = b.Clone(), []uint32{0}
	}
	return only
}

// Len returns the number of marked extents.
func (m *Map) Len() uint64 {
	var n uint64
	for _, b := range m.volumes {
		n += b.GetCardinality()
	}
	return n
}

// Bytes returns the size of the marked extents: what a resync reads at most.
func (m *Map) Bytes() uint64 { return m.Len() * ExtentBytes }

// VolumeBytes returns the size of the marked extents of one volume. The last extent counts in full even where the
// volume ends within it.
func (m *Map) VolumeBytes(volume uint32) uint64 {
	b := m.volumes[volume]
	if b == nil {
		return 0
	}
	return b.GetCardinality() * ExtentBytes
}

// Next returns the first marked extent at or behind a position, in (volume, extent) order; ok is false when there is
// none. The map may be changed between calls; what is marked behind the position is found.
func (m *Map) Next(at Cursor) (volume uint32, extent uint64, ok bool) {
	i, _ := slices.BinarySearch(m.order, at.Volume)
	for ; i < len(m.order); i++ {
		v := m.order[i]
		var from uint64
		if v == at.Volume {
			from = at.Extent
		}
		if from >= maxExtents {
			continue
		}
		if e := m.volumes[v].NextValue(uint32(from)); e >= 0 {
			return v, uint64(e), true
		}
	}
	return 0, 0, false
}

// NextRun is Next for a run: n marked extents in a row, all of one volume, at most limit. A limit of 0 counts as 1.
func (m *Map) NextRun(at Cursor, limit uint64) (volume uint32, extent, n uint64, ok bool) {
	volume, extent, ok = m.Next(at)
	if !ok {
		return 0, 0, 0, false
	}
	end := extent + min(max(limit, 1), maxExtents-extent) // no overflow, whatever the limit
	// Not NextAbsentValue: in roaring v2.30.0 it misses the end of a run at a container's end.
	if unset := m.volumes[volume].UnsetIterator(extent, end); unset.HasNext() {
		end = uint64(unset.Next())
	}
	return volume, extent, end - extent, true
}

// Merge marks everything that is marked in other, which stays as it is.
func (m *Map) Merge(other *Map) {
	for v, b := range other.volumes {
		m.bitmap(v).Or(b)
	}
}

// Clone returns an independent copy.
func (m *Map) Clone() *Map {
	c := &Map{volumes: make(map[uint32]*roaring.Bitmap, len(m.volumes)), order: slices.Clone(m.order)}
	for v, b := range m.volumes {
		c.volumes[v] = b.Clone()
	}
	return c
}

// Drop forgets a volume: it was removed from the group, or a full copy of it is on its way.
func (m *Map) Drop(volume uint32) {
	if i, found := slices.BinarySearch(m.order, volume); found {
		m.order = slices.Delete(m.order, i, i+1)
		delete(m.volumes, volume)
	}
}

// Equal reports whether both maps mark the same extents.
func (m *Map) Equal(other *Map) bool {
	return maps.EqualFunc(m.volumes, other.volumes, func(a, b *roaring.Bitmap) bool { return a.Equals(b) })
}

// bitmap returns the volume's bitmap, for adding to it.
func (m *Map) bitmap(volume uint32) *roaring.Bitmap {
	b := m.volumes[volume]
	if b == nil {
		b = roaring.New()
		m.volumes[volume] = b
		i, _ := slices.BinarySearch(m.order, volume)
		m.order = slices.Insert(m.order, i, volume)
	}
	return b
}
