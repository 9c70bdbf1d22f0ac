package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func ordinals(t testing.TB, o Options) []uint64 {
	t.Helper()
	var got []uint64
	o.Visit = func(h Header, _ Location) error { got = append(got, h.Ordinal); return nil }
	if err := mustOpen(t, o).Close(); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestNoSpace(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	j := mustOpen(t, o)
	fs.SetCapacity(2*testSegmentBytes + 4096)
	n := 0
	for ; ; n++ {
		_, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 20000))
		if err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
	}
	if n != 6 || j.Head() != 6 || j.TotalBytes() != 2*testSegmentBytes {
		t.Fatalf("%d records, head %d, %d bytes", n, j.Head(), j.TotalBytes())
	}
	// A small record still fits, and a large one when there is space again.
	mustAppend(t, j, 10, 1)
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	fs.SetCapacity(0)
	mustAppend(t, j, 20000, 1)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ordinals(t, o); len(got) != 8 {
		t.Fatalf("recovered %v", got)
	}
}

func TestHardLimit(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.HardLimitBytes = 2 * testSegmentBytes
	o.FreeTarget = 5
	j := mustOpen(t, o)
	if err := j.Prepare(); err != nil {
		t.Fatal(err)
	}
	if j.TotalBytes() != 2*testSegmentBytes || j.UsedBytes() != 0 {
		t.Fatalf("total %d, used %d", j.TotalBytes(), j.UsedBytes())
	}
	for range 6 {
		mustAppend(t, j, 20000, 1)
	}
	for range 3 {
		if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 20000)); !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
	}
	if err := j.Release(1); err == nil {
		t.Fatal("released a segment that is not durable")
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := j.Release(100); err != nil {
		t.Fatal(err)
	}
	if h, _ := mustAppend(t, j, 20000, 1); h.Ordinal != 7 {
		t.Fatal(h.Ordinal)
	}
	if n := len(j.Segments()); n != 2 {
		t.Fatalf("%d live segments: the one that takes records must stay", n)
	}
}

func TestTooLarge(t *testing.T) {
	j := mustOpen(t, testOptions(vfs.NewMem()))
	if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, MaxDataBytes+1)); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	mustAppend(t, j, testSegmentBytes-segmentHeaderBytes-64, 1)
	mustAppend(t, j, 1, 1)
	if j.Head() != 2 || len(j.Segments()) != 2 {
		t.Error(j.Head(), j.Segments())
	}
}

// A record that needs more than a segment gets one of its own, which counts, is recovered, and is not kept for others.
func TestOversizedSegment(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.HardLimitBytes = 4 * testSegmentBytes
	o.FreeTarget = 3
	j := mustOpen(t, o)
	if err := j.Prepare(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, j, 1, 1)
	h, loc := mustAppend(t, j, 2*testSegmentBytes, 7) // not refused for the sake of free segments
	mustAppend(t, j, 1, 1)
	const file = 2*testSegmentBytes + 2*segmentHeaderBytes
	if got := j.Segments(); len(got) != 2 || got[1].FileBytes != file || j.UsedBytes() != testSegmentBytes+file {
		t.Fatalf("%+v, %d bytes used", got, j.UsedBytes())
	}
	if _, _, err := j.Append(Header{Kind: KindWrite}, make([]byte, 2*testSegmentBytes)); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j = mustOpen(t, o)
	p := make([]byte, 10)
	if err := j.ReadData(loc, int64(h.Length)-10, p); err != nil || p[9] != 7 {
		t.Fatal(p, err)
	}
	if err := j.Release(2); err != nil {
		t.Fatal(err)
	}
	if n := j.TotalBytes(); n%testSegmentBytes != 0 {
		t.Fatalf("%d bytes of segments: the large one is still there", n)
	}
}

// A journal that is made smaller goes on with what it has until that is released, and is never stuck behind the segment
// that it writes to.
func TestSetLimits(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.FreeTarget = 2
	j := mustOpen(t, o)
	for range 5 {
		mustAppend(t, j, 40000, 1)
	}
	if err := j.SetLimits(2*testSegmentBytes+1, 0); err == nil {
		t.Fatal("a size that no segment can have was taken")
	}
	if err := j.SetLimits(2*testSegmentBytes, 4*testSegmentBytes); err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.Append(Header{Kind: KindWrite}, []byte("x")); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	segments := j.Segments()
	if last := segments[len(segments)-1]; !last.Sealed {
		t.Fatalf("the segment that is written to has the old size and stays open: %+v", last)
	}
	if err := j.Release(segments[len(segments)-1].Sequence); err != nil {
		t.Fatal(err)
	}
	if h, _ := mustAppend(t, j, 100000, 1); h.Ordinal != 6 {
		t.Fatal(h)
	}
	if n := j.TotalBytes(); n != 2*testSegmentBytes {
		t.Fatalf("%d bytes", n)
	}
}

