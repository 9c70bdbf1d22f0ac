package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const ownerTest preservedOwner = "test"

func mustPreserve(t *testing.T, g *Group, full preserveFull) *preserved {
	t.Helper()
	p, err := g.preserved.take(context.Background(), preserveRequest{owner: ownerTest, full: full,
		position: g.log.durablePosition})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkPreserved demands that a set has what its members had at its ordinal.
func checkPreserved(p *preserved, l *cutLog) error {
	for _, image := range p.images {
		want, got := l.at(image.member.VolumeID, p.record.Ordinal), make([]byte, image.Size())
		if _, err := image.ReadAt(got, 0); err != nil {
			return err
		}
		if i := firstDifference(got, want); i >= 0 {
			return fmt.Errorf("volume %s as preserved at ordinal %d: offset %d (extent %d) is %#x instead of %#x",
				image.member.VolumeID, p.record.Ordinal, i, i/changemap.ExtentBytes, got[i], want[i])
		}
		for off := int64(0); off < image.Size(); {
			start, end, err := image.NextData(off)
			if err != nil {
				start, end = image.Size(), image.Size()
			}
			if !vfs.AllZero(want[off:max(start, off)]) {
				return fmt.Errorf("volume %s as preserved at ordinal %d has content between %d and %d, said to be zeros",
					image.member.VolumeID, p.record.Ordinal, off, start)
			}
			off = end
		}
	}
	return p.check()
}

// Several sets at once show their own ordinals while a writer goes on, beside apply, and after a restart. One that is
// dropped leaves nothing, and what it did not keep is no loss to the others.
func TestPreservedImages(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		t.Run(fmt.Sprintf("reflink %v", reflink), func(t *testing.T) {
			rng := seeded(t)
			s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
			s.fs.SetReflink(reflink)
			g := s.createGroup("shop", "", 2, 3<<20, nil)
			l := newCutLog(g)
			write := func(n int) {
				for range n {
					if err := l.do(rng, g, 256<<10); err != nil {
						t.Fatal(err)
					}
				}
			}
			for i := range 5 {
				write(30)
				head := g.journal.Head()
				if p := mustPreserve(t, g, preserveOrWait); p.record.Ordinal != head || p.record.Timeline == "" {
					t.Fatalf("preserved %+v of a group at ordinal %d", p.record, head)
				}
				var wg sync.WaitGroup
				for _, p := range g.preserved.of(ownerTest) {
					wg.Go(func() {
						for range 5 {
							if err := checkPreserved(p, l); err != nil {
								t.Error(err)
							}
						}
					})
				}
				write(20)
				mustFlush(t, g.Volumes()[0])
				wg.Wait()
				if i%2 == 1 {
					s.restart()
					g = s.group("shop")
				}
				sets := g.preserved.of(ownerTest)
				if i == 3 {
					dir := sets[1].dir
					if err := g.preserved.drop(sets[1]); err != nil {
						t.Fatal(err)
					}
					if _, err := s.fs.Stat(dir); err == nil {
						t.Fatal("a dropped set is still there")
					}
				}
				if want := []int{1, 2, 3, 3, 4}[i]; len(g.preserved.of(ownerTest)) != want {
					t.Fatalf("%d sets, want %d", len(g.preserved.of(ownerTest)), want)
				}
			}
			if err := s.site.DeleteGroup("shop", true); err != nil {
				t.Fatal(err)
			}
			if dir, _ := g.preserved.dir(); dir != "" {
				if _, err := s.fs.Stat(dir); err == nil {
					t.Fatal("the sets of a deleted group are still there")
				}
			}
		})
	}
}

// Power fails before any operation of taking a set, of apply behind it, and of rolling back. The next start has the set
// whole if its taker was told of it; it shows its ordinal, and rolling back gives the images of its ordinal.
func TestPreservedSurvivesPowerLossAnywhere(t *testing.T) {
	rng := seeded(t)
	c := &crashing{mem: vfs.NewMem(), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), every: 3}
	if testing.Short() {
		c.every = 10
	}
	c.seen = rng.IntN(c.every)
	site, pool, err := openSite(vfs.NewErrFS(c.mem, c.before))
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := &testSite{t: t, name: "site-a", fs: c.mem, pool: pool, site: site}
	g := s.createGroup("shop", "", 2, 3<<20, nil)
	l := newCutLog(g)
	write := func(n int) {
		for range n {
			if err := l.do(rng, g, 128<<10); err != nil {
				t.Fatal(err)
			}
		}
		mustFlush(t, g.Volumes()[0])
	}
	write(40)
	c.armed.Store(true)
	p := mustPreserve(t, g, preserveOrWait)
	told := len(c.points)
	write(20)
	write(20)
	if err := g.applier.applyAll(context.Background()); err != nil {
		t.Fatal(err)
	}
	g.applier.mu.Lock()
	rolling := len(c.points)
	for _, v := range g.Volumes() {
		if err := p.rollBack(context.Background(), v.id, v.image); err != nil {
			t.Fatal(err)
		}
		if got := content(t, v); firstDifference(got, l.at(v.id, p.record.Ordinal)) >= 0 {
			t.Fatal("rolled back, the image is not what it was")
		}
	}
	c.armed.Store(false)
	g.applier.mu.Unlock()
	site.Kill()

	kept := 0
	for i, point := range c.points {
		judge := reopenPreserved
		if i >= rolling { // the checkpoint is past the ordinal, so the group itself does not open
			judge = rollBackAgain
		}
		has, err := judge(point, g, l, p.record.Ordinal)
		if err == nil && i >= told && !has {
			err = errors.New("the set is gone")
		}
		if err != nil {
			t.Fatalf("power loss before operation %s, with %d%% of the unsynced: %v", point.op, point.percent, err)
		}
		if has {
			kept++
		}
	}
	t.Logf("%d power losses, %d left the set", len(c.points), kept)
	if kept == 0 || kept == len(c.points) {
		t.Error("the test does not reach both sides of the set's beginning")
	}
}

