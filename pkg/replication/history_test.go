package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// historyPair is two sites with a wall clock that the test sets, and a group with history.
func historyPair(t *testing.T, history time.Duration, change func(*GroupSpec)) (a, b *testSite, g *Group,
	ahead *atomic.Int64) {
	net := link.NewNetwork(nil)
	ahead = &atomic.Int64{}
	conf := func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) } }
	a, b = newTestSite(t, net, "site-a", conf), newTestSite(t, net, "site-b", conf)
	g = a.createGroup("shop", "site-b", 2, 1<<20, func(s *GroupSpec) {
		s.HistoryMillis, s.JournalSizeBytes = history.Milliseconds(), 16<<20
		if change != nil {
			change(s)
		}
	})
	return a, b, g, ahead
}

// checkView opens a view at a point and compares it with what was written up to there.
func checkView(t *testing.T, g *Group, l *cutLog, at Point) *View {
	t.Helper()
	view := mustView(t, g, ViewSpec{Point: at, LimitBytes: 1 << 30})
	for _, device := range view.Volumes() {
		got, want := viewContent(t, device), l.at(device.VolumeID, view.rec.Ordinal)
		if i := firstDifference(got, want); i >= 0 {
			t.Fatalf("the view of ordinal %d differs in volume %s at offset %d: %#x instead of %#x", view.rec.Ordinal,
				device.VolumeID, i, got[i], want[i])
		}
	}
	if err := g.DeleteView(view.rec.Name); err != nil {
		t.Fatal(err)
	}
	return view
}

