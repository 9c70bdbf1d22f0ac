package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// trialStory is two sites with a copy at b that has history, and a point in it.
type trialStory struct {
	t    *testing.T
	rng  *rand.Rand
	a, b *testSite
	g    *Group // at a
	l    *cutLog
	// point lies before held, which is all that b has.
	point, held uint64
}

func newTrialStory(t *testing.T) *trialStory {
	s := &trialStory{t: t, rng: seeded(t)}
	s.a, s.b, s.g, _ = historyPair(t, time.Hour, nil)
	caughtUp(t, s.g, s.b)
	s.l = newCutLog(s.g)
	s.fill()
	return s
}

// fill makes history with a point in it.
func (s *trialStory) fill() {
	s.t.Helper()
	s.write(30)
	s.point = s.g.journal.Head()
	s.write(30)
	mustFlush(s.t, s.g.Volumes()[0])
	s.held = s.g.journal.Head()
	caughtUp(s.t, s.g, s.b)
}

// reopen starts b again on a file system that asks fails before each operation, and makes history there.
func (s *trialStory) reopen(fails func(op vfs.Op, name string) error) {
	s.t.Helper()
	s.b.kill()
	s.b.fails = fails
	s.b.open()
	caughtUp(s.t, s.g, s.b)
	s.fill()
}

