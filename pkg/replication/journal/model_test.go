package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

var errInjected = errors.New("injected")

// modelRecord is what the model remembers of an appended record.
type modelRecord struct {
	h    Header
	data []byte
	loc  Location
}

// model is a list of records, and the checkpoint a caller would have. The journal must agree with it at every moment,
// and with a prefix of it that has everything synced after a crash.
type model struct {
	t         *rapid.T
	mem       *vfs.MemFS
	j         *Journal
	records   []modelRecord // all, since the beginning
	synced    int           // records[:synced] are durable
	released  int           // records[:released] were released
	oldest    uint64
	salts     *rand.Rand
	failWrite int // fail the n-th write from now; 0 never
	segment   int64
	limit     int64
	ceiling   int64 // what the files may take: the limit, or what there was when it was set, less what has gone since
	target    int
	memory    *Memory // nil: none
	// withMemory and without follow the journal together. shown is what withMemory handed out last, and what it was.
	withMemory, without *Cursor
	shown               []Record
	was                 [][]byte
}

func (m *model) head() uint64 { return m.headAt(len(m.records)) }

func (m *model) headAt(n int) uint64 {
	if n == 0 {
		return 1000
	}
	return m.records[n-1].h.Ordinal
}

func (m *model) options() Options {
	fs := vfs.NewErrFS(m.mem, func(op vfs.Op, name string) error {
		if op == vfs.OpWrite && m.failWrite > 0 {
			if m.failWrite--; m.failWrite == 0 {
				return errInjected
			}
		}
		return nil
	})
	return Options{FS: fs, Dir: "/pool/journal", GroupID: [16]byte{1}, SegmentBytes: m.segment, FreeTarget: m.target,
		HardLimitBytes: m.limit, StartOrdinal: m.headAt(m.released), OldestSegment: m.oldest,
		MinDurableOrdinal: m.headAt(m.released), Rand: m.salts.Uint64, Memory: m.memory}
}

// open opens the journal and compares what it recovered. minimum is how many records must be there.
func (m *model) open(minimum int) {
	m.failWrite = 0
	n := m.released
	o := m.options()
	o.Visit = func(h Header, loc Location) error {
		if n >= len(m.records) {
			return fmt.Errorf("recovered %+v at %v, which was never appended", h, loc)
		}
		if r := m.records[n]; r.h != h || r.loc != loc {
			return fmt.Errorf("recovered %+v at %v, want %+v at %v", h, loc, r.h, r.loc)
		}
		n++
		return nil
	}
	j, err := Open(o)
	if err != nil {
		m.t.Fatalf("open: %v", err)
	}
	if n < minimum {
		m.t.Fatalf("recovered %d records, %d were due", n, minimum)
	}
	m.records, m.synced, m.j = m.records[:n], n, j
	m.withMemory, m.without, m.shown, m.was = nil, nil, nil, nil
	if j.Head() != m.head() || j.Durable() != m.head() || j.End() != j.DurableEnd() {
		m.t.Fatalf("head %d durable %d end %v durable end %v, want %d", j.Head(), j.Durable(), j.End(), j.DurableEnd(),
			m.head())
	}
}

func (m *model) Append(t *rapid.T) {
	kind := Kind(rapid.IntRange(int(KindWrite), int(KindHole)).Draw(t, "kind"))
	h := Header{Kind: kind, Volume: uint32(len(m.records)), Offset: 4096, Length: 512, UnixNanos: int64(len(m.records))}
	var data []byte
	if kind.HasData() {
		n := rapid.SampledFrom([]int{0, 1, 64, 4096, 10000, 30000, 70000}).Draw(t, "bytes")
		data = bytes.Repeat([]byte{byte(len(m.records))}, n)
	}
	if kind == KindSyncBegin {
		h.Ordinal = m.head() + uint64(rapid.IntRange(0, 3).Draw(t, "jump"))
	}
	if rapid.IntRange(0, 9).Draw(t, "fail") == 0 {
		m.failWrite = rapid.IntRange(1, 2).Draw(t, "write")
	}
	var loc Location
	var err error
	if rapid.Bool().Draw(t, "copy") {
		h.DataCRC = DataCRC(data)
		if kind.HasData() {
			h.Length = uint32(len(data))
		}
		switch {
		case kind.TakesOrdinal():
			h.Ordinal = m.head() + 1
		case kind != KindSyncBegin:
			h.Ordinal = m.head()
		}
		h.DurableOrdinal = m.headAt(m.synced)
		entries := []Entry{{Header: h, Data: data}}
		_, err = m.j.AppendCopies(entries)
		loc = entries[0].Loc
	} else {
		h, loc, err = m.j.Append(h, data)
	}
	m.failWrite = 0
	if err != nil {
		if !errors.Is(err, errInjected) && !errors.Is(err, ErrFull) {
			t.Fatalf("append: %v", err)
		}
		return
	}
	m.records = append(m.records, modelRecord{h, data, loc})
}

