package changemap

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestMarkRounding(t *testing.T) {
	for _, tc := range []struct {
		name       string
		off, n     int64
		first, len uint64
	}{
		{"nothing", 10, 0, 0, 0},
		{"one byte", 0, 1, 0, 1},
		{"last byte of an extent", ExtentBytes - 1, 1, 0, 1},
		{"across a border", ExtentBytes - 1, 2, 0, 2},
		{"exactly one", ExtentBytes, ExtentBytes, 1, 1},
		{"last of the largest volume", MaxVolumeBytes - 1, 1, maxExtents - 1, 1},
		{"all of the largest volume", 0, MaxVolumeBytes, 0, maxExtents},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New()
			m.Mark(3, tc.off, tc.n)
			_, first, n, ok := m.NextRun(Cursor{}, maxExtents)
			if ok != (tc.len > 0) || first != tc.first || n != tc.len {
				t.Errorf("marked %d extents at %d (%v), want %d at %d", n, first, ok, tc.len, tc.first)
			}
			if m.Len() != tc.len || m.VolumeBytes(3) != tc.len*ExtentBytes || m.Bytes() != m.VolumeBytes(3) {
				t.Errorf("Len %d, Bytes %d, VolumeBytes %d for %d extents", m.Len(), m.Bytes(), m.VolumeBytes(3), tc.len)
			}
		})
	}
}

func TestOutsideOfLargestVolumePanics(t *testing.T) {
	for name, f := range map[string]func(*Map){
		"mark negative":  func(m *Map) { m.Mark(0, -1, 2) },
		"mark behind":    func(m *Map) { m.Mark(0, MaxVolumeBytes, 1) },
		"mark too long":  func(m *Map) { m.Mark(0, 1, MaxVolumeBytes) },
		"extent too far": func(m *Map) { m.MarkExtent(0, maxExtents) },
	} {
		t.Run(name, func(t *testing.T) {
			m := New()
			defer func() {
				if recover() == nil {
					t.Error("no panic: what the peer lacks would be forgotten")
				}
				if m.Len() != 0 {
					t.Errorf("%d extents marked", m.Len())
				}
			}()
			f(m)
		})
	}
	m := New()
	m.MarkExtent(0, 0)
	// What wraps to extent 0 in 32 bits is not extent 0.
	m.ClearRun(0, 1<<32, 1)
	if m.Has(0, 1<<32) || !m.Has(0, 0) {
		t.Error("extent 2^32 is taken for extent 0")
	}
	if _, _, ok := m.Next(Cursor{0, 1 << 32}); ok {
		t.Error("Next found an extent behind 2^32")
	}
}

// model is the naive Map: the set of positions.
type model map[Cursor]bool

func (md model) sorted() []Cursor {
	var s []Cursor
	for c := range md {
		s = append(s, c)
	}
	slices.SortFunc(s, func(a, b Cursor) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Extent, b.Extent))
	})
	return s
}

func (md model) mark(volume uint32, off, n int64) {
	for b := off; b < off+n; b++ {
		md[Cursor{volume, uint64(b / ExtentBytes)}] = true
		// The next byte that can matter is an extent's first.
		b = max(b, (b/ExtentBytes+1)*ExtentBytes-1)
	}
}

func (md model) drop(volume uint32) {
	for c := range md {
		if c.Volume == volume {
			delete(md, c)
		}
	}
}

// Extents around the borders of roaring's containers (65536 values) and of the map.
var (
	volumes = rapid.SampledFrom([]uint32{0, 1, 2, 7, 1<<32 - 1})
	extents = rapid.OneOf(rapid.Uint64Range(0, 20), rapid.Uint64Range(1<<16-5, 1<<16+5),
		rapid.Uint64Range(maxExtents-5, maxExtents-1))
)

func drawMark(t *rapid.T) (volume uint32, off, n int64) {
	off = int64(extents.Draw(t, "extent"))*ExtentBytes + rapid.Int64Range(0, ExtentBytes-1).Draw(t, "within")
	n = rapid.Int64Range(0, 5*ExtentBytes).Draw(t, "n")
	return volumes.Draw(t, "volume"), off, min(n, MaxVolumeBytes-off)
}

func TestAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m, md := New(), model{}
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(t *rapid.T) {
				v, off, n := drawMark(t)
				m.Mark(v, off, n)
				md.mark(v, off, n)
			},
			"mark extent": func(t *rapid.T) {
				v, e := volumes.Draw(t, "volume"), extents.Draw(t, "extent")
				m.MarkExtent(v, e)
				md[Cursor{v, e}] = true
			},
			"clear": func(t *rapid.T) {
				v, e := volumes.Draw(t, "volume"), extents.Draw(t, "extent")
				n := rapid.Uint64Range(0, 8).Draw(t, "n") // beyond the map's end, too
				m.ClearRun(v, e, n)
				for i := range n {
					delete(md, Cursor{v, e + i})
				}
			},
			"clear marked": func(t *rapid.T) {
				if len(md) == 0 {
					t.Skip("empty")
				}
				c := rapid.SampledFrom(md.sorted()).Draw(t, "position")
				m.ClearRun(c.Volume, c.Extent, 1)
				delete(md, c)
			},
			"drop": func(t *rapid.T) {
				v := volumes.Draw(t, "volume")
				m.Drop(v)
				md.drop(v)
			},
			"merge": func(t *rapid.T) {
				other := New()
				for range rapid.IntRange(0, 3).Draw(t, "marks") {
					v, off, n := drawMark(t)
					other.Mark(v, off, n)
					md.mark(v, off, n)
				}
				before := other.Clone()
				m.Merge(other)
				other.Mark(0, 3*ExtentBytes, 1) // must not show in m
				before.Mark(0, 3*ExtentBytes, 1)
				if !before.Equal(other) {
					t.Fatal("Merge changed its argument")
				}
			},
			"clone": func(t *rapid.T) {
				c := m.Clone()
				if !c.Equal(m) {
					t.Fatal("a clone differs")
				}
				m.Mark(0, 0, 20*ExtentBytes) // the old map goes on alone
				m.Drop(1)
				m = c
			},
			"encode": func(t *rapid.T) {
				b, err := m.MarshalBinary()
				if err != nil {
					t.Fatal(err)
				}
				d, _, err := decode(b)
				if err != nil {
					t.Fatal(err)
				}
				clear(b) // d must not refer to it
				m = d
			},
			"": func(t *rapid.T) { check(t, m, md) },
		})
	})
}

func check(t *rapid.T, m *Map, md model) {
	want := md.sorted()
	if m.Len() != uint64(len(want)) || m.Bytes() != uint64(len(want))*ExtentBytes {
		t.Fatalf("Len() = %d, Bytes() = %d for %d extents", m.Len(), m.Bytes(), len(want))
	}
	perVolume := map[uint32]uint64{}
	for _, c := range want {
		perVolume[c.Volume] += ExtentBytes
		if !m.Has(c.Volume, c.Extent) {
			t.Fatalf("%+v is not marked", c)
		}
	}
	v, e := volumes.Draw(t, "volume"), extents.Draw(t, "extent")
	if m.Has(v, e) != md[Cursor{v, e}] {
		t.Fatalf("Has(%d, %d) = %v", v, e, !md[Cursor{v, e}])
	}
	if m.VolumeBytes(v) != perVolume[v] {
		t.Fatalf("VolumeBytes(%d) = %d, want %d", v, m.VolumeBytes(v), perVolume[v])
	}

	// A walk by Next, and one by NextRun, from the start and from anywhere.
	from := rapid.SampledFrom([]Cursor{{}, {v, e}}).Draw(t, "from")
	i, _ := slices.BinarySearchFunc(want, from, func(a, b Cursor) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Extent, b.Extent))
	})
	var got []Cursor
	for at := from; ; {
		v, e, ok := m.Next(at)
		if !ok {
			break
		}
		got = append(got, Cursor{v, e})
		at = Cursor{v, e + 1}
	}
	if !slices.Equal(got, want[i:]) {
		t.Fatalf("Next from %+v: %v, want %v", from, got, want[i:])
	}
	limit := rapid.Uint64Range(0, 4).Draw(t, "limit")
	got = got[:0]
	for at := from; ; {
		v, e, n, ok := m.NextRun(at, limit)
		if !ok {
			break
		}
		if n < 1 || n > max(limit, 1) || n < limit && m.Has(v, e+n) {
			t.Fatalf("NextRun(%+v, %d): %d extents at %d of volume %d", at, limit, n, e, v)
		}
		for x := range n {
			got = append(got, Cursor{v, e + x})
		}
		at = Cursor{v, e + n}
	}
	if !slices.Equal(got, want[i:]) {
		t.Fatalf("NextRun from %+v: %v, want %v", from, got, want[i:])
	}
}

func BenchmarkMark(b *testing.B) {
	m := New()
	b.ReportAllocs()
	for i := int64(0); b.Loop(); i++ {
		m.Mark(uint32(i&3), i*7919*4096%(1<<40), 4096)
	}
}

func BenchmarkNext(b *testing.B) {
	m := New()
	for i := range int64(100_000) {
		m.Mark(uint32(i&3), i*7919*4096%(1<<40), 4096)
	}
	b.ReportAllocs()
	at := Cursor{}
	for b.Loop() {
		v, e, ok := m.Next(at)
		at = Cursor{v, e + 1}
		if !ok {
			at = Cursor{}
		}
	}
}
