package overlay

import (
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func loc(n int64) journal.Location { return journal.Location{Segment: uint64(n / 10), Offset: n % 10} }

func TestInsertSplitsAndTrims(t *testing.T) {
	old := Value{Loc: loc(1)}
	newer := Value{Loc: loc(2)}
	at := func(v Value, skip int64) Value { v.Skip = skip; return v }
	for _, tc := range []struct {
		name   string
		off, n int64
		want   []Piece
	}{
		{"middle", 140, 20, []Piece{
			{Off: 0, Len: 100}, {Off: 100, Len: 40, Value: old, Found: true}, {Off: 140, Len: 20, Value: newer, Found: true},
			{Off: 160, Len: 40, Value: at(old, 60), Found: true}, {Off: 200, Len: 100}}},
		{"front", 90, 20, []Piece{
			{Off: 0, Len: 90}, {Off: 90, Len: 20, Value: newer, Found: true},
			{Off: 110, Len: 90, Value: at(old, 10), Found: true}, {Off: 200, Len: 100}}},
		{"back", 190, 20, []Piece{
			{Off: 0, Len: 100}, {Off: 100, Len: 90, Value: old, Found: true},
			{Off: 190, Len: 20, Value: newer, Found: true}, {Off: 210, Len: 90}}},
		{"same", 100, 100, []Piece{
			{Off: 0, Len: 100}, {Off: 100, Len: 100, Value: newer, Found: true}, {Off: 200, Len: 100}}},
		{"over", 50, 200, []Piece{
			{Off: 0, Len: 50}, {Off: 50, Len: 200, Value: newer, Found: true}, {Off: 250, Len: 50}}},
		{"touching", 200, 10, []Piece{
			{Off: 0, Len: 100}, {Off: 100, Len: 100, Value: old, Found: true},
			{Off: 200, Len: 10, Value: newer, Found: true}, {Off: 210, Len: 90}}},
		{"nothing", 150, 0, []Piece{
			{Off: 0, Len: 100}, {Off: 100, Len: 100, Value: old, Found: true}, {Off: 200, Len: 100}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New()
			m.Insert(100, 100, old)
			m.Insert(tc.off, tc.n, newer)
			if diff := cmp.Diff(tc.want, m.Lookup(0, 300, nil)); diff != "" {
				t.Errorf("Lookup (-want +got):\n%s", diff)
			}
		})
	}
}

// A discard of a range longer than a piece's length field can say, and of the largest volume.
func TestLongRangeWithoutData(t *testing.T) {
	const size = 64 << 40
	m := New()
	v := Value{Loc: loc(7), Zero: true}
	m.Insert(0, size, v)
	m.Insert(5<<30, 4096, Value{Loc: loc(8)})
	if got := m.Bytes(); got != size {
		t.Errorf("Bytes() = %d, want %d", got, int64(size))
	}
	want := []Piece{
		{Off: 5<<30 - 10, Len: 10, Value: v, Found: true},
		{Off: 5 << 30, Len: 4096, Value: Value{Loc: loc(8)}, Found: true},
		{Off: 5<<30 + 4096, Len: 10, Value: v, Found: true},
	}
	if diff := cmp.Diff(want, m.Lookup(5<<30-10, 4096+20, nil)); diff != "" {
		t.Errorf("Lookup (-want +got):\n%s", diff)
	}
	m.Remove(0, size, v.Loc)
	if m.Len() != 1 || m.Bytes() != 4096 {
		t.Errorf("after Remove: %d pieces, %d bytes; want 1, 4096", m.Len(), m.Bytes())
	}
}

func TestLargestOffsets(t *testing.T) {
	m := New()
	v := Value{Loc: journal.Location{Segment: math.MaxUint64, Offset: math.MaxInt64}}
	m.Insert(math.MaxInt64-10, 10, v)
	v.Skip = 4
	want := []Piece{{Off: math.MaxInt64 - 6, Len: 6, Value: v, Found: true}}
	if diff := cmp.Diff(want, m.Lookup(math.MaxInt64-6, 6, nil)); diff != "" {
		t.Errorf("Lookup (-want +got):\n%s", diff)
	}
}

func TestBugsPanic(t *testing.T) {
	for name, insert := range map[string]func(*Map){
		"negative offset":  func(m *Map) { m.Insert(-1, 10, Value{}) },
		"overflow":         func(m *Map) { m.Insert(math.MaxInt64, 10, Value{Zero: true}) },
		"record too long":  func(m *Map) { m.Insert(0, math.MaxUint32, Value{Skip: 1}) },
		"negative skip":    func(m *Map) { m.Insert(0, 1, Value{Skip: -1}) },
		"negative segment": func(m *Map) { m.Insert(0, 1, Value{Loc: journal.Location{Offset: -1}}) },
	} {
		t.Run(name, func(t *testing.T) {
			m := New()
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
				if m.Len() != 0 {
					t.Errorf("%d pieces after a refused insert", m.Len())
				}
			}()
			insert(m)
		})
	}
}

// model is the same thing with one Value for each byte of a small volume.
type model []struct {
	Value
	found bool
}

func (md model) insert(off, n int64, v Value) {
	for i := range n {
		b := &md[off+i]
		b.found, b.Value = true, v
		if !v.Zero {
			b.Skip += i
		}
	}
}

func (md model) remove(off, n int64, l journal.Location) {
	for i := range n {
		if b := &md[off+i]; b.found && b.Loc == l {
			b.found, b.Value = false, Value{}
		}
	}
}

