package shards

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/shardpb"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// views returns the epochs of the views of a name at a site, by node; empty for a node without one.
func (c *cluster) views(site, name string) (epochs []string) {
	c.t.Helper()
	for _, m := range c.sites[site] {
		at := ""
		if v, err := m.group().View(name); err == nil {
			at = v.Status().Epoch
		}
		epochs = append(epochs, at)
	}
	return epochs
}

// checkView reads the view of a name, and returns how many writes of a chain it has. A write whose cause is missing
// fails the test.
func (c *cluster) checkView(site, name string) uint64 {
	c.t.Helper()
	have, last := map[uint64]bool{}, uint64(0)
	for _, m := range c.sites[site] {
		v, err := m.group().View(name)
		if err != nil {
			c.t.Fatal(err)
		}
		p := make([]byte, volumeBytes)
		if _, err := v.Volumes()[0].ReadAt(p, 0); err != nil {
			c.t.Fatal(err)
		}
		for off := 0; off < len(p); off += blockBytes {
			if k := binary.LittleEndian.Uint64(p[off:]); k != 0 {
				have[k] = true
				last = max(last, k)
			}
		}
	}
	for k := uint64(1); k <= last; k++ {
		if !have[k] {
			c.t.Fatalf("view %s at site %s has write %d, and not write %d that caused it", name, site, last, k)
		}
	}
	return last
}