func TestAppendCopyRefuses(t *testing.T) {
	j := mustOpen(t, testOptions(vfs.NewMem()))
	mustAppend(t, j, 1, 1)
	data := []byte("x")
	for _, c := range []struct {
		h    Header
		want error
	}{
		{Header{Kind: KindWrite, Ordinal: 1}, ErrOutOfOrder},
		{Header{Kind: KindWrite, Ordinal: 3}, ErrOutOfOrder},
		{Header{Kind: KindExtent, Ordinal: 0}, ErrOutOfOrder},
		{Header{Kind: KindExtent, Ordinal: 2}, ErrOutOfOrder},
		{Header{Kind: KindSyncBegin, Ordinal: 0}, ErrOutOfOrder},
		{Header{Kind: KindExtent, Ordinal: 1, Length: 2}, ErrDataCRC},
		{Header{Kind: KindSyncBegin, Ordinal: 1<<64 - 1}, ErrOutOfOrder},
	} {
		if c.h.DataCRC == 0 {
			c.h.DataCRC = DataCRC(data)
		}
		if c.h.Length == 0 {
			c.h.Length = 1
		}
		if _, err := j.AppendCopies([]Entry{{Header: c.h, Data: data}}); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.h, err, c.want)
		}
	}
	if j.Head() != 1 {
		t.Error(j.Head())
	}
}

// TestPoisoned: after a failed fdatasync nothing is acknowledged any more, although the next fdatasync would succeed,
// and recovery writes again what the failed one may have dropped.
func TestPoisoned(t *testing.T) {
	mem := vfs.NewMem()
	var fail atomic.Bool
	fs := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		if op == vfs.OpDatasync && fail.Load() {
			return syscall.EIO
		}
		return nil
	})
	o := testOptions(fs)
	j := mustOpen(t, o)
	_, loc := mustAppend(t, j, 100, 1)
	if err := j.Sync(); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, j, 100, 2)
	fail.Store(true)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := j.Sync(); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
				t.Errorf("sync: %v", err)
			}
		})
	}
	wg.Wait()
	fail.Store(false)
	if err := j.Sync(); !errors.Is(err, ErrFailed) {
		t.Errorf("second sync: %v", err)
	}
	if _, _, err := j.Append(Header{Kind: KindWrite}, nil); !errors.Is(err, ErrFailed) {
		t.Errorf("append: %v", err)
	}
	if err := j.Roll([16]byte{}); !errors.Is(err, ErrFailed) {
		t.Errorf("roll: %v", err)
	}
	if j.Durable() != 1 || j.Head() != 2 {
		t.Errorf("durable %d, head %d", j.Durable(), j.Head())
	}
	if err := j.ReadData(loc, 0, make([]byte, 100)); err != nil {
		t.Errorf("read: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}

	wrote := false
	o.FS = vfs.NewErrFS(mem, func(op vfs.Op, name string) error { wrote = wrote || op == vfs.OpWrite; return nil })
	if got := ordinals(t, o); fmt.Sprint(got) != "[1 2]" {
		t.Fatal(got)
	}
	if !wrote {
		t.Error("what was not proven durable was not written again")
	}
	o.FS = mem.CrashClone(vfs.CrashConfig{})
	if got := ordinals(t, o); fmt.Sprint(got) != "[1 2]" {
		t.Fatal(got)
	}
}

// TestRecoveryFails: an error at any step of recovery leaves a journal that opens later with the same records.
func TestRecoveryFails(t *testing.T) {
	for _, percent := range []int{40, 100} {
		mem := vfs.NewMem()
		j := mustOpen(t, testOptions(mem))
		for i := range 30 {
			mustAppend(t, j, 9000, byte(i))
			if i == 10 {
				if err := j.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		crashed := mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: percent, RNG: rand.New(rand.NewPCG(7, 7))})
		want := ordinals(t, testOptions(crashed.CrashClone(vfs.CrashConfig{})))
		if len(want) < 11 || percent < 100 && len(want) == 30 {
			t.Fatalf("recovered %d", len(want))
		}
		failed := 0
		for nth := 1; ; nth++ {
			fs := crashed.CrashClone(vfs.CrashConfig{})
			n := 0
			o := testOptions(vfs.NewErrFS(fs, func(op vfs.Op, name string) error {
				if n++; n == nth {
					return syscall.EIO
				}
				return nil
			}))
			j, err := Open(o)
			if err == nil {
				j.Close()
			} else if failed++; !errors.Is(err, syscall.EIO) {
				t.Fatalf("operation %d: %v", nth, err)
			}
			again := testOptions(fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 50, RNG: rand.New(rand.NewPCG(uint64(nth), 0))}))
			if got := ordinals(t, again); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("after a failure of operation %d: %v, want %v", nth, got, want)
			}
			if n < nth {
				break
			}
		}
		if failed < 10 {
			t.Errorf("only %d operations failed", failed)
		}
	}
}

