package replication

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// viewStory is what was done to a view before a power loss.
type viewStory struct {
	ordinal uint64
	// flushed and written are the content of v0 as the view's last flush left it, and as its last write did.
	flushed, written []byte
	opened, deleted  bool
}

// Power fails before an operation of opening, writing and deleting a view, while apply goes on with what a writer
// writes. The next start has a view that was opened, with what its flushes covered, and none that was deleted.
func TestViewSurvivesPowerLossAnywhere(t *testing.T) {
	rng := seeded(t)
	c := &crashing{mem: vfs.NewMem(), rng: rand.New(rand.NewPCG(rng.Uint64(), 0)), every: 2}
	if testing.Short() {
		c.every = 8
	}
	c.seen = rng.IntN(c.every)
	var mu sync.Mutex
	var now viewStory
	var stories []viewStory
	fs := vfs.NewErrFS(c.mem, func(op vfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		before := len(c.points)
		err := c.before(op, name)
		if len(c.points) > before {
			stories = append(stories, now)
		}
		return err
	})
	tell := func(change func(s *viewStory)) { mu.Lock(); change(&now); mu.Unlock() }
	site, pool, err := openSite(fs)
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
	}
	write(40)
	c.armed.Store(true)
	spec := ViewSpec{Name: "look", Writable: true, LimitBytes: 1 << 30}
	view, err := g.CreateView(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	content := l.at("v0", view.rec.Ordinal)
	tell(func(s *viewStory) {
		s.ordinal, s.opened, s.flushed, s.written = view.rec.Ordinal, true, content, content
	})
	device := view.Volumes()[0]
	for range 8 {
		write(6)
		off := rng.Int64N(device.Size()/512) * 512
		n := min(device.Size()-off, (1+rng.Int64N(300))*512)
		next := bytes.Clone(content)
		copy(next[off:], block(byte(rng.IntN(256)), int(n)))
		tell(func(s *viewStory) { s.written = next })
		if _, err := device.WriteAt(next[off:][:n], off); err != nil {
			t.Fatal(err)
		}
		content = next
		if err := device.Flush(); err != nil {
			t.Fatal(err)
		}
		tell(func(s *viewStory) { s.flushed = next })
	}
	mustFlush(t, g.Volumes()[0])
	if err := g.applier.apply(context.Background()); err != nil {
		t.Fatal(err)
	}
	tell(func(s *viewStory) { s.deleted = true })
	if err := g.DeleteView("look"); err != nil {
		t.Fatal(err)
	}
	c.armed.Store(false)
	site.Kill()
	kept, gone := 0, 0
	for i, p := range c.points {
		found, err := reopenView(p, l, stories[i])
		if err != nil {
			t.Fatalf("power loss before operation %s, with %d%% of the unsynced: %v", p.op, p.percent, err)
		}
		if found {
			kept++
		} else {
			gone++
		}
	}
	t.Logf("%d power losses: %d left the view, %d did not", len(c.points), kept, gone)
	if kept == 0 || gone == 0 {
		t.Error("the test does not reach both sides")
	}
}

// reopenView starts a site after a power loss and judges the view that it has.
func reopenView(p crashPoint, l *cutLog, s viewStory) (found bool, err error) {
	site, pool, err := openSite(p.fs)
	if err != nil {
		return false, err
	}
	defer pool.Close()
	defer site.Kill()
	g, err := site.Group("shop")
	if err != nil {
		return false, fmt.Errorf("%w; broken: %v", err, site.Broken())
	}
	view, err := g.View("look")
	switch {
	case errors.Is(err, ErrNotFound) && s.opened && !s.deleted:
		return false, errors.New("the view is gone")
	case errors.Is(err, ErrNotFound):
		return false, nil
	case err != nil:
		return true, err
	}
	if failed := view.Status().Failed; failed != nil {
		if s.deleted {
			return true, g.DeleteView("look") // the deletion goes on when it is repeated
		}
		return true, failed
	}
	for range 2 { // also when everything is applied
		for _, device := range view.Volumes() {
			got := make([]byte, device.Size())
			if _, err := device.ReadAt(got, 0); err != nil {
				return true, err
			}
			if err := s.judge(l, view.rec, device, got); err != nil {
				return true, err
			}
		}
		if err := g.applier.apply(context.Background()); err != nil {
			return true, err
		}
	}
	return true, nil
}

func (s *viewStory) judge(l *cutLog, rec blockdev.ViewRecord, device *ViewVolume, got []byte) error {
	want, other := l.at(device.VolumeID, rec.Ordinal), []byte(nil)
	if device.VolumeID == "v0" && s.opened {
		want, other = s.flushed, s.written // each sector of the last write is there or not
	}
	const sector = 512
	for off := 0; off < len(want); off += sector {
		have := got[off:][:sector]
		if !bytes.Equal(have, want[off:][:sector]) && (other == nil || !bytes.Equal(have, other[off:][:sector])) {
			return fmt.Errorf("the view of ordinal %d differs in volume %s at offset %d: %#x instead of %#x", rec.Ordinal,
				device.VolumeID, off, have[0], want[off])
		}
	}
	return nil
}
