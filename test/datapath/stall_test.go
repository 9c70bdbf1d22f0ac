package datapath

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link/linktest"
)

const (
	beforeCut   = 20 * time.Second
	cutDuration = 60 * time.Second
)

// G2: the link is cut under load for longer than the journal lasts. The load goes on, the change map takes over, and
// the copies are identical after the link is back.
//
// The ratio of throughputs is printed, not asserted: the machine is shared. What is asserted is that no five seconds of
// the cut went by without a completed flush, which is what any wait for the peer would cause.
func TestLinkCutUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	const sizeBytes = 256 << 20
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	p := newPair(t, ctx)
	proxy, err := linktest.NewProxy("127.0.0.1:0", p.B.Config.Listen)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	const journalBytes = 64 << 20
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "cut",
		Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), RemoteAddress: new(proxy.Addr()),
			JournalSizeBytes: new(int64(journalBytes))},
	})
	v, dev := blockVolume(t, ctx, p.A, "cut", "cut", sizeBytes, "flush")

	load := startLoad(t, dev, sizeBytes)
	defer load.end(t)
	caughtUpSoon(t, ctx, p, "cut")
	before := load.measure(beforeCut)
	proxy.Cut()
	t.Log("link cut")
	var during float64
	const windows = 12
	for range windows {
		rate := load.measure(cutDuration / windows)
		if rate == 0 {
			t.Errorf("no flush completed in %v while the link was cut: the load waits for the peer", cutDuration/windows)
		}
		during += rate / windows
	}
	st, err := p.A.Group(ctx, "cut")
	if err != nil {
		t.Fatal(err)
	}
	if st.ChangeMapBytes == 0 {
		t.Errorf("the change map is empty after %v and %.0f writes/s: the journal of %d bytes was not outlasted",
			cutDuration, during, journalBytes)
	}
	t.Logf("at the end of the cut: lag %d ordinals, %d bytes, %.1f s; change map %d bytes, journal %d of %d bytes",
		st.GetLagOrdinals(), st.GetLagBytes(), st.GetLagSeconds(), st.ChangeMapBytes, st.JournalUsedBytes,
		st.JournalSizeBytes)
	if sb, err := p.B.Group(ctx, "cut"); err != nil || !sb.Promotable {
		t.Errorf("the secondary cannot be promoted during a cut: %v, %v", sb, err)
	}
	proxy.Heal()
	after := load.measure(beforeCut)
	t.Logf("flushed 4 KiB writes/s: before the cut %.0f, during %.0f (ratio %.2f), after %.0f", before, during,
		during/before, after)
	load.end(t)
	start := time.Now()
	caughtUp(t, ctx, p, "cut")
	t.Logf("caught up %v after the load ended", time.Since(start).Round(time.Millisecond))
	copyA := copyDevice(t, dev)
	sameDevices(t, copyA, relocate(t, ctx, p, "cut", v))
}

// caughtUpSoon waits until the first sync is over; under load the peer never has the very last write.
func caughtUpSoon(t *testing.T, ctx context.Context, p *testsite.Pair, group string) {
	t.Helper()
	if _, err := p.A.WaitGroup(ctx, group, "streaming", testsite.Streaming); err != nil {
		t.Fatal(err)
	}
}

// load is a number of writers, each of one flushed write after another, at random places of a device.
type load struct {
	flushed atomic.Int64
	failed  atomic.Pointer[error]
	stop    chan struct{}
	once    sync.Once
	wg      sync.WaitGroup
}

const loadWriters = 4

func startLoad(t *testing.T, dev string, sizeBytes int64) *load {
	t.Helper()
	l := &load{stop: make(chan struct{})}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for i := range loadWriters {
		f, err := os.OpenFile(dev, os.O_RDWR|syscall.O_DIRECT, 0)
		if err != nil {
			t.Fatal(err)
		}
		l.wg.Add(1)
		go func() {
			defer l.wg.Done()
			defer f.Close()
			if err := l.write(f, sizeBytes, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
				l.failed.Store(&err)
			}
		}()
	}
	return l
}

func (l *load) write(f *os.File, sizeBytes int64, rng *rand.Rand) error {
	const blockBytes = 4096
	buf := alignedBlock(blockBytes)
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		for i := range buf {
			buf[i] = byte(rng.Uint32())
		}
		off := rng.Int64N(sizeBytes/blockBytes) * blockBytes
		if _, err := f.WriteAt(buf, off); err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
		l.flushed.Add(1)
	}
}

// alignedBlock returns memory that O_DIRECT takes.
func alignedBlock(n int) []byte {
	buf := make([]byte, 2*n)
	skip := n - int(uintptr(unsafe.Pointer(&buf[0]))%uintptr(n))
	return buf[skip : skip+n : skip+n]
}

// measure returns flushed writes per second over a time.
func (l *load) measure(d time.Duration) float64 {
	start, n := time.Now(), l.flushed.Load()
	time.Sleep(d)
	return float64(l.flushed.Load()-n) / time.Since(start).Seconds()
}

// goesOn waits for the next flushed write, for a time at most, and reports whether there was one.
func (l *load) goesOn(patience time.Duration) bool {
	for began, n := time.Now(), l.flushed.Load(); l.flushed.Load() == n; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > patience {
			return false
		}
	}
	return true
}

// abandon lets writers go that hang in the kernel; they end when their device is taken away.
func (l *load) abandon() { l.once.Do(func() { close(l.stop) }) }

func (l *load) end(t *testing.T) {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
	if err := l.failed.Load(); err != nil {
		t.Errorf("the load failed: %v", *err)
	}
}