// A secondary applies late by the time that is asked for, and opens views in between, by time and by ordinal; what is
// older is applied. A promotion does not wait for any of it.
func TestHistoryByTime(t *testing.T) {
	a, b, g, ahead := historyPair(t, time.Hour, nil)
	copied := caughtUp(t, g, b)
	rng := seeded(t)
	l := newCutLog(g)
	var times []time.Time
	var heads []uint64
	const steps = 8
	for range steps {
		for range 5 {
			if err := l.do(rng, g, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
		heads = append(heads, g.journal.Head())
		times = append(times, a.site.cfg.Now())
		ahead.Add(int64(10 * time.Minute))
	}
	mustFlush(t, g.Volumes()[0])
	caughtUp(t, g, b)
	// Of the last hour are the last five steps; the one before them was an hour ago.
	eventually(t, "what is older than an hour is applied", func() bool {
		return copied.checkpoint.read().AppliedOrdinal == heads[steps-6]
	})
	for i := steps - 6; i < steps; i++ {
		if view := checkView(t, copied, l, Point{At: times[i]}); view.rec.Ordinal != heads[i] {
			t.Errorf("at the time of step %d a view has ordinal %d, not %d", i, view.rec.Ordinal, heads[i])
		}
		checkView(t, copied, l, Point{Ordinal: heads[i] - uint64(min(i-steps+6, rng.IntN(4)))})
	}
	st := copied.Status()
	if st.HistoryShort || st.HistorySeconds == nil || *st.HistorySeconds < time.Hour.Seconds() ||
		*st.HistorySeconds > 1.2*time.Hour.Seconds() {
		t.Errorf("status: %v", st)
	}
	if copied.CheckWritable() == nil {
		t.Fatal("a secondary takes writes")
	}
	if err := copied.Modify(func(s *core.Settings) { s.HistoryMillis = 0 }); err == nil {
		t.Error("the history of a secondary was changed there")
	}
	a.kill()
	if _, err := copied.Promote(true); err != nil {
		t.Fatal(err)
	}
	for _, v := range copied.Volumes() {
		if !bytes.Equal(content(t, v), l.at(v.id, heads[steps-1])) {
			t.Errorf("promoted, volume %s is not what it was", v.id)
		}
	}
	eventually(t, "a primary applies everything", func() bool {
		return copied.checkpoint.read().AppliedOrdinal == copied.journal.Durable()
	})
}

// A journal that is too small for the history is applied as far as it has to be, and status says that the history is
// short; nothing waits.
func TestHistoryIsBoundedByTheJournal(t *testing.T) {
	_, b, g, _ := historyPair(t, time.Hour, func(s *GroupSpec) { s.JournalSizeBytes = MinJournalBytes })
	copied := caughtUp(t, g, b)
	if copied.Status().HistoryShort {
		t.Error("the history of a young copy counts as short")
	}
	rng := seeded(t)
	l := newCutLog(g)
	for i := range 150 {
		if err := l.do(rng, g, 256<<10); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 { // the primary's journal is small, too: without this it would need a sync
			mustFlush(t, g.Volumes()[0])
			caughtUp(t, g, b)
		}
	}
	eventually(t, "the history is short", func() bool { return copied.Status().HistoryShort })
	if used := copied.journal.UsedBytes(); used > 2*MinJournalBytes {
		t.Errorf("the journal has %d bytes", used)
	}
	points, err := copied.Points()
	if err != nil || points.Oldest.Ordinal >= points.Newest.Ordinal {
		t.Fatalf("points: %+v, %v", points, err)
	}
	checkView(t, copied, l, Point{Ordinal: points.Newest.Ordinal})
}

// History by size keeps at least so many bytes of the journal.
func TestHistoryBySize(t *testing.T) {
	const bytes = 4 << 20
	_, b, g, _ := historyPair(t, 0, func(s *GroupSpec) { s.HistoryBytes = bytes })
	copied := caughtUp(t, g, b)
	rng := seeded(t)
	l := newCutLog(g)
	for i := range 120 {
		if err := l.do(rng, g, 256<<10); err != nil {
			t.Fatal(err)
		}
		if i%10 == 9 {
			mustFlush(t, g.Volumes()[0])
			caughtUp(t, g, b)
		}
	}
	eventually(t, "what is older is applied", func() bool {
		return copied.log.unappliedBytes(copied.checkpoint.read().Applied) < bytes+2*copied.log.segBytes.Load()
	})
	h := copied.History()
	if h == nil || h.Bytes < bytes || h.Short {
		t.Fatalf("history: %+v", h)
	}
	points, err := copied.Points()
	if err != nil {
		t.Fatal(err)
	}
	checkView(t, copied, l, Point{Ordinal: max(points.Oldest.Ordinal, l.base)})
}

// After a power loss in the middle of a pass of apply the images have some of its records. The points that are offered
// then are still what was written up to them, and those behind the pass are still offered.
func TestHistorySurvivesPowerLoss(t *testing.T) {
	rng := seeded(t)
	_, b, g, _ := historyPair(t, time.Hour, nil)
	caughtUp(t, g, b)
	b.conf = func(c *Config) { c.ApplyInterval = time.Minute } // apply goes where the test says
	var mu sync.Mutex
	var lost *vfs.MemFS
	left := 0
	b.before = func(op vfs.Op, name string) {
		mu.Lock()
		defer mu.Unlock()
		if op == vfs.OpRead || op == vfs.OpStat || op == vfs.OpSize || left == 0 {
			return
		}
		if left--; left == 0 {
			lost = b.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: []int{100, 70}[rng.IntN(2)], RNG: rng})
		}
	}
	b.restart()
	copied := caughtUp(t, g, b)
	l := newCutLog(g)
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	between, reached := 0, uint64(0)
	for range rounds {
		for range 1 + rng.IntN(12) {
			if err := l.do(rng, g, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
		mustFlush(t, g.Volumes()[0])
		caughtUp(t, g, b)
		applied, head := copied.checkpoint.read().AppliedOrdinal, copied.journal.Durable()
		goal := applied + rng.Uint64N(head-applied+1)
		pos, ok, err := copied.journal.PositionOf(goal)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		mu.Lock()
		lost, left = nil, 1+rng.IntN(40)
		mu.Unlock()
		copied.applier.mu.Lock()
		err = copied.applier.applyTo(context.Background(), pos)
		copied.applier.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		if left = 0; lost != nil {
			clone := lost
			mu.Unlock()
			b.kill()
			b.fs = clone
			b.open()
			mu.Lock()
		}
		mu.Unlock()
		copied = caughtUp(t, g, b)
		points, err := copied.Points()
		if err != nil {
			t.Fatal(err)
		}
		oldest, first := copied.points.oldest()
		reached = max(reached, goal) // a pass that was interrupted counts
		// Before the end of the first sync there is no point. Its end lies behind the record of its ordinal.
		for n := max(reached, first.Ordinal+1); n <= points.Newest.Ordinal; n++ {
			if at, ok, err := copied.journal.PositionOf(n); err != nil || !ok || at.Before(oldest) && n < points.Newest.Ordinal {
				t.Fatalf("ordinal %d, which was not applied, is not offered (%v, %v)", n, ok, err)
			}
		}
		// Any point that is offered, as far back as possible.
		for n := max(applied, l.base); n <= points.Newest.Ordinal; n++ {
			at, ok, err := copied.journal.PositionOf(n)
			if err == nil && ok && !at.Before(oldest) {
				if n < points.Newest.Ordinal {
					between++
				}
				checkView(t, copied, l, Point{Ordinal: n})
				break
			}
		}
	}
	t.Logf("%d views before the newest point", between)
	if between == 0 {
		t.Error("no view was in the past")
	}
}

// A checkpoint of the version before has no reach: everything in its journal may be in the images.
func TestCheckpointWithoutReach(t *testing.T) {
	c := checkpoint{Generation: 3, AppliedOrdinal: 9, Reach: journal.Position{Segment: 4, Offset: 4096},
		Dated: RecoveryPoint{Ordinal: 8, UnixNanos: 1}}
	b := c.encode()
	got, err := decodeCheckpointSlot(b)
	if err != nil || got != c {
		t.Fatalf("%+v instead of %+v: %v", got, c, err)
	}
	c.Reach, c.Dated = journal.Position{}, RecoveryPoint{}
	if got, err = decodeCheckpointSlot(asVersion2(c.encode())); err != nil || got != c {
		t.Fatalf("version 2: %+v instead of %+v: %v", got, c, err)
	}
}

// asVersion2 makes a slot one of version 2.
func asVersion2(slot []byte) []byte {
	binary.LittleEndian.PutUint64(slot, checkpointMagic2)
	binary.LittleEndian.PutUint32(slot[508:], crc32c.Sum(slot[:508]))
	return slot
}

// The tests of history can fail: with a deliberate fault built in, they do.
func TestFaultsOfHistoryAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	testenv.Catches(t, bug.HistoryForgetsReach, "TestHistorySurvivesPowerLoss")
	testenv.Catches(t, bug.HistoryUnheld, "TestHistorySurvivesRestartBeforeTheFirstApply")
}
