package replication

import (
	"slices"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// writeSteps writes at the primary, waits for the copy after each step, and returns the ordinal that each ended at.
func writeSteps(t *testing.T, g *Group, b *testSite, l *cutLog, steps int) (heads []uint64) {
	t.Helper()
	rng := seeded(t)
	for range steps {
		for range 3 {
			if err := l.do(rng, g, 64<<10); err != nil {
				t.Fatal(err)
			}
		}
		mustFlush(t, g.Volumes()[0])
		caughtUp(t, g, b)
		heads = append(heads, g.journal.Head())
	}
	return heads
}

// holds waits until a copy keeps history and its checkpoint says what the images have.
func holds(t *testing.T, copied *Group) {
	t.Helper()
	eventually(t, "the copy keeps history", func() bool {
		return copied.history.asked().kept() && copied.checkpoint.read().Reach.Segment != 0
	})
}

// A copy that applied nothing since it keeps history has all of it after a restart: what it knows of its images is in
// the checkpoint before anything is applied. It is that way for a copy that is new, for one that was given a history
// later, and for one that becomes a secondary again.
func TestHistorySurvivesRestartBeforeTheFirstApply(t *testing.T) {
	for name, restart := range map[string]func(s *testSite){
		"kill":       (*testSite).restart,
		"power loss": func(s *testSite) { s.crash(0, seeded(t)) },
	} {
		t.Run(name+", new copy", func(t *testing.T) {
			_, b, g, _ := historyPair(t, time.Hour, nil)
			l := newCutLog(g)
			holds(t, caughtUp(t, g, b))
			checkAfter(t, restart, g, b, l)
			if b.group("shop").Status().HistoryShort {
				t.Error("the history of a young copy counts as short after a restart")
			}
		})
		t.Run(name+", history asked for later", func(t *testing.T) {
			_, b, g, _ := historyPair(t, 0, nil)
			l := newCutLog(g)
			writeSteps(t, g, b, l, 3)
			if err := g.Modify(func(s *core.Settings) { s.HistoryMillis = time.Hour.Milliseconds() }); err != nil {
				t.Fatal(err)
			}
			holds(t, b.group("shop"))
			checkAfter(t, restart, g, b, l)
		})
		t.Run(name+", roles changed", func(t *testing.T) {
			a, b, g, _ := historyPair(t, time.Hour, nil)
			l := newCutLog(g)
			writeSteps(t, g, b, l, 3)
			if _, err := g.Demote(); err != nil {
				t.Fatal(err)
			}
			copied := b.group("shop")
			eventually(t, "the promotion", func() bool { _, err := copied.Promote(false); return err == nil })
			holds(t, caughtUp(t, copied, a))
			checkAfter(t, restart, copied, a, l)
		})
	}
}

// checkAfter writes, restarts the copy, and demands that each step can be opened there and is what was written up to
// it.
func checkAfter(t *testing.T, restart func(*testSite), g *Group, s *testSite, l *cutLog) {
	t.Helper()
	heads := writeSteps(t, g, s, l, 4)
	restart(s)
	copied := caughtUp(t, g, s)
	for _, n := range heads {
		checkView(t, copied, l, Point{Ordinal: n})
	}
}

// What the history reaches to is known after a restart although the record that says when has left the journal.
func TestHistoryKeepsItsTimeWithoutTheRecord(t *testing.T) {
	_, b, g, _ := historyPair(t, time.Hour, nil)
	caughtUp(t, g, b)
	b.conf = func(c *Config) { c.ApplyInterval = time.Minute } // apply goes where the test says
	b.restart()
	copied := caughtUp(t, g, b)
	v, base := g.Volumes()[0], copied.journal.Durable()
	for i := range 3 << 20 / (64 << 10) {
		mustWrite(t, v, int64(i%8)<<16, block(byte(i), 64<<10))
	}
	mustFlush(t, v)
	caughtUp(t, g, b)
	segments := copied.journal.Segments()
	i := slices.IndexFunc(segments, func(s journal.SegmentInfo) bool { return s.Sealed && s.LastOrdinal > base })
	if i < 0 {
		t.Fatalf("no segment with writes is sealed: %+v", segments)
	}
	copied.applier.mu.Lock()
	err := copied.applier.applyTo(t.Context(), segments[i].End)
	copied.applier.mu.Unlock()
	if err == nil {
		err = copied.trimmer.trim()
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := copied.applier.applyDue(t.Context(), 0); err != nil { // up to the begin of the segment behind that
		t.Fatal(err)
	}
	before := copied.History()
	if _, ok, err := copied.journal.HeaderOf(copied.checkpoint.read().AppliedOrdinal); err != nil || ok {
		t.Fatalf("the record is there: %v, %v", ok, err)
	}
	b.restart()
	after := b.group("shop").History()
	if before == nil || after == nil || before.Reaches == nil || after.Reaches == nil ||
		*after.Reaches < *before.Reaches {
		t.Fatalf("the history reaches %+v before the restart, %+v after it", before, after)
	}
}
