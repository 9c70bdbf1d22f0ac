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
		MinDurableOrdinal: m.headAt(m.released), Rand: m.salts.Uint64}
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

// Kill ends the process: everything that was appended is still there.
func (m *model) Kill(t *rapid.T) {
	m.j.Close()
	m.open(len(m.records))
}

// Crash loses power: any prefix that has everything synced may be there.
func (m *model) Crash(t *rapid.T) {
	percent := rapid.SampledFrom([]int{0, 30, 70, 95, 100}).Draw(t, "percent")
	seed := rapid.Uint64().Draw(t, "seed")
	clone := m.mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rand.New(rand.NewPCG(seed, 0))})
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
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{t: t, mem: vfs.NewMem(), salts: rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "salts"), 0)),
			target: rapid.IntRange(0, 2).Draw(t, "target"), segment: testSegmentBytes}
		if rapid.Bool().Draw(t, "limited") {
			m.limit = 6 * testSegmentBytes
		}
		m.ceiling = m.limit
		m.open(0)
		defer func() { m.j.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"append": m.Append, "append2": m.Append, "append3": m.Append, "append4": m.Append, "sync": m.Sync, "roll": m.Roll,
			"prepare": m.Prepare, "resize": m.Resize, "release": m.Release, "kill": m.Kill, "crash": m.Crash,
			"check": m.Check, "": m.invariants,
		})
	})
}