// write has the application at a write.
func (s *trialStory) write(n int) {
	s.t.Helper()
	for range n {
		if err := s.l.do(s.rng, s.g, 128<<10); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *trialStory) open() *Group {
	s.t.Helper()
	loss, err := s.b.group("shop").PromoteAt(context.Background(), Point{Ordinal: s.point})
	if err != nil {
		s.t.Fatal(err)
	}
	if loss.RecoveredOrdinal != s.point || *loss.LostOrdinals < s.held-s.point || loss.Exact {
		s.t.Errorf("loss of a point: %+v", loss)
	}
	g := s.b.group("shop")
	if st := g.Status(); st.State != core.StateTrial || st.Role != core.RolePrimary || st.Trial.Ordinal != s.point {
		s.t.Fatalf("opened at a point: %v", st)
	}
	s.is(g, s.point)
	return g
}

// is compares a group's volumes with what was written up to an ordinal.
func (s *trialStory) is(g *Group, ordinal uint64) {
	s.t.Helper()
	if err := s.differs(g, ordinal); err != nil {
		s.t.Fatal(err)
	}
}

func (s *trialStory) differs(g *Group, ordinal uint64) error {
	for _, v := range g.Volumes() {
		got := make([]byte, v.Size())
		if _, err := v.ReadAt(got, 0); err != nil {
			return err
		}
		if i := firstDifference(got, s.l.at(v.id, ordinal)); i >= 0 {
			return fmt.Errorf("volume %s is not what it was at ordinal %d: offset %d is %#x", v.id, ordinal, i, got[i])
		}
	}
	return nil
}

// look has an application write to the site that was opened at a point.
func (s *trialStory) look(g *Group) {
	s.t.Helper()
	for range 20 {
		v := g.Volumes()[s.rng.IntN(2)]
		mustWrite(s.t, v, s.rng.Int64N(v.Size()/4096)*4096, block(byte(1+s.rng.IntN(255)), 4096))
	}
	mustFlush(s.t, g.Volumes()[0])
}

// A copy is opened at a point, written to, restarted, and taken back: it is the copy that it was, and goes on following
// its primary, which was told, without a byte being copied again.
func TestTrialIsTakenBack(t *testing.T) {
	s := newTrialStory(t)
	g := s.open()
	s.look(g)
	eventually(t, "the primary is told", func() bool {
		return strings.Contains(s.g.Status().StateReason, "slipctl group rollback shop")
	})
	s.write(5) // the primary goes on, and does not diverge
	mustFlush(t, s.g.Volumes()[0])
	if st := s.g.Status(); st.State == core.StateDiverged {
		t.Fatalf("the primary has diverged from a site that has decided nothing: %s", st.StateReason)
	}
	s.b.restart()
	g = s.b.group("shop")
	for what, do := range map[string]func() error{
		"a promotion":       func() error { _, err := g.Promote(true); return err },
		"a second point":    func() error { _, err := g.PromoteAt(context.Background(), Point{}); return err },
		"a demotion":        func() error { _, err := g.Demote(); return err },
		"a new member":      func() error { return g.AddVolume(s.b.createVolume("v9", 1<<20), nil) },
		"a member's growth": func() error { return g.Resize("v0", 8<<20) },
		"a member's leave":  func() error { return g.RemoveVolume("v0", nil) },
	} {
		if err := do(); !errors.Is(err, core.ErrPrecondition) {
			t.Errorf("%s before the trial is decided: %v", what, err)
		}
	}
	v, err := g.Attach("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.RollBackTrial(context.Background()); !errors.Is(err, core.ErrPrecondition) {
		t.Fatalf("taken back under an application: %v", err)
	}
	if err := g.Detach(v.id); err != nil {
		t.Fatal(err)
	}
	view := mustView(t, g, ViewSpec{Name: "looked", LimitBytes: 1 << 30})
	shown := viewContent(t, view.Volumes()[0])
	s.look(g)
	if err := g.RollBackTrial(context.Background()); err != nil {
		t.Fatal(err)
	}
	g = s.b.group("shop")
	if role(g) != core.RoleSecondary {
		t.Fatal("not secondary again")
	}
	if view, err = g.View("looked"); err != nil || !bytes.Equal(viewContent(t, view.Volumes()[0]), shown) {
		t.Errorf("a view of what was looked at is lost or another one (%v)", err)
	}
	if err := g.RollBackTrial(context.Background()); err != nil {
		t.Errorf("a repetition: %v", err)
	}
	caughtUp(t, s.g, s.b)
	sameContent(t, s.g, g)
	if st := s.g.Status(); orZero(st.SyncTotalBytes) != 0 {
		t.Errorf("%d bytes were copied again", *st.SyncTotalBytes)
	}
	if left := g.preserved.of(ownerTrial); len(left) > 0 {
		t.Errorf("%d sets of images are left", len(left))
	}
	// And once more, to the end.
	if _, err := g.Promote(true); err != nil {
		t.Fatal(err)
	}
	sameContent(t, s.g, s.b.group("shop"))
}

// A copy is opened at a point, and stays there. What it held past the point is a tail; the old primary finds the fork,
// gives way, and becomes the same.
func TestTrialIsCommitted(t *testing.T) {
	s := newTrialStory(t)
	g := s.open()
	s.look(g)
	id, err := g.CommitTrial(context.Background(), false)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := g.CommitTrial(context.Background(), false); err != nil || again != "" {
		t.Errorf("a repetition: %q, %v", again, err)
	}
	if err := g.RollBackTrial(context.Background()); err != nil || role(g) != core.RolePrimary {
		t.Errorf("taken back after the commit: %v", err)
	}
	s.tailIs(s.b, id)
	if left := g.preserved.of(ownerTrial); len(left) > 0 {
		t.Errorf("%d sets of images are left", len(left))
	}
	eventually(t, "the old primary finds the fork", func() bool { return s.g.Status().State == core.StateDiverged })
	eventually(t, "the loss is exact", func() bool { return g.Status().Loss.Exact })
	if _, err := s.g.Yield(context.Background()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old primary follows", func() bool {
		return role(s.g) == core.RoleSecondary && s.g.Status().Promotable && g.Status().State == core.StateStreaming
	})
	caughtUp(t, g, s.a)
	sameContent(t, g, s.g)
}

// The point can be the last one of a segment of the journal, whose place is also the begin of the next one.
func TestTrialAtTheEndOfASegment(t *testing.T) {
	s := newTrialStory(t)
	for range 6 { // the journal has segments of a sixteenth of its size
		s.write(20)
		mustFlush(t, s.g.Volumes()[0])
	}
	caughtUp(t, s.g, s.b)
	s.held, s.point = s.g.journal.Head(), 0
	points, err := s.b.group("shop").Points()
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range s.b.group("shop").journal.Segments() {
		if last := segment.LastOrdinal; segment.Sealed && last > max(points.Oldest.Ordinal, s.l.base) && last < s.held {
			s.point = last
		}
	}
	if s.point == 0 {
		t.Fatal("no segment has ended")
	}
	g := s.open()
	if err := g.RollBackTrial(context.Background()); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, s.g, s.b)
	sameContent(t, s.g, s.b.group("shop"))
}