func (m *model) Sync(t *rapid.T) {
	if err := m.j.Sync(); err != nil {
		t.Fatal(err)
	}
	m.synced = len(m.records)
}

func (m *model) Roll(t *rapid.T) {
	if err := m.j.Roll([16]byte{byte(len(m.records))}); err != nil {
		t.Fatal(err)
	}
}

func (m *model) Prepare(t *rapid.T) {
	if err := m.j.Prepare(); err != nil {
		t.Fatal(err)
	}
	if rapid.Bool().Draw(t, "trim") {
		m.j.DropFree()
	}
}

func (m *model) Release(t *rapid.T) {
	through := uint64(0)
	for _, s := range m.j.Segments() {
		if s.Sealed && !m.j.DurableEnd().Before(s.End) && rapid.Bool().Draw(t, "release") {
			through = s.Sequence
		} else {
			break
		}
	}
	if through == 0 {
		return
	}
	m.oldest = through + 1
	for m.released < len(m.records) && m.records[m.released].loc.Segment <= through {
		m.released++
	}
	if err := m.j.Release(through); err != nil {
		t.Fatal(err)
	}
}

// Resize changes the segments to come and the limit of all.
func (m *model) Resize(t *rapid.T) {
	m.segment = rapid.SampledFrom([]int64{testSegmentBytes, testSegmentBytes + segmentHeaderBytes,
		2 * testSegmentBytes}).Draw(t, "segment")
	m.limit = rapid.SampledFrom([]int64{0, 4, 6, 20}).Draw(t, "limit") * testSegmentBytes
	if err := m.j.SetLimits(m.segment, m.limit); err != nil {
		t.Fatal(err)
	}
	m.ceiling = max(m.limit, m.j.TotalBytes())
}

// Follow reads on with two cursors, one of which does not see the memory. Both get the same.
func (m *model) Follow(t *rapid.T) {
	if m.withMemory == nil || rapid.IntRange(0, 19).Draw(t, "begin anew") == 0 {
		segments := m.j.Segments()
		if len(segments) == 0 {
			return
		}
		at := segments[rapid.IntRange(0, len(segments)-1).Draw(t, "segment")].Begin
		m.closeCursors()
		m.withMemory, m.without = m.j.NewCursor(at), m.j.NewCursor(at)
	}
	n := rapid.SampledFrom([]int{1, 5000, 100_000, 1 << 20}).Draw(t, "max")
	got, gotErr := m.withMemory.Next(n)
	recent := m.j.recent
	m.j.recent = nil
	want, wantErr := m.without.Next(n)
	m.j.recent = recent
	if fmt.Sprint(gotErr) != fmt.Sprint(wantErr) || len(got) != len(want) ||
		m.withMemory.Position() != m.without.Position() {
		t.Fatalf("with memory %d records, %v, at %v; without %d records, %v, at %v", len(got), gotErr,
			m.withMemory.Position(), len(want), wantErr, m.without.Position())
	}
	m.shown, m.was = got, nil
	for i := range got {
		g, w := &got[i], &want[i]
		if g.Header != w.Header || g.Loc != w.Loc || g.End != w.End || !bytes.Equal(g.Data, w.Data) {
			t.Fatalf("record %d: with memory %+v at %v, without %+v at %v", i, g.Header, g.Loc, w.Header, w.Loc)
		}
		m.was = append(m.was, bytes.Clone(w.Data))
	}
}

func (m *model) closeCursors() {
	if m.withMemory != nil {
		m.withMemory.Close()
		m.without.Close()
		m.withMemory, m.without, m.shown, m.was = nil, nil, nil, nil
	}
}

// Kill ends the process: everything that was appended is still there.
func (m *model) Kill(*rapid.T) {
	m.closeCursors()
	m.j.Close()
	m.open(len(m.records))
}

