package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// extentGate is a dialer whose streams wait at the first batch with an extent until it is opened, and at the first
// batch with a write after that until the end. Then they break, and no peer is reached any more.
type extentGate struct {
	link.Dialer
	mu      sync.Mutex
	armed   bool
	broken  bool
	reached chan struct{} // closed at the first extent
	open    chan struct{}
	end     chan struct{}
}

func (d *extentGate) Dial(ctx context.Context, peer, address string) (link.Stream, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken {
		return nil, errors.New("broken")
	}
	stream, err := d.Dialer.Dial(ctx, peer, address)
	if err != nil {
		return nil, err
	}
	return &gatedStream{Stream: stream, gate: d}, nil
}

type gatedStream struct {
	link.Stream
	gate    *extentGate
	decoder link.Decoder
	opened  bool
}

func (s *gatedStream) Send(m *linkpb.ToSecondary) error {
	batch := m.GetBatch()
	s.gate.mu.Lock()
	armed := s.gate.armed
	s.gate.mu.Unlock()
	if batch == nil || !armed {
		return s.Stream.Send(m)
	}
	records, err := s.decoder.Decode(batch)
	if err != nil {
		return err
	}
	for i := range records {
		switch kind := records[i].Header.Kind; {
		case kind == journal.KindExtent && !s.opened:
			close(s.gate.reached)
			<-s.gate.open
			s.opened = true
		case kind == journal.KindWrite && s.opened:
			<-s.gate.end
			s.gate.mu.Lock()
			s.gate.broken = true
			s.gate.mu.Unlock()
			return errors.New("broken")
		}
	}
	return s.Stream.Send(m)
}

// markExtent marks one extent of a volume for a sync, as folding a record does.
func markExtent(t *testing.T, v *Volume, off int64) {
	t.Helper()
	g := v.group
	g.changes.mark(v.index, off, changemap.ExtentBytes)
	if err := g.shipper.saveChangeMap(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.step(core.Folded{}, nil); err != nil {
		t.Fatal(err)
	}
	g.shipper.work.send()
}

// The disk of a primary is put back to a moment in the middle of a sync. After that moment the secondary was sent an
// extent with a newer write, and no ordinal of it. The write is lost at the primary, so it must not stay in the copy.
func TestExtentsOfLostWritesAreCopiedAnew(t *testing.T) {
	const size, second = 1 << 20, 512 << 10
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	gate := &extentGate{
		Dialer: net.Dialer("a"), reached: make(chan struct{}), open: make(chan struct{}), end: make(chan struct{}),
	}
	b := newTestSite(t, net, "b", nil)
	a := newTestSite(t, net, "a", func(c *Config) {
		c.Dialer, c.CommitInterval, c.ApplyInterval = gate, time.Hour, time.Hour
	})
	g := a.createGroup("shop", "b", 1, size, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block(1, 4096))
	mustWrite(t, v, second, block(1, 4096))
	mustFlush(t, v)
	caughtUp(t, g, b)

	gate.mu.Lock()
	gate.armed = true
	gate.mu.Unlock()
	markExtent(t, v, 0)
	<-gate.reached
	before := a.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: 100, RNG: seeded(t)})
	mustWrite(t, v, second, block(2, 4096)) // durable only when the extent is sent
	g.changes.mark(v.index, second, changemap.ExtentBytes)
	close(gate.open)
	eventually(t, "the secondary has the extent", func() bool {
		return content(t, volumeOf(t, b.group("shop"), "v0"))[second] == 2
	})

	close(gate.end)
	a.kill()
	a.fs, a.conf = before, nil
	a.open()
	g = a.group("shop")
	eventually(t, "the sites agree", func() bool {
		p, s := g.Status(), b.group("shop").Status()
		return p.State == "diverged" || p.State == "streaming" && s.Promotable && s.DurableOrdinal == p.HeadOrdinal &&
			orZero(p.AcknowledgedOrdinal) == p.HeadOrdinal && p.ChangeMapBytes == 0
	})
	if st := g.Status(); st.State == "diverged" {
		t.Fatalf("a copy that cannot be promoted is no reason for a divergence: %v", st.StateReason)
	}
	if got := content(t, volumeOf(t, g, "v0"))[second]; got != 1 {
		t.Fatalf("the primary has %d, the write before the lost one was 1", got)
	}
	sameContent(t, g, b.group("shop"))
}