// While images are restored, which can take long, the group has a status that says what it becomes.
func TestStatusWhileImagesAreRestored(t *testing.T) {
	s := newTrialStory(t)
	var slow atomic.Bool
	s.reopen(func(op vfs.Op, name string) error {
		if slow.Load() && op == vfs.OpWrite && strings.HasSuffix(name, "/image") {
			time.Sleep(5 * time.Millisecond)
		}
		return nil
	})
	slow.Store(true)
	volumes := s.b.group("shop").Status().Volumes
	same := func(a, b VolumeStatus) bool { return a.VolumeID == b.VolumeID && a.SizeBytes == b.SizeBytes }
	watch := func(do func() error, role core.Role, says string) {
		t.Helper()
		done, seen := make(chan error, 1), 0
		go func() { done <- do() }()
		for {
			select {
			case err := <-done:
				if err != nil || seen == 0 {
					t.Fatalf("%v; seen %d times that it %s", err, seen, says)
				}
				return
			default:
			}
			_, err := s.b.site.Group("shop")
			st := RollingBackStatus(err)
			if err != nil && st == nil {
				t.Fatalf("the group has no status: %v", err)
			}
			if st != nil && strings.Contains(st.StateReason, says) && st.Role == role && st.Peer != "" {
				seen++
				if !st.RollingBack || !slices.EqualFunc(st.Volumes, volumes, same) {
					t.Errorf("volumes %+v, want those that it opens with, %+v", st.Volumes, volumes)
				}
			}
			time.Sleep(time.Millisecond)
		}
	}
	ctx := context.Background()
	watch(func() error {
		_, err := s.b.group("shop").PromoteAt(ctx, Point{Ordinal: s.point})
		return err
	}, core.RoleSecondary, fmt.Sprintf("is being opened at site-b as of ordinal %d", s.point))
	watch(func() error { return s.b.group("shop").RollBackTrial(ctx) }, core.RolePrimary, "goes back to what it held")
}

// tailIs demands a tail with what the copy held.
func (s *trialStory) tailIs(at *testSite, id string) {
	s.t.Helper()
	if err := s.tailDiffers(at, id); err != nil {
		s.t.Fatal(err)
	}
}

func (s *trialStory) tailDiffers(at *testSite, id string) error {
	tails, err := at.site.Tails("shop")
	if err != nil {
		return err
	}
	for _, tail := range tails {
		if tail.ID != id {
			continue
		}
		if tail.ForkOrdinal != s.point || tail.Cut.Ordinal != s.held || len(tail.Snapshots) != 2 || tail.Writes == 0 {
			return fmt.Errorf("tail %+v, cut %+v", tail.SnapshotTail, tail.Cut)
		}
		for _, snap := range tail.Snapshots {
			path, err := at.pool.SnapshotImagePath(snap.ID)
			if err != nil {
				return err
			}
			got, err := vfs.ReadFile(at.fs, path, 1<<30)
			if err != nil {
				return err
			}
			if i := firstDifference(got, s.l.at(snap.SourceVolumeID, s.held)); i >= 0 || snap.State != blockdev.SnapshotReady {
				return fmt.Errorf("snapshot %s, %s, differs from what the copy held at offset %d", snap.ID, snap.State, i)
			}
		}
		return nil
	}
	return fmt.Errorf("no tail %s among %d", id, len(tails))
}

// Power fails before any operation of opening a point, of looking, of taking it back and of committing. What the next
// start has can be taken back to all that the copy held, or committed with that as a tail.
func TestTrialSurvivesPowerLossAnywhere(t *testing.T) {
	for _, commit := range []bool{false, true} {
		t.Run(fmt.Sprintf("commit %v", commit), func(t *testing.T) { testTrialCrash(t, commit) })
	}
}

