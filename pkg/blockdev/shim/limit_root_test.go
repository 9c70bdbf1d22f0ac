package shim_test

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

const limitedWorkers = 4

// limitedLoad writes blocks and flushes each, in areas that no request spans, until total blocks are there. Each is
// counted when its flush is back, so when at least one request of its size has been answered.
func limitedLoad(t *testing.T, loop *blockdev.LoopDevice, total int64, block int) (done int64) {
	t.Helper()
	var left, completed atomic.Int64
	left.Store(total)
	var wg sync.WaitGroup
	for w := range int64(limitedWorkers) {
		wg.Go(func() {
			data, got := make([]byte, block), make([]byte, block)
			for left.Add(-1) >= 0 {
				n := left.Load()
				binary.BigEndian.PutUint64(data, uint64(n)<<8|uint64(w))
				off := w * 4 * mib
				if _, err := loop.WriteAt(data, off); err != nil {
					t.Error(err)
					return
				}
				if err := loop.Flush(); err != nil {
					t.Error(err)
					return
				}
				completed.Add(1)
				if _, err := loop.ReadAt(got, off); err != nil || string(got) != string(data) {
					t.Errorf("read back: %v, the same: %t", err, string(got) == string(data))
					return
				}
			}
		})
	}
	wg.Wait()
	return completed.Load()
}

// TestLimits: over a loop device no more is done than the limits have granted since they were set, whichever way
// requests come. Limits that change under load, and a server that is replaced while replies wait, are no I/O error.
func TestLimits(t *testing.T) {
	modes(t, func(t *testing.T, mode shim.Mode) {
		const size = limitedWorkers * 4 * mib
		dev := newMemDevice(size)
		current := mountVar(t, mode, dev)
		srv := *current
		_, loop := attachLoop(t, srv.Path(), size, mode)
		for _, limits := range []shim.Limits{
			{OperationsPerSecond: 100}, {BytesPerSecond: 4 * mib}, {BytesPerSecond: 8 * mib, OperationsPerSecond: 50},
		} {
			block, total := 4096, int64(50)
			if limits.BytesPerSecond > 0 {
				block = 64 << 10
			}
			begin := time.Now()
			srv.SetLimits(limits)
			done := limitedLoad(t, loop, total, block)
			srv.SetLimits(shim.Limits{})
			// A tenth of a second is saved up. The time is longer than what the limits knew of, so more is allowed, not less.
			granted := func(rate int64) int64 { return int64(float64(rate)*(time.Since(begin).Seconds()+0.1)) + 1 }
			if rate := limits.OperationsPerSecond; rate > 0 && done > granted(rate) {
				t.Errorf("%+v: %d operations, %d were granted", limits, done, granted(rate))
			}
			if rate := limits.BytesPerSecond; rate > 0 && done*int64(block) > granted(rate) {
				t.Errorf("%+v: %d bytes, %d were granted", limits, done*int64(block), granted(rate))
			}
			if done != total {
				t.Errorf("%+v: %d of %d were written", limits, done, total)
			}
		}

		stop := make(chan struct{})
		var changes sync.WaitGroup
		r := newRand(t)
		var swap sync.Mutex
		changes.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
				}
				swap.Lock()
				(*current).SetLimits([]shim.Limits{{}, {OperationsPerSecond: 10}, {BytesPerSecond: mib},
					{BytesPerSecond: 64 * mib, OperationsPerSecond: 1000}}[r.IntN(4)])
				if i%4 == 3 {
					dup := dupFile(t, (*current).FD())
					st := (*current).State()
					if err := (*current).Close(); err != nil {
						t.Error(err)
					}
					next, err := shim.Adopt(dup, st, shim.Config{VolumeID: st.VolumeID, Limits: shim.Limits{OperationsPerSecond: 10}},
						dev)
					if err != nil {
						t.Error(err)
						swap.Unlock()
						return
					}
					*current = next
				}
				swap.Unlock()
			}
		})
		if done := limitedLoad(t, loop, 400, 16<<10); done != 400 {
			t.Errorf("%d of 400 were written", done)
		}
		close(stop)
		changes.Wait()
		(*current).SetLimits(shim.Limits{})
	})
}