// Crash loses power: any prefix that has everything synced may be there.
func (m *model) Crash(t *rapid.T) {
	percent := rapid.SampledFrom([]int{0, 30, 70, 95, 100}).Draw(t, "percent")
	seed := rapid.Uint64().Draw(t, "seed")
	clone := m.mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rand.New(rand.NewPCG(seed, 0))})
	m.closeCursors()
	m.j.Close()
	m.mem = clone
	minimum := m.synced
	if percent == 100 {
		minimum = len(m.records)
	}
	m.open(minimum)
}

// Check compares everything that can be read.
func (m *model) Check(t *rapid.T) {
	for i, r := range m.records {
		p := make([]byte, (len(r.data)+1)/2)
		err := m.j.ReadData(r.loc, int64(len(r.data)-len(p)), p)
		if i < m.released {
			if !errors.Is(err, ErrReleased) {
				t.Fatalf("reading a released record: %v", err)
			}
		} else if err != nil || !bytes.Equal(p, r.data[len(r.data)-len(p):]) {
			t.Fatalf("reading record %d: %v", i, err)
		}
	}
	if len(m.records) == 0 {
		return
	}
	from := rapid.IntRange(0, len(m.records)).Draw(t, "from")
	ordinal := m.headAt(from)
	for from < len(m.records) && m.records[from].h.Ordinal <= ordinal {
		from++
	}
	pos, ok, err := m.j.PositionOf(ordinal)
	if err != nil || ok != (from >= m.released) {
		// A released record without an ordinal of its own before a live one is not missed.
		t.Fatalf("PositionOf(%d) = %v %v %v, record %d, released %d", ordinal, pos, ok, err, from, m.released)
	}
	if !ok {
		return
	}
	c := m.j.NewCursor(pos)
	defer c.Close()
	for {
		recs, err := c.Next(rapid.SampledFrom([]int{1, 5000, 1 << 20}).Draw(t, "max"))
		if err != nil {
			t.Fatal(err)
		}
		if len(recs) == 0 {
			break
		}
		for _, r := range recs {
			if w := m.records[from]; from >= m.synced || r.Header != w.h || r.Loc != w.loc || !bytes.Equal(r.Data, w.data) {
				t.Fatalf("cursor at record %d: %+v, want %+v, synced %d", from, r.Header, w.h, m.synced)
			}
			from++
		}
	}
	if from < m.synced {
		t.Fatalf("cursor ended before record %d, synced %d", from, m.synced)
	}
}

// invariants hold after every step.
func (m *model) invariants(t *rapid.T) {
	if got := m.j.Head(); got != m.head() {
		t.Fatalf("head %d, want %d", got, m.head())
	}
	if got := m.j.Durable(); got != m.headAt(m.synced) {
		t.Fatalf("durable %d, want %d", got, m.headAt(m.synced))
	}
	n := m.j.TotalBytes()
	if n < m.j.UsedBytes() || m.limit > 0 && n > m.ceiling {
		t.Fatalf("total %d used %d limit %d ceiling %d", n, m.j.UsedBytes(), m.limit, m.ceiling)
	}
	m.ceiling = max(m.limit, min(m.ceiling, n))
	for i, r := range m.shown {
		if !bytes.Equal(r.Data, m.was[i]) {
			t.Fatalf("record %d changed while the cursor had it", r.Header.Ordinal)
		}
	}
	if s := m.memory.Stats(); s.HeldBytes > s.LimitBytes {
		t.Fatalf("%d bytes in memory, the limit is %d", s.HeldBytes, s.LimitBytes)
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, mem: vfs.NewMem(), salts: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "salts"), 0)),
			target: rapid.IntRange(0, 2).Draw(t, "target"), segment: testSegmentBytes}
		if rapid.Bool().Draw(t, "limited") {
			m.limit = 6 * testSegmentBytes
		}
		m.ceiling = m.limit
		if slabs := rapid.IntRange(0, 4).Draw(t, "slabs"); slabs > 0 {
			m.memory = NewMemory(int64(slabs) * slabBytes)
		}
		m.open(0)
		defer func() { m.closeCursors(); m.j.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"append": m.Append, "append2": m.Append, "append3": m.Append, "append4": m.Append, "sync": m.Sync, "roll": m.Roll,
			"prepare": m.Prepare, "resize": m.Resize, "release": m.Release, "kill": m.Kill, "crash": m.Crash,
			"follow": m.Follow, "follow2": m.Follow, "check": m.Check, "": m.invariants,
		})
	})
}
