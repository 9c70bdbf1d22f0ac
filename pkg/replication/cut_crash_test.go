package replication

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// crashPoint is a file system as a power loss before one operation could have left it.
type crashPoint struct {
	op      string
	fs      *vfs.MemFS
	percent int
	// told is the cut whose caller had its answer by then; flushed the ordinal that a flush had covered before the cut was
	// asked for.
	told *blockdev.SnapshotCut
}

// crashing is a file system that is crash-cloned before operations while armed.
type crashing struct {
	mem   *vfs.MemFS
	armed atomic.Bool
	told  atomic.Pointer[blockdev.SnapshotCut]

	mu     sync.Mutex
	rng    *rand.Rand
	points []crashPoint
	seen   int
	every  int
}

func (c *crashing) before(op vfs.Op, name string) error {
	switch op {
	case vfs.OpRead, vfs.OpSize, vfs.OpStat, vfs.OpReadDir, vfs.OpNextData, vfs.OpOpen, vfs.OpSpace:
		return nil // they leave nothing behind
	}
	if !c.armed.Load() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if c.seen%c.every != 0 {
		return nil
	}
	p := crashPoint{op: fmt.Sprintf("%d: %s %s", c.seen, op, name), told: c.told.Load()}
	p.percent = []int{0, 100, 20, 50, 80}[c.rng.IntN(5)]
	p.fs = c.mem.CrashClone(vfs.CrashConfig{UnsyncedPercent: p.percent, RNG: c.rng})
	c.points = append(c.points, p)
	return nil
}

// Power fails before an operation of a cut, and of the copying behind it, while a writer goes on. The next start has
// the cut that was told of, whole; or it has none, and takes a new one when it is asked again. Either way all snapshots
// are their volumes at the one ordinal, and what changed since the snapshots before has all that differs.
func TestCutSurvivesPowerLossAnywhere(t *testing.T) {
	for _, reflink := range []bool{false, true} {
		t.Run(fmt.Sprintf("reflink %v", reflink), func(t *testing.T) { testCutCrash(t, reflink) })
	}
}

func testCutCrash(t *testing.T, reflink bool) {
	rng := seeded(t)
	c := &crashing{mem: vfs.NewMem(), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), every: 3}
	if testing.Short() {
		c.every = 10
	}
	c.seen = rng.IntN(c.every) // other operations each time
	c.mem.SetReflink(reflink)
	fs := vfs.NewErrFS(c.mem, c.before)
	site, pool, err := openSite(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	s := &testSite{t: t, name: "site-a", fs: c.mem, pool: pool, site: site}
	const volumeBytes = 5 << 20
	g := s.createGroup("shop", "", 2, volumeBytes, nil)
	l := newCutLog(g)
	write := func(n int) {
		for range n {
			if err := l.do(rng, g, 128<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(40)
	base := createSnapshots(t, pool, "base", "v0", "v1")
	mustCut(t, g, base)
	if err := waitReady(pool, base); err != nil {
		t.Fatal(err)
	}
	write(40)
	targets := createSnapshots(t, pool, "next", "v0", "v1")
	mustFlush(t, g.Volumes()[0])
	flushed := g.journal.Durable()

	c.armed.Store(true)
	cut, err := g.Cut(context.Background(), targets)
	if err != nil {
		t.Fatal(err)
	}
	c.told.Store(&cut)
	for waiting := true; waiting; {
		write(5)
		mustFlush(t, g.Volumes()[0])
		waiting = len(g.Cuts()) > 0
	}
	if err := waitReady(pool, targets); err != nil {
		t.Fatal(err)
	}
	c.armed.Store(false)
	if err := checkCut(c.mem, pool, l, cut, targets); err != nil {
		t.Fatal(err)
	}
	site.Kill()

	cuts, errs := make([]blockdev.SnapshotCut, len(c.points)), make([]error, len(c.points))
	var wg sync.WaitGroup
	const atATime = 8 // they wait more than they compute
	slots := make(chan struct{}, atATime)
	for i, p := range c.points {
		slots <- struct{}{}
		wg.Go(func() {
			cuts[i], errs[i] = reopenCut(p, l, base, targets)
			<-slots
		})
	}
	wg.Wait()
	kept, anew := 0, 0
	for i, p := range c.points {
		again := cuts[i]
		if errs[i] != nil {
			t.Fatalf("power loss before operation %s, with %d%% of the unsynced: %v", p.op, p.percent, errs[i])
		}
		switch {
		case again.Ordinal < flushed:
			t.Fatalf("power loss before operation %s: the cut is at ordinal %d, a flush had covered %d before it", p.op,
				again.Ordinal, flushed)
		case p.told != nil && again != *p.told:
			t.Fatalf("power loss before operation %s: the cut is %+v, its caller was told %+v", p.op, again, *p.told)
		case again == cut:
			kept++
		default:
			anew++
		}
	}
	t.Logf("%d power losses: %d left the cut, after %d it was taken anew", len(c.points), kept, anew)
	if kept == 0 || anew == 0 {
		t.Error("the test does not reach both sides of the commit")
	}
}

// reopenCut starts a site after a power loss, asks for the cut again, and judges it.
func reopenCut(p crashPoint, l *cutLog, base, targets []CutTarget) (cut blockdev.SnapshotCut, err error) {
	site, pool, err := openSite(p.fs)
	if err != nil {
		return cut, err
	}
	defer pool.Close()
	defer site.Kill()
	g, err := site.Group("shop")
	if err != nil {
		return cut, fmt.Errorf("%w; broken: %v", err, site.Broken())
	}
	if cut, err = g.Cut(context.Background(), targets); err != nil {
		return cut, err
	}
	if err := checkCut(p.fs, pool, l, cut, targets); err != nil {
		return cut, err
	}
	for i := range targets {
		if _, _, err := checkChanges(p.fs, pool, base[i].SnapshotID, targets[i].SnapshotID); err != nil {
			return cut, err
		}
	}
	return cut, nil
}