func TestAgainstModel(t *testing.T) {
	const size = 200
	rapid.Check(t, func(t *rapid.T) {
		m, md := New(), make(model, size)
		var dst []Piece
		type record struct {
			off, n int64
			loc    journal.Location
		}
		var records []record
		rng := func(t *rapid.T) (off, n int64) {
			off = rapid.Int64Range(0, size-1).Draw(t, "off")
			return off, rapid.Int64Range(0, min(size-off, 60)).Draw(t, "n")
		}
		t.Repeat(map[string]func(*rapid.T){
			"insert": func(t *rapid.T) {
				off, n := rng(t)
				v := Value{Loc: loc(int64(len(records))), Zero: rapid.Bool().Draw(t, "zero")}
				if !v.Zero {
					v.Skip = rapid.Int64Range(0, 5).Draw(t, "skip")
				}
				records = append(records, record{off, n, v.Loc})
				m.Insert(off, n, v)
				md.insert(off, n, v)
			},
			"remove": func(t *rapid.T) {
				if len(records) == 0 {
					t.Skip("nothing inserted")
				}
				r := rapid.SampledFrom(records).Draw(t, "record")
				m.Remove(r.off, r.n, r.loc)
				md.remove(r.off, r.n, r.loc)
			},
			"remove part": func(t *rapid.T) {
				off, n := rng(t)
				l := loc(rapid.Int64Range(0, int64(len(records))).Draw(t, "loc"))
				m.Remove(off, n, l)
				md.remove(off, n, l)
			},
			"": func(t *rapid.T) {
				off, n := rng(t)
				for _, r := range [][2]int64{{off, n}, {0, size}} {
					dst = m.Lookup(r[0], r[1], dst[:0])
					next := r[0]
					for _, p := range dst {
						if p.Off != next || p.Len <= 0 {
							t.Fatalf("Lookup(%d, %d): piece %+v where offset %d is due", r[0], r[1], p, next)
						}
						for i := range p.Len {
							want := md[p.Off+i]
							got := p.Value
							if p.Found && !p.Zero {
								got.Skip += i
							}
							if p.Found != want.found || got != want.Value {
								t.Fatalf("byte %d: %v %+v, want %v %+v", p.Off+i, p.Found, got, want.found, want.Value)
							}
						}
						next += p.Len
					}
					if next != r[0]+r[1] {
						t.Fatalf("Lookup(%d, %d) ends at %d", r[0], r[1], next)
					}
				}
				var bytes int64
				for _, b := range md {
					if b.found {
						bytes++
					}
				}
				if m.Bytes() != bytes {
					t.Fatalf("Bytes() = %d, want %d", m.Bytes(), bytes)
				}
			},
		})
	})
}

func TestLookupDoesNotAllocate(t *testing.T) {
	m, _ := filled(10_000)
	dst := make([]Piece, 0, 64)
	i := int64(0)
	if n := testing.AllocsPerRun(1000, func() {
		dst = m.Lookup(i%10_000*8192, 64<<10, dst[:0])
		i += 7
	}); n != 0 {
		t.Errorf("%v allocations for a Lookup", n)
	}
}

// Readers beside a writer: a Lookup is one instant's state, so a record that always covers the whole range is never
// seen in part.
func TestConcurrent(t *testing.T) {
	m := New()
	const size = 1 << 20
	m.Insert(0, size, Value{})
	var readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			var dst []Piece
			for {
				select {
				case <-stop:
					return
				default:
				}
				dst = m.Lookup(0, size, dst[:0])
				if len(dst) != 1 || !dst[0].Found {
					t.Errorf("Lookup saw %d pieces: %+v", len(dst), dst)
					return
				}
			}
		})
	}
	for i := range int64(5000) {
		m.Insert(0, size, Value{Loc: loc(i)})
		m.Remove(0, size, loc(i-1))
	}
	close(stop)
	readers.Wait()
}

// filled returns a map of n pieces of 4 KiB, inserted in random order with a gap behind each, and that order.
func filled(n int) (*Map, []int) {
	m := New()
	order := rand.New(rand.NewPCG(1, 2)).Perm(n)
	for i, p := range order {
		m.Insert(int64(p)*8192, 4096, Value{Loc: journal.Location{Segment: 1, Offset: int64(i)}})
	}
	return m, order
}

const benchPieces = 256 << 10

func BenchmarkInsertOver(b *testing.B) {
	m, order := filled(benchPieces)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		m.Insert(int64(order[i%benchPieces])*8192, 4096, Value{Loc: journal.Location{Segment: 2, Offset: int64(i)}})
	}
}

func BenchmarkLookup(b *testing.B) {
	m, order := filled(benchPieces)
	dst := make([]Piece, 0, 8)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		dst = m.Lookup(int64(order[i%benchPieces])*8192, 4096, dst[:0])
	}
}

// The steady state of a group under load: the oldest record is applied and removed as a new one comes.
func BenchmarkInsertAndRemoveOldest(b *testing.B) {
	m, order := filled(benchPieces)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		old := int64(order[i%benchPieces]) * 8192
		m.Remove(old, 4096, journal.Location{Segment: 1, Offset: int64(i)})
		// The same set of places comes round, so every later removal finds its record.
		m.Insert(old, 4096, Value{Loc: journal.Location{Segment: 1, Offset: int64(i + benchPieces)}})
	}
	if m.Len() != benchPieces {
		b.Fatalf("%d pieces, want %d", m.Len(), benchPieces)
	}
}
