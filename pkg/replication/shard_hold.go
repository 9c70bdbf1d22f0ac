package replication

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// answerHold keeps back the answers to writes and flushes of a shard while an epoch is being cut. Records go into the
// journal meanwhile, and become durable; only who waits for the answer waits longer. Without a cut it costs one atomic
// load for each answer.
//
// An answer is held if its call began while the hold was on and a record lies behind the boundary. A call from before
// the hold covers records up to the boundary alone, since the boundary is the head of the journal at that instant.
type answerHold struct {
	current atomic.Pointer[heldAnswers]
	times   holdTimes
}

// heldAnswers are those of one epoch.
type heldAnswers struct {
	boundary uint64
	began    time.Time

	mu sync.Mutex
	// released: the answers go. committed: the mark of the epoch is being appended, and they go then.
	released, committed bool
	waiting             []func()
}

// commit reports whether the answers have been held without interruption, and keeps them from expiring.
func (h *heldAnswers) commit() bool {
	if h == nil {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.committed = !h.released
	return h.committed
}

// expire releases what was held for too long, whatever else waits. It reports false if the mark is being appended.
func (a *answerHold) expire(h *heldAnswers) bool {
	return a.end(h, true)
}

// begin holds the answers for records behind an ordinal. The caller holds log.mu, boundary is the head, and the hold
// before is released afterwards, without the lock.
func (a *answerHold) begin(boundary uint64) *heldAnswers {
	h := &heldAnswers{boundary: boundary, began: time.Now()}
	a.current.Store(h)
	return h
}

// release lets the answers go. It may be repeated. Nil: nothing to do.
func (a *answerHold) release(h *heldAnswers) {
	if h != nil {
		a.end(h, false)
	}
}

// end releases, unless only what was not committed is to be.
func (a *answerHold) end(h *heldAnswers, uncommitted bool) bool {
	h.mu.Lock()
	if uncommitted && h.committed {
		h.mu.Unlock()
		return false
	}
	waiting, first := h.waiting, !h.released
	h.released, h.waiting = true, nil
	h.mu.Unlock()
	a.current.CompareAndSwap(h, nil)
	if first {
		a.times.observe(time.Since(h.began))
	}
	for _, answer := range waiting {
		answer()
	}
	return true
}

// through is called when a write or a flush asks for its answer; the answer goes through what it returns.
func (a *answerHold) through(j *journal.Journal, answer func(error)) func(error) {
	h := a.current.Load()
	if h == nil || j.Head() <= h.boundary {
		return answer
	}
	return func(err error) {
		h.mu.Lock()
		if h.released {
			h.mu.Unlock()
			answer(err)
			return
		}
		h.waiting = append(h.waiting, func() { answer(err) })
		h.mu.Unlock()
	}
}

// wait is through for a caller that waits itself: it returns when the answer may be given.
func (a *answerHold) wait(j *journal.Journal) (done func()) {
	h := a.current.Load()
	if h == nil || j.Head() <= h.boundary {
		return func() {}
	}
	return func() {
		free := make(chan struct{})
		h.mu.Lock()
		if h.released {
			h.mu.Unlock()
			return
		}
		h.waiting = append(h.waiting, func() { close(free) })
		h.mu.Unlock()
		<-free
	}
}

// holdBounds are the upper bounds of the histogram's buckets, in seconds.
var holdBounds = [...]float64{0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128}

// holdTimes is a histogram of how long answers were held.
type holdTimes struct {
	buckets [len(holdBounds) + 1]atomic.Uint64
	nanos   atomic.Int64
}

func (t *holdTimes) observe(d time.Duration) {
	i := 0
	for i < len(holdBounds) && d.Seconds() > holdBounds[i] {
		i++
	}
	t.buckets[i].Add(1)
	t.nanos.Add(int64(d))
}

// HoldTimes says how long a shard held answers for epochs since the process started.
type HoldTimes struct {
	// Count is of the epochs, Seconds the sum of their times.
	Count   uint64
	Seconds float64
	// Buckets count those of at most so many seconds.
	Buckets map[float64]uint64
}

func (t *holdTimes) read() HoldTimes {
	times := HoldTimes{Buckets: map[float64]uint64{}, Seconds: time.Duration(t.nanos.Load()).Seconds()}
	for i := range t.buckets {
		times.Count += t.buckets[i].Load()
		if i < len(holdBounds) {
			times.Buckets[holdBounds[i]] = times.Count
		}
	}
	return times
}