// TestViewsShowOneEpoch opens views at both sites while writers cause each other across nodes, and while links of
// single shards are cut, so that one copy has more than another.
func TestViewsShowOneEpoch(t *testing.T) {
	const nodes = 3
	rng := seeded(t)
	c := newCluster(t, nodes)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	var seen uint64
	for range 8 {
		w.writes(20 + rng.IntN(50))
		behind := c.sites["a"][rng.IntN(nodes)]
		behind.net.Cut("a")
		w.writes(20 + rng.IntN(50))
		stop, stopped := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				if err := w.write(); err != nil {
					stopped <- err
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		for _, site := range []string{"b", "a"} {
			by := c.sites[site][rng.IntN(nodes)]
			name, err := by.node.OpenViews(t.Context(), "shop", replication.ViewSpec{Writable: true, LimitBytes: 1 << 30})
			if err != nil {
				t.Fatalf("site %s: %v", site, err)
			}
			got := c.checkView(site, name)
			if at := c.views(site, name); at[0] == "" || at[1] != at[0] || at[2] != at[0] {
				t.Errorf("the views are of the epochs %q", at)
			}
			if site == "b" {
				if got < seen {
					t.Errorf("a view shows %d writes, an earlier one %d", got, seen)
				}
				seen = got
			}
			other := c.sites[site][rng.IntN(nodes)]
			if err := other.node.CloseViews(t.Context(), "shop", name); err != nil {
				t.Fatal(err)
			}
			if at := strings.Join(c.views(site, name), ""); at != "" {
				t.Errorf("after the deletion there are views of %s", at)
			}
			if err := other.node.CloseViews(t.Context(), "shop", name); !errors.Is(err, replication.ErrNotFound) {
				t.Errorf("deleted again: %v", err)
			}
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		behind.net.Heal("a")
	}
	t.Logf("%d of %d writes in the last view of the copies", seen, w.next)
	if seen == 0 {
		t.Error("no view of a copy shows anything")
	}
}

// TestViewOfThePrimaryHasWhatWasWritten: what was answered before a view of the primary site is made is in it.
func TestViewOfThePrimaryHasWhatWasWritten(t *testing.T) {
	c := newCluster(t, 2)
	c.create(func(s *core.Settings) { s.Shard.EpochMillis = 400 })
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	for range 10 {
		w.writes(3)
		node := c.sites["a"][1].node
		name, err := node.OpenViews(t.Context(), "shop", replication.ViewSpec{LimitBytes: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if got := c.checkView("a", name); got != w.next {
			t.Errorf("%d of %d writes", got, w.next)
		}
		if err := node.CloseViews(t.Context(), "shop", name); err != nil {
			t.Fatal(err)
		}
	}
}

// TestViewsAreMadeAgainAfterAnInterruption stops the opening and the deletion of a view at each shard, with and without
// a chance to tidy up. The repetition, at any node, makes all views at one epoch, or deletes all.
func TestViewsAreMadeAgainAfterAnInterruption(t *testing.T) {
	const nodes = 3
	rng := seeded(t)
	c := newCluster(t, nodes)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	errNode := status.Error(codes.Internal, "the node broke off")
	// broken has calls of node 0 break off at shard i, and nothing be tidied up.
	broken := func(i int, part shardpb.Part) {
		for j, m := range c.sites["b"] {
			m.mu.Lock()
			m.hook = nil
			if i >= 0 {
				m.hook = func(r *shardpb.DoRequest) error {
					if r.GetPart() == part && j == i || r.GetPart() == shardpb.Part_PART_CLOSE_VIEW {
						return errNode
					}
					return nil
				}
			}
			m.mu.Unlock()
		}
	}
	spec := replication.ViewSpec{Name: "monday", LimitBytes: 1 << 30}
	for i := 1; i < nodes; i++ {
		w.writes(20)
		broken(i, shardpb.Part_PART_OPEN_VIEW)
		if _, err := c.sites["b"][0].node.OpenViews(t.Context(), "shop", spec); !errors.Is(err, core.ErrPrecondition) {
			t.Fatalf("an opening that breaks off at shard %d: %v", i, err)
		}
		broken(-1, 0)
		if left := c.views("b", "monday"); slices.Contains(left[i:], left[0]) && left[0] != "" {
			t.Fatalf("the opening did not break off: %q", left)
		}
		by := c.sites["b"][rng.IntN(nodes)].node
		if _, err := by.OpenViews(t.Context(), "shop", spec); err != nil {
			t.Fatal(err)
		}
		c.checkView("b", "monday")
		at := c.views("b", "monday")
		if slices.Contains(at, "") || len(slices.Compact(slices.Clone(at))) != 1 {
			t.Fatalf("after the repetition the views are of the epochs %q", at)
		}
		if _, err := by.OpenViews(t.Context(), "shop", spec); !errors.Is(err, replication.ErrExists) {
			t.Fatalf("a view that is there is made again: %v", err)
		}
		if again := c.views("b", "monday"); !slices.Equal(again, at) {
			t.Fatalf("a refused call changed the views: %q, %q", again, at)
		}
		broken(i, shardpb.Part_PART_CLOSE_VIEW)
		if err := c.sites["b"][0].node.CloseViews(t.Context(), "shop", "monday"); !errors.Is(err, core.ErrPrecondition) {
			t.Fatalf("a deletion that breaks off: %v", err)
		}
		broken(-1, 0)
		if err := by.CloseViews(t.Context(), "shop", "monday"); err != nil {
			t.Fatal(err)
		}
		if left := strings.Join(c.views("b", "monday"), ""); left != "" {
			t.Fatalf("after the deletion there are views of %s", left)
		}
	}
}

// TestFixedShardsGoOn: a shard that is fixed says which epochs it has, applies nothing further, refuses what it does
// not have, and goes on when it is released.
func TestFixedShardsGoOn(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	s := c.sites["b"][1].group().Shard()
	marks, err := s.FixEpoch(t.Context(), 7, epoch.ID{})
	if err != nil {
		t.Fatal(err)
	}
	applied := c.sites["b"][1].group().Status().AppliedOrdinal
	w.writes(50)
	before := s.Progress().Shown
	c.eventually("further epochs are complete", func() bool {
		return s.Progress().Shown.Number > before.Number+2
	})
	if now := c.sites["b"][1].group().Status().AppliedOrdinal; now != applied {
		t.Errorf("a fixed shard has applied %d to %d", applied, now)
	}
	later, err := s.FixEpoch(t.Context(), 7, s.Progress().Shown)
	if err != nil || len(later) <= len(marks) {
		t.Fatalf("%d epochs at first, %d later, %v", len(marks), len(later), err)
	}
	c.eventually("it applies up to the epoch", func() bool {
		return c.sites["b"][1].group().Status().AppliedOrdinal > applied
	})
	if _, err := s.FixEpoch(t.Context(), 7, epoch.ID{Number: 1, Run: 1}); !errors.Is(err, core.ErrPrecondition) ||
		errors.Is(err, core.ErrNotYet) {
		t.Errorf("an earlier epoch: %v", err)
	}
	if _, err := s.FixEpoch(t.Context(), 7, epoch.ID{Number: 1 << 47, Run: 1}); !errors.Is(err, core.ErrNotYet) {
		t.Errorf("an epoch to come: %v", err)
	}
	s.ReleaseEpoch(7)
	s.ReleaseEpoch(7)
	head := c.sites["a"][1].group().Status().HeadOrdinal
	c.eventually("it goes on", func() bool { return c.sites["b"][1].group().Status().AppliedOrdinal >= head })
	// A shard that is away: the call names it, and nothing stays fixed.
	c.sites["b"][1].kill()
	if _, err := c.sites["b"][0].node.Fix(t.Context(), "shop"); !errors.Is(err, core.ErrPrecondition) ||
		!strings.Contains(err.Error(), "shard 1") {
		t.Errorf("without a node: %v", err)
	}
}
