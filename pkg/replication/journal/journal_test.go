package journal

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testSegmentBytes = 64 << 10

func testOptions(fs vfs.FS) Options {
	rng := rand.New(rand.NewPCG(1, 2))
	return Options{FS: fs, Dir: "/j", GroupID: [16]byte{1}, TimelineID: [16]byte{2}, SegmentBytes: testSegmentBytes,
		Rand: rng.Uint64}
}

func mustOpen(t testing.TB, o Options) *Journal {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

func mustAppend(t testing.TB, j *Journal, n int, fill byte) (Header, Location) {
	t.Helper()
	h, loc, err := j.Append(Header{Kind: KindWrite, Offset: int64(fill) * 4096}, bytes.Repeat([]byte{fill}, n))
	if err != nil {
		t.Fatal(err)
	}
	return h, loc
}

func TestAppendReadReopen(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	j := mustOpen(t, o)
	for i := 1; i <= 100; i++ {
		h, loc := mustAppend(t, j, 3000, byte(i))
		if h.Ordinal != uint64(i) {
			t.Fatalf("ordinal %d, want %d", h.Ordinal, i)
		}
		p := make([]byte, 10)
		if err := j.ReadData(loc, 2990, p); err != nil || p[9] != byte(i) {
			t.Fatalf("ReadData: %v, %v", p, err)
		}
	}
	if j.Durable() != 0 {
		t.Fatal("durable without sync")
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if j.Durable() != 100 || j.DurableEnd() != j.End() {
		t.Fatalf("durable %d %v, end %v", j.Durable(), j.DurableEnd(), j.End())
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	n := 0
	o.Visit = func(h Header, loc Location) error {
		n++
		if h.Ordinal != uint64(n) || h.Length != 3000 {
			t.Errorf("visit %d: %+v", n, h)
		}
		return nil
	}
	j = mustOpen(t, o)
	if n != 100 || j.Head() != 100 || j.Durable() != 100 {
		t.Fatalf("recovered %d, head %d, durable %d", n, j.Head(), j.Durable())
	}
	pos, ok, err := j.PositionOf(40)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	c := j.NewCursor(pos)
	want := uint64(41)
	for {
		recs, err := c.Next(10000)
		if err != nil {
			t.Fatal(err)
		}
		if recs == nil {
			break
		}
		for _, r := range recs {
			if r.Header.Ordinal != want || !bytes.Equal(r.Data, bytes.Repeat([]byte{byte(want)}, 3000)) {
				t.Fatalf("record %+v, want %d", r.Header, want)
			}
			want++
		}
	}
	if want != 101 || c.Position() != j.DurableEnd() {
		t.Fatalf("cursor ended before %d at %v", want, c.Position())
	}
}
