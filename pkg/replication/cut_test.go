package replication

import (
	"context"
	"errors"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

func mustCut(t *testing.T, g *Group, targets []CutTarget) blockdev.SnapshotCut {
	t.Helper()
	cut, err := g.Cut(context.Background(), targets)
	if err != nil {
		t.Fatal(err)
	}
	return cut
}

// A cut has what was written before it, flushed or not, and nothing that came after it. Repeated it is the same one.
func TestCut(t *testing.T) {
	rng := seeded(t)
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 2, 3<<20, nil)
	l := newCutLog(g)
	var before []CutTarget
	for i := range 4 {
		for range 30 {
			if err := l.do(rng, g, 256<<10); err != nil {
				t.Fatal(err)
			}
		}
		targets := createSnapshots(t, s.pool, string(rune('a'+i)), "v0", "v1")
		head := g.journal.Head()
		cut := mustCut(t, g, targets)
		if cut.Ordinal != head || cut.GroupID != g.ID() || cut.Timeline == "" || cut.UnixNanos == 0 {
			t.Fatalf("cut %+v of a group at ordinal %d", cut, head)
		}
		for range 20 {
			if err := l.do(rng, g, 256<<10); err != nil {
				t.Fatal(err)
			}
		}
		if again := mustCut(t, g, targets); again != cut {
			t.Fatalf("repeated: %+v, was %+v", again, cut)
		}
		if err := checkCut(s.fs, s.pool, l, cut, targets); err != nil {
			t.Fatal(err)
		}
		if again := mustCut(t, g, targets); again != cut {
			t.Fatalf("repeated when complete: %+v, was %+v", again, cut)
		}
		for j := range before {
			said, differ, err := checkChanges(s.fs, s.pool, before[j].SnapshotID, targets[j].SnapshotID)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d extents changed, %d differ", targets[j].SnapshotID, said, differ)
		}
		before = targets
	}
	eventually(t, "no copy is under way", func() bool { return len(g.Cuts()) == 0 })
}

// Changed blocks are exactly the extents of the records in between, whatever they had in them.
func TestCutChangesAreThoseOfTheRecords(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 1, 2<<20, nil)
	v := volumeOf(t, g, "v0")
	const extent = changemap.ExtentBytes
	mustWrite(t, v, 0, block(1, 4096))
	first := createSnapshots(t, s.pool, "1", "v0")
	mustCut(t, g, first)
	mustWrite(t, v, 3*extent-4096, block(2, 8192)) // two extents
	mustWrite(t, v, 0, block(1, 4096))             // the same again
	if err := v.Discard(20*extent, 2*extent); err != nil {
		t.Fatal(err)
	}
	second := createSnapshots(t, s.pool, "2", "v0")
	mustCut(t, g, second)
	third := createSnapshots(t, s.pool, "3", "v0")
	mustCut(t, g, third)

	want := func(base, target []CutTarget, extents ...uint64) {
		t.Helper()
		m, err := changes.Between(s.fs, s.pool, base[0].SnapshotID, target[0].SnapshotID)
		if err != nil {
			t.Fatal(err)
		}
		w := changemap.New()
		for _, e := range extents {
			w.MarkExtent(0, e)
		}
		if !m.Equal(w) {
			t.Fatalf("%d extents changed, want %v", m.Len(), extents)
		}
	}
	want(first, second, 0, 2, 3, 20, 21)
	want(second, third)
	want(first, third, 0, 2, 3, 20, 21)
	_, err := changes.Between(s.fs, s.pool, third[0].SnapshotID, first[0].SnapshotID)
	if !errors.Is(err, changes.ErrUnrelated) {
		t.Fatalf("backwards: %v", err)
	}
	if rec, err := s.pool.GetSnapshot(first[0].SnapshotID); err != nil || rec.ParentID != "" {
		t.Fatalf("the first snapshot has parent %q: %v", rec.ParentID, err)
	}
}

// What cannot be cut is refused, and nothing of it is taken.
func TestCutRefusals(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := s.createGroup("shop", "", 2, 1<<20, nil)
	s.createVolume("alone", 1<<20)
	good := createSnapshots(t, s.pool, "1", "v0", "v1")
	alone := createSnapshots(t, s.pool, "1", "alone")
	for what, c := range map[string]struct {
		targets []CutTarget
		want    error
	}{
		"nothing":            {nil, ErrInvalid},
		"volume twice":       {[]CutTarget{good[0], {"v0", good[1].SnapshotID}}, ErrInvalid},
		"snapshot twice":     {[]CutTarget{good[0], good[0]}, ErrInvalid},
		"another volume's":   {[]CutTarget{{"v1", good[0].SnapshotID}}, ErrInvalid},
		"no such snapshot":   {[]CutTarget{{"v0", "snap-none"}}, blockdev.ErrNoSnapshot},
		"not in the group":   {append(alone, good...), core.ErrPrecondition},
		"unknown to the set": {[]CutTarget{good[0], {"v9", good[1].SnapshotID}}, ErrInvalid},
	} {
		if _, err := g.Cut(context.Background(), c.targets); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
	cut := mustCut(t, g, good[:1])
	if _, err := g.Cut(context.Background(), good); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("one taken, one not: %v", err)
	}
	mustWrite(t, volumeOf(t, g, "v1"), 0, block(1, 4096))
	if other := mustCut(t, g, good[1:]); other.Ordinal == cut.Ordinal {
		t.Fatalf("two cuts at ordinal %d", cut.Ordinal)
	}
	if _, err := g.Cut(context.Background(), good); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("taken at two ordinals: %v", err)
	}
}