func testTrialCrash(t *testing.T, commit bool) {
	s := newTrialStory(t)
	c := &crashing{mem: s.b.fs, rng: rand.New(rand.NewPCG(s.rng.Uint64(), 0)), every: 4}
	if testing.Short() {
		c.every = 16
	}
	c.seen = s.rng.IntN(c.every)
	s.reopen(c.before)
	s.a.kill()
	c.armed.Store(true)
	g := s.open()
	s.look(g)
	if commit {
		if _, err := g.CommitTrial(context.Background(), false); err != nil {
			t.Fatal(err)
		}
	} else if err := g.RollBackTrial(context.Background()); err != nil {
		t.Fatal(err)
	}
	c.armed.Store(false)
	s.b.kill()
	before, during, after := 0, 0, 0
	for _, p := range c.points {
		state, err := s.afterLoss(t, p.fs, commit)
		if err != nil {
			t.Fatalf("power loss before operation %s, with %d%% of the unsynced: %v", p.op, p.percent, err)
		}
		switch {
		case state == core.RoleSecondary:
			before++
		case state == "":
			during++
		default:
			after++
		}
	}
	t.Logf("%d power losses: %d left a secondary, %d a trial, %d a primary", len(c.points), before, during, after)
	if during == 0 || !commit && before == 0 {
		t.Error("power failed at one side of a decision only")
	}
}

// afterLoss starts a site as a power loss left it, decides, and compares. It returns the role that was found; empty
// with a trial.
func (s *trialStory) afterLoss(t *testing.T, fs *vfs.MemFS, commit bool) (found core.Role, err error) {
	b := newTestSiteOn(t, fs)
	defer b.kill()
	eventually(t, "the group is open", func() bool { _, err := b.site.Group("shop"); return err == nil })
	g := b.group("shop")
	if g.Trial() == nil && role(g) == core.RoleSecondary {
		return core.RoleSecondary, s.differs(g, s.held)
	}
	if g.Trial() == nil {
		if !commit {
			return "", errors.New("a trial that was never committed is over")
		}
		tails, err := b.site.Tails("shop")
		if err != nil || len(tails) != 1 {
			return "", fmt.Errorf("committed, and has %d tails (%w)", len(tails), err)
		}
		return core.RolePrimary, s.tailDiffers(b, tails[0].ID)
	}
	if s.rng.IntN(2) == 0 {
		id, err := g.CommitTrial(context.Background(), false)
		if err != nil {
			return "", err
		}
		return "", s.tailDiffers(b, id)
	}
	if err := g.RollBackTrial(context.Background()); err != nil {
		return "", err
	}
	return "", s.differs(b.group("shop"), s.held)
}

// newTestSiteOn starts site-b on a file system, alone.
func newTestSiteOn(t *testing.T, fs *vfs.MemFS) *testSite {
	t.Helper()
	s := &testSite{t: t, name: "site-b", fs: fs, net: link.NewNetwork(nil)}
	s.open()
	return s
}

// A tail that cannot be kept keeps the trial from being committed, unless it is given up.
func TestTrialWithoutSpaceForTheTail(t *testing.T) {
	s := newTrialStory(t)
	var full atomic.Bool
	s.reopen(func(op vfs.Op, name string) error {
		if full.Load() && op == vfs.OpWrite && strings.Contains(name, "/snapshots/") && strings.HasSuffix(name, "/image") {
			return syscall.ENOSPC
		}
		return nil
	})
	g := s.open()
	full.Store(true)
	if _, err := g.CommitTrial(context.Background(), false); !errors.Is(err, syscall.ENOSPC) || g.Trial() == nil {
		t.Fatalf("committed without a tail: %v", err)
	}
	if tails, err := s.b.site.Tails("shop"); err != nil || len(tails) != 0 {
		t.Errorf("a tail that was not kept: %v, %v", tails, err)
	}
	if id, err := g.CommitTrial(context.Background(), true); err != nil || id != "" {
		t.Fatalf("discarded: %q, %v", id, err)
	}
	if g.Trial() != nil {
		t.Error("not committed")
	}
}

// The tests of points can fail: with a deliberate fault built in, they do.
func TestFaultsOfTrialsAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the engine with deliberate faults")
	}
	for fault, test := range map[bug.Name]string{
		bug.CommitWithoutTail: "TestTrialIsCommitted",
		bug.RollBackToOlder:   "TestTrialSurvivesPowerLossAnywhere",
		bug.TrialDropsHeld:    "TestTrialSurvivesPowerLossAnywhere",
	} {
		testenv.Catches(t, fault, test)
	}
}