// TestConcurrent runs everything at once; the race detector is the judge of the rest.
func TestConcurrent(t *testing.T) {
	fs := vfs.NewMem()
	o := testOptions(fs)
	o.FreeTarget = 2
	j := mustOpen(t, o)
	const writers, each = 4, 400
	type written struct {
		loc  Location
		fill byte
	}
	locs := make(chan written, writers*each)
	var oldest atomic.Uint64
	var wg, background sync.WaitGroup
	stop := make(chan struct{})
	start := j.End()
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				fill := byte(w*64 + i%64)
				h, loc, err := j.Append(Header{Kind: KindWrite}, bytes.Repeat([]byte{fill}, 1000+i))
				if err != nil {
					t.Error(err)
					return
				}
				if i%5 == 0 {
					if err := j.Sync(); err != nil {
						t.Error(err)
					} else if j.Durable() < h.Ordinal {
						t.Errorf("durable %d after a sync of %d", j.Durable(), h.Ordinal)
					}
				}
				locs <- written{loc, fill}
			}
		})
	}
	for range 2 {
		background.Go(func() {
			for w := range locs {
				p := make([]byte, 500)
				if err := j.ReadData(w.loc, 300, p); err == nil {
					if !bytes.Equal(p, bytes.Repeat([]byte{w.fill}, 500)) {
						t.Errorf("read at %v is not what was written", w.loc)
					}
				} else if !errors.Is(err, ErrReleased) || w.loc.Segment >= oldest.Load() {
					t.Errorf("read at %v: %v", w.loc, err)
				}
			}
		})
	}
	background.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := j.Prepare(); err != nil {
				t.Error(err)
			}
			if s := j.Segments(); len(s) > 4 && !j.DurableEnd().Before(s[1].End) {
				oldest.Store(s[1].Sequence + 1)
				if err := j.Release(s[1].Sequence); err != nil {
					t.Error(err)
				}
			}
			if i%10 == 0 {
				j.DropFree()
			}
		}
	})
	background.Go(func() {
		c := j.NewCursor(start)
		defer c.Close()
		next := uint64(1)
		for {
			recs, err := c.Next(20000)
			switch {
			case errors.Is(err, ErrReleased):
				s := j.Segments()[0]
				c = j.NewCursor(Position{s.Sequence, segmentHeaderBytes})
				next = s.FirstOrdinal
			case err != nil:
				t.Error(err)
				return
			case len(recs) == 0:
				select {
				case <-stop:
					return
				default:
				}
			}
			for _, r := range recs {
				if r.Header.Ordinal != next {
					t.Errorf("cursor at ordinal %d, want %d", r.Header.Ordinal, next)
					return
				}
				next++
			}
		}
	})
	wg.Wait()
	close(locs)
	close(stop)
	background.Wait()
	if j.Head() != writers*each {
		t.Error(j.Head())
	}
	var closers sync.WaitGroup
	closers.Go(func() { _ = j.Sync() })
	closers.Go(func() { j.Close() })
	closers.Wait()
	o.OldestSegment = oldest.Load()
	if got := ordinals(t, o); got[len(got)-1] != writers*each {
		t.Error(got[len(got)-1])
	}
}

func TestClosed(t *testing.T) {
	j := mustOpen(t, testOptions(vfs.NewMem()))
	_, loc := mustAppend(t, j, 10, 1)
	c := j.NewCursor(Position{1, segmentHeaderBytes})
	for range 2 {
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, _, appendErr := j.Append(Header{Kind: KindWrite}, nil)
	_, nextErr := c.Next(1)
	_, _, posErr := j.PositionOf(0)
	for i, err := range []error{appendErr, nextErr, posErr, j.Sync(), j.Prepare(), j.Release(1), j.Roll([16]byte{}),
		j.ReadData(loc, 0, make([]byte, 1))} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	j.DropFree()
}