// reopenPreserved opens a site after a power loss and judges its set.
func reopenPreserved(point crashPoint, _ *Group, l *cutLog, ordinal uint64) (has bool, err error) {
	site, pool, err := openSite(point.fs)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	defer site.Kill()
	g, err := site.Group("shop")
	if err != nil {
		return false, fmt.Errorf("%w; broken: %v", err, site.Broken())
	}
	return judgePreserved(g, l, ordinal)
}

// rollBackAgain judges the set of a group that is not opened.
func rollBackAgain(point crashPoint, g *Group, l *cutLog, ordinal uint64) (has bool, err error) {
	pool, err := blockdev.OpenPool(point.fs, "/pool", blockdev.WhoReplicator)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	bare := newGroup(&Site{cfg: Config{FS: point.fs, Pool: pool}}, g.dir)
	bare.id, bare.name = g.id, g.name
	for _, v := range g.Volumes() {
		if err := bare.members.open(core.Member{Index: v.index, VolumeID: v.id, SizeBytes: v.Size()}); err != nil {
			return false, err
		}
	}
	if err := bare.preserved.load(); err != nil {
		return false, err
	}
	return judgePreserved(bare, l, ordinal)
}

// judgePreserved looks at a group's set, rolls its images back to it, and looks again.
func judgePreserved(g *Group, l *cutLog, ordinal uint64) (has bool, err error) {
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	sets := g.preserved.of(ownerTest)
	if len(sets) == 0 {
		return false, nil
	}
	p := sets[0]
	if p.record.Ordinal != ordinal {
		return true, fmt.Errorf("preserved at ordinal %d, was %d", p.record.Ordinal, ordinal)
	}
	if err := checkPreserved(p, l); err != nil {
		return true, err
	}
	for _, image := range p.images {
		v := g.members.at(image.member.Index)
		if err := p.rollBack(context.Background(), v.id, v.image); err != nil {
			return true, err
		}
		got := make([]byte, image.Size())
		if _, err := v.image.ReadAt(got, 0); err != nil {
			return true, err
		}
		if !bytes.Equal(got, l.at(v.id, ordinal)) {
			return true, fmt.Errorf("volume %s, rolled back to ordinal %d, is not what it was", v.id, ordinal)
		}
	}
	return true, checkPreserved(p, l)
}

// A set that waits keeps apply from changing an image when there is no space for what it keeps; apply goes on when
// there is some. One that does not is lost, and apply goes on at once.
func TestPreservedOnFullDisk(t *testing.T) {
	for _, full := range []preserveFull{preserveOrWait, preserveOrLose} {
		t.Run(string(full), func(t *testing.T) {
			rng := seeded(t)
			var mu sync.Mutex
			noSpace := false
			mem := vfs.NewMem()
			site, pool, err := openSite(vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				if noSpace && op == vfs.OpWrite && bytes.HasSuffix([]byte(name), []byte(".kept")) {
					return syscall.ENOSPC
				}
				return nil
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			defer site.Kill()
			s := &testSite{t: t, name: "site-a", fs: mem, pool: pool, site: site}
			g := s.createGroup("shop", "", 2, 3<<20, nil)
			l := newCutLog(g)
			write := func() {
				for range 40 {
					if err := l.do(rng, g, 128<<10); err != nil {
						t.Fatal(err)
					}
				}
				mustFlush(t, g.Volumes()[0])
			}
			set := func(on bool) {
				mu.Lock()
				defer mu.Unlock()
				noSpace = on
			}
			write()
			p := mustPreserve(t, g, full)
			set(true)
			write()
			if full == preserveOrLose {
				eventually(t, "apply goes on", func() bool { return g.Status().AppliedOrdinal == g.journal.Head() })
				if err := p.check(); !errors.Is(err, errPreservedLost) || !errors.Is(err, syscall.ENOSPC) {
					t.Fatalf("a set that met a full disk: %v", err)
				}
				if _, err := mem.Stat(p.dir); err == nil {
					t.Fatal("a lost set takes space")
				}
				return
			}
			eventually(t, "apply is stuck", func() bool { return g.Status().ApplyError != "" })
			if err := checkPreserved(p, l); err != nil {
				t.Fatal(err)
			}
			set(false)
			eventually(t, "apply goes on", func() bool { return g.Status().AppliedOrdinal == g.journal.Head() })
			if err := checkPreserved(p, l); err != nil {
				t.Fatal(err)
			}
		})
	}
}
