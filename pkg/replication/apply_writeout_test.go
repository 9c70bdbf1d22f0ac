package replication

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// TestApplyWritesOut: a pass never leaves more to the flush of an image than writeOut allows, and does not count as
// done when some of it may not have reached the disk.
func TestApplyWritesOut(t *testing.T) {
	const writes = 3*hurriedPieces + 5
	var waiting, most, outs atomic.Int64
	var lost atomic.Bool
	s := &testSite{t: t, name: "site-a", fs: vfs.NewMem(), net: link.NewNetwork(nil)}
	s.fails = func(op vfs.Op, name string) error {
		switch {
		case !strings.HasSuffix(name, "/v0/image"):
		case op == vfs.OpWrite:
			most.Store(max(most.Load(), waiting.Add(1)))
		case op == vfs.OpDatasync:
			waiting.Store(0)
		case op == vfs.OpWriteOut:
			outs.Add(1)
			if lost.Load() {
				return errors.New("lost")
			}
			waiting.Store(0)
		}
		return nil
	}
	s.open()
	defer s.kill()
	g := s.createGroup("shop", "", 1, 64<<20, nil)
	v := volumeOf(t, g, "v0")
	write := func() {
		t.Helper()
		g.applier.mu.Lock() // one pass takes them all
		defer g.applier.mu.Unlock()
		for i := range int64(writes) {
			mustWrite(t, v, i*5*4096, block('w', 4096))
		}
		mustFlush(t, v)
	}
	write()
	if err := g.applier.applyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if most.Load() != hurriedPieces || outs.Load() != writes/hurriedPieces {
		t.Errorf("%d writes waited at most, and %d times they were written out", most.Load(), outs.Load())
	}

	lost.Store(true)
	before := g.checkpoint.read().Applied
	write()
	if err := g.applier.applyAll(t.Context()); err == nil {
		t.Error("a pass that lost a write has no error")
	}
	lost.Store(false) // the kernel reports it once
	if err := g.applier.applyAll(t.Context()); err == nil {
		t.Error("the next pass takes what was lost for written")
	}
	if at := g.checkpoint.read().Applied; at != before {
		t.Errorf("applied up to %v, was %v", at, before)
	}
}

// TestPassHurries: a pass that rests goes on without rests, and with more writes at a time, once a caller waits for it.
func TestPassHurries(t *testing.T) {
	const writes = 2000
	var outs atomic.Int64
	var g *Group
	var passing, waiting atomic.Bool
	s := &testSite{t: t, name: "site-a", fs: vfs.NewMem(), net: link.NewNetwork(nil)}
	s.conf = func(c *Config) { c.ApplyInterval = time.Hour }
	s.fails = func(op vfs.Op, name string) error {
		if op == vfs.OpWriteOut && passing.Load() {
			if outs.Add(1) == 3 {
				waiting.Store(true)
				eventually(t, "another caller waits", func() bool { return g.applier.mu.waiting.Load() > 0 })
			}
		}
		return nil
	}
	s.open()
	defer s.kill()
	// With room in the journal nothing asks the loop for a pass.
	g = s.createGroup("shop", "", 1, 64<<20, func(spec *GroupSpec) { spec.JournalSizeBytes = 64 << 20 })
	v := volumeOf(t, g, "v0")
	for i := range int64(writes) {
		mustWrite(t, v, i*2*4096, block('w', 4096))
	}
	mustFlush(t, v)
	passing.Store(true)
	ended := make(chan error)
	go func() { ended <- g.applier.applyDue(t.Context(), time.Hour) }()
	eventually(t, "the pass writes", waiting.Load)
	if err := g.applier.applyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if want := int64(3 + (writes-3*pacedPieces)/hurriedPieces); outs.Load() != want {
		t.Errorf("%d times written out, want %d", outs.Load(), want)
	}
}

func TestPiecesOfAPass(t *testing.T) {
	for _, test := range []struct {
		over  time.Duration
		bytes int64
		want  int
	}{
		{time.Second, 0, pacedPieces},
		{time.Second, 1000 * pieceBytes, pacedPieces},
		{time.Second, 16_000 * pieceBytes, 16},
		{time.Second, 1 << 40, hurriedPieces},
		{0, 1000 * pieceBytes, hurriedPieces},
		{time.Microsecond, 1000 * pieceBytes, hurriedPieces},
	} {
		p := passPace{over: test.over, bytes: test.bytes}
		if got := p.pieces(); got != test.want {
			t.Errorf("%d bytes in %v: %d at a time, want %d", test.bytes, test.over, got, test.want)
		}
	}
}

func TestPassPace(t *testing.T) {
	began := time.Unix(1000, 0)
	hurried := false
	p := passPace{over: time.Second, hurried: func() bool { return hurried }, began: began, bytes: 1000}
	for _, test := range []struct {
		done    int64
		elapsed time.Duration
		want    time.Duration
	}{
		{0, 0, 0},
		{100, 0, 100 * time.Millisecond},
		{500, 400 * time.Millisecond, 100 * time.Millisecond},
		{500, 700 * time.Millisecond, -200 * time.Millisecond},
		{2000, 400 * time.Millisecond, 600 * time.Millisecond}, // more came meanwhile
	} {
		p.done = test.done
		if got := p.ahead(began.Add(test.elapsed)); got != test.want {
			t.Errorf("%d bytes in %v: %v ahead, want %v", test.done, test.elapsed, got, test.want)
		}
	}
	hurried = true
	if got := p.ahead(began); got > 0 {
		t.Errorf("%v ahead in a hurry", got)
	}
	if got := (&passPace{bytes: 1000, done: 500}).ahead(began); got > 0 {
		t.Errorf("%v ahead without time for it", got)
	}
}
