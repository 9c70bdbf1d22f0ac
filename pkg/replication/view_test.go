package replication

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func mustView(t *testing.T, g *Group, spec ViewSpec) *View {
	t.Helper()
	v, err := g.CreateView(context.Background(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func viewContent(t *testing.T, m *ViewVolume) []byte {
	t.Helper()
	p := make([]byte, m.Size())
	if _, err := m.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// A secondary is read and written through a view while its primary writes: the view keeps its instant, the copy follows
// its primary, both sites end with the same content, and no byte is copied by a sync.
func TestViewOfSecondary(t *testing.T) {
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "site-a", nil), newTestSite(t, net, "site-b", nil)
	g := a.createGroup("shop", "site-b", 2, 2<<20, nil)
	copied := caughtUp(t, g, b)
	rng := seeded(t)
	l := newCutLog(g)
	for range 60 {
		if err := l.do(rng, g, 128<<10); err != nil {
			t.Fatal(err)
		}
	}
	mustFlush(t, g.Volumes()[0])
	caughtUp(t, g, b)
	session := copied.Status().Timeline
	view := mustView(t, copied, ViewSpec{Name: "look", Writable: true, LimitBytes: 1 << 30})

	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, device := range view.Volumes() {
		want := l.at(device.VolumeID, view.rec.Ordinal)
		wg.Go(func() {
			p := make([]byte, device.Size())
			for range 20 {
				if _, err := device.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
					t.Errorf("volume %s in the view: %v, first difference at %d", device.VolumeID, err, firstDifference(p, want))
					return
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for writing := true; writing; {
		if err := l.do(rng, g, 128<<10); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			writing = false
		default:
		}
	}
	for _, device := range view.Volumes() {
		if _, err := device.WriteAt(block(0xee, int(device.Size())), 0); err != nil {
			t.Fatal(err)
		}
	}
	mustFlush(t, g.Volumes()[0])
	caughtUp(t, g, b)
	sameContent(t, g, copied)
	for _, device := range view.Volumes() {
		if !bytes.Equal(viewContent(t, device), block(0xee, int(device.Size()))) {
			t.Errorf("volume %s of the view lost its writes", device.VolumeID)
		}
	}
	if err := copied.DeleteView("look"); err != nil {
		t.Fatal(err)
	}
	if names, err := b.fs.ReadDir("/pool/views"); err != nil || len(names) > 0 {
		t.Errorf("a deleted view leaves %q (%v)", names, err)
	}
	st := g.Status()
	if st.State != core.StateStreaming || orZero(st.SyncTotalBytes) != 0 || copied.Status().Timeline != session {
		t.Errorf("after the view: %v", &st)
	}
}

// Where a view reaches its limit, writes to it fail, and apply goes on without it.
func TestViewLimit(t *testing.T) {
	a := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
	g := a.createGroup("shop", "", 1, 4<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block(1, 1<<20))
	for off := int64(1 << 20); off < 4<<20; off += 1 << 20 {
		mustWrite(t, v, off, block(1, 1<<20))
	}
	spec := ViewSpec{Name: "small", Writable: true, LimitBytes: minViewBytes}
	view := mustView(t, g, spec)
	device := view.Volumes()[0]
	if _, err := device.WriteAt(block(2, minViewBytes), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := device.WriteAt(block(2, 1), 2<<20); !errors.Is(err, ErrViewFull) {
		t.Fatalf("a write past the limit: %v", err)
	}
	if err := device.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := device.WriteAt(block(3, 1), 2<<20); err != nil {
		t.Fatalf("after a discard gave space back: %v", err)
	}
	for off := int64(0); off < 4<<20; off += 1 << 20 {
		mustWrite(t, v, off, block(4, 1<<20))
	}
	if err := g.log.commit(); err != nil {
		t.Fatal(err)
	}
	if err := g.applier.applyAll(context.Background()); err != nil {
		t.Fatalf("apply waits for a view: %v", err)
	}
	if _, err := device.ReadAt(make([]byte, 512), 0); !errors.Is(err, ErrViewFull) {
		t.Fatalf("a view that could not keep up: %v", err)
	}
	a.restart()
	views := a.group("shop").Views()
	if len(views) != 1 || views[0].Failed == nil || views[0].UsedBytes != 0 {
		t.Fatalf("after a restart: %+v", views)
	}
	if err := a.site.DeleteGroup("shop", true); !errors.Is(err, ErrInUse) {
		t.Fatalf("a group with a view was deleted: %v", err)
	}
	if err := a.group("shop").DeleteView("small"); err != nil {
		t.Fatal(err)
	}
	if err := a.site.DeleteGroup("shop", true); err != nil {
		t.Fatal(err)
	}
}

// A full disk of the pool fails views, and gives their space to the images.
func TestViewOnFullPool(t *testing.T) {
	var full bool
	var mu sync.Mutex
	mem := vfs.NewMem()
	fs := vfs.NewErrFS(mem, func(op vfs.Op, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if full && op == vfs.OpWrite && bytes.Contains([]byte(name), []byte("/views/")) {
			return syscall.ENOSPC
		}
		return nil
	})
	site, pool, err := openSite(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer site.Kill()
	s := &testSite{t: t, name: "site-a", fs: mem, pool: pool, site: site}
	g := s.createGroup("shop", "", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block(1, 1<<20))
	view := mustView(t, g, ViewSpec{Name: "look", LimitBytes: 1 << 30})
	mu.Lock()
	full = true
	mu.Unlock()
	mustWrite(t, v, 0, block(2, 1<<20))
	mustFlush(t, v)
	if err := g.applier.applyAll(context.Background()); err != nil {
		t.Fatalf("apply waits for a view: %v", err)
	}
	if view.Status().Failed == nil {
		t.Fatal("the view does not know that it failed")
	}
	if _, err := mem.Stat(pool.ViewDir(view.rec.ID) + "/0.extents"); err == nil {
		t.Fatal("a failed view would be opened again after a restart")
	}
}

// A volume does not leave its group at the primary while a view shows it; a view at the secondary does not keep it.
func TestViewOfVolumeThatLeaves(t *testing.T) {
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "site-a", nil), newTestSite(t, net, "site-b", nil)
	g := a.createGroup("shop", "site-b", 2, 1<<20, nil)
	copied := caughtUp(t, g, b)
	mustView(t, g, ViewSpec{Name: "here", LimitBytes: 1 << 30})
	there := mustView(t, copied, ViewSpec{Name: "there", LimitBytes: 1 << 30})
	if err := g.RemoveVolume("v0", nil); !errors.Is(err, ErrInUse) {
		t.Fatalf("a volume that is shown left: %v", err)
	}
	if err := g.DeleteView("here"); err != nil {
		t.Fatal(err)
	}
	if err := g.RemoveVolume("v0", nil); err != nil {
		t.Fatal(err)
	}
	mustFlush(t, g.Volumes()[0])
	eventually(t, "the view has failed", func() bool { return errors.Is(there.Status().Failed, errViewMember) })
	if _, err := there.Volumes()[1].ReadAt(make([]byte, 512), 0); !errors.Is(err, errViewMember) {
		t.Fatalf("a view without one of its volumes: %v", err)
	}
}

// A view stays what it is over a promotion, and the points of a group are bounded.
func TestViewRefusals(t *testing.T) {
	net := link.NewNetwork(nil)
	a, b := newTestSite(t, net, "site-a", nil), newTestSite(t, net, "site-b", nil)
	g := a.createGroup("shop", "site-b", 1, 1<<20, nil)
	mustWrite(t, volumeOf(t, g, "v0"), 0, block(1, 4096))
	mustFlush(t, volumeOf(t, g, "v0"))
	copied := caughtUp(t, g, b)
	view := mustView(t, copied, ViewSpec{Name: "before", LimitBytes: 1 << 30})
	ctx := context.Background()
	for name, c := range map[string]struct {
		spec ViewSpec
		want error
	}{
		"ahead":     {ViewSpec{Point: Point{Ordinal: 1 << 40}}, core.ErrPrecondition},
		"behind":    {ViewSpec{Point: Point{At: a.site.cfg.Now().Add(-1e12)}}, core.ErrPrecondition},
		"twice":     {ViewSpec{Name: "before"}, ErrExists},
		"bad name":  {ViewSpec{Name: "../before"}, ErrInvalid},
		"too small": {ViewSpec{LimitBytes: 1}, ErrInvalid},
	} {
		if _, err := copied.CreateView(ctx, c.spec); !errors.Is(err, c.want) {
			t.Errorf("%s: %v instead of %v", name, err, c.want)
		}
	}
	a.kill()
	if _, err := copied.Promote(true); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, volumeOf(t, copied, "v0"), 0, block(2, 4096))
	mustFlush(t, volumeOf(t, copied, "v0"))
	if err := copied.applier.apply(ctx); err != nil {
		t.Fatal(err)
	}
	if got := viewContent(t, view.Volumes()[0]); !bytes.Equal(got[:4096], block(1, 4096)) {
		t.Errorf("the view shows %#x after the promotion", got[0])
	}
	for i := len(copied.Views()); i < MaxViews; i++ {
		mustView(t, copied, ViewSpec{LimitBytes: 1 << 30})
	}
	if _, err := copied.CreateView(ctx, ViewSpec{}); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("one view too many: %v", err)
	}
	if err := copied.DeleteView("unknown"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a view that is not there: %v", err)
	}
}
