package shim

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/tokenbucket"
)

// Limits bound a volume's reads and writes together. 0 is no bound. Flushes, discards and zeroing are not counted:
// others may wait for a flush, and the rest moves no data.
type Limits struct {
	BytesPerSecond int64
	// OperationsPerSecond counts requests as they come here, after the page cache has merged or split them.
	OperationsPerSecond int64
}

// limitBurst is how much time's worth of I/O an idle volume saves up.
const limitBurst = 100 * time.Millisecond

// heldRequest is a request that waits for its turn. A write is done, and its reply waits. A read is still to be done,
// since its reply would take the memory of what it has read: as much for each request in flight as the largest one is
// long.
type heldRequest struct {
	header inHeader
	bytes  int64
	n      int                              // of body
	body   [max(replySize, readInSize)]byte // a write's reply, a read's request
}

const replySize = outHeaderSize + writeOutSize

// turns decides when requests have their turn: in the order in which they came, each when it and all before it are
// paid for. It has no clock. Only the first in line is charged, so that what a change of limits finds waiting is
// subject to the new ones.
type turns struct {
	bytes, operations tokenbucket.Bucket
	waiting           []heldRequest
	charged           bool // the first of waiting
}

func (t *turns) set(now int64, l Limits) {
	t.bytes.SetRate(now, l.BytesPerSecond, limitBurst)
	t.operations.SetRate(now, l.OperationsPerSecond, limitBurst)
}

func (t *turns) charge(now, bytes int64) time.Duration {
	return max(t.bytes.Take(now, bytes), t.operations.Take(now, 1))
}

// take reports whether a request's turn is now; else it is in line, where put has to follow.
func (t *turns) take(now, bytes int64) bool {
	if len(t.waiting) > 0 {
		return false
	}
	t.charged = t.charge(now, bytes) > 0
	return !t.charged
}

func (t *turns) put(r heldRequest) { t.waiting = append(t.waiting, r) }

// due takes those out whose turn has come, and says after which time to ask again; 0 if none waits.
func (t *turns) due(now int64) (ready []heldRequest, next time.Duration) {
	n := 0
	for ; n < len(t.waiting); n++ {
		if !t.charged {
			t.charge(now, t.waiting[n].bytes)
		}
		next = max(t.bytes.Wait(now), t.operations.Wait(now))
		t.charged = next > 0
		if t.charged {
			break
		}
	}
	ready = append(ready, t.waiting[:n]...)
	t.waiting = append(t.waiting[:0], t.waiting[n:]...)
	return ready, next
}

// maxLimitedReads bounds how many reads whose turn has come are done side by side, and the memory for them.
const maxLimitedReads = 4

// noMemoryWait is how long a read waits for memory before it asks again.
const noMemoryWait = time.Second

// limiter holds requests back without holding anything else: no reader waits, a timer answers. A reply that is held
// is not lost with the process, as the kernel sends what has not been answered again. Without limits it
// costs one atomic load.
type limiter struct {
	s     *Server
	begin time.Time
	on    atomic.Bool // there are limits, or a request waits

	mu      sync.Mutex
	turns   turns         // guarded by mu
	timer   *time.Timer   // guarded by mu
	reads   []heldRequest // whose turn has come; guarded by mu
	workers int           // guarded by mu
	closed  bool          // guarded by mu
	limits  Limits        // guarded by mu
	delayed int64         // requests that had to wait so far; guarded by mu
	active  sync.WaitGroup
}

func newLimiter(s *Server, l Limits) *limiter {
	m := &limiter{s: s, begin: time.Now()}
	m.timer = time.AfterFunc(time.Hour, m.answerDue)
	m.timer.Stop()
	m.set(l)
	return m
}

func (m *limiter) now() int64 { return int64(time.Since(m.begin)) }

func (m *limiter) set(l Limits) {
	m.mu.Lock()
	m.limits = l
	m.turns.set(m.now(), l)
	m.on.Store(l != Limits{} || len(m.turns.waiting) > 0)
	m.mu.Unlock()
	m.answerDue()
}

// hold takes a request that is to wait, and reports false when its turn is now. held makes it only if it waits.
func (m *limiter) hold(bytes int64, held func(*heldRequest)) bool {
	if !m.on.Load() {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.turns.take(m.now(), bytes) {
		return false
	}
	r := heldRequest{bytes: bytes}
	held(&r)
	m.delayed++
	m.turns.put(r)
	if len(m.turns.waiting) == 1 {
		m.timer.Reset(max(m.turns.bytes.Wait(m.now()), m.turns.operations.Wait(m.now())))
	}
	return true
}

// holdWrite holds the reply to a write that is done.
func (m *limiter) holdWrite(h inHeader, bytes int64, reply []byte) bool {
	return m.hold(bytes, func(r *heldRequest) {
		r.header = h
		r.n = copy(r.body[:], reply)
	})
}

// holdRead holds a read that is to be done.
func (m *limiter) holdRead(h inHeader, body []byte) bool {
	if len(body) < readInSize {
		return false
	}
	return m.hold(int64(native.Uint32(body[16:])), func(r *heldRequest) {
		r.header = h
		r.n = copy(r.body[:], body[:readInSize])
	})
}

// readAside has a read done by another goroutine, whose turn it is. It reports false if that is not possible.
func (m *limiter) readAside(h inHeader, body []byte) bool {
	if len(body) < readInSize {
		return false
	}
	r := heldRequest{header: h}
	r.n = copy(r.body[:], body[:readInSize])
	m.finish(&r)
	return true
}

// answerDue is the timer's function.
func (m *limiter) answerDue() {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	ready, next := m.turns.due(m.now())
	if next > 0 {
		m.timer.Reset(next)
	} else {
		m.on.Store(m.limits != Limits{})
	}
	m.active.Add(1)
	m.mu.Unlock()
	defer m.active.Done()
	for i := range ready {
		m.finish(&ready[i])
	}
}

// finish answers a request whose turn has come, or has it answered.
func (m *limiter) finish(r *heldRequest) {
	if r.header.opcode == opWrite {
		m.s.reply(r.header, r.body[:r.n])
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = append(m.reads, *r)
	if m.workers < maxLimitedReads {
		m.workers++
		m.active.Add(1)
		go m.read()
	}
}

// read does reads whose turn has come until there are none.
func (m *limiter) read() {
	defer m.active.Done()
	var buf []byte
	for {
		m.mu.Lock()
		if len(m.reads) == 0 {
			m.workers--
			m.mu.Unlock()
			if buf != nil {
				spareBuffers.put(buf)
			}
			return
		}
		if buf == nil {
			var err error
			if buf, err = spareBuffers.get(int(m.s.state.MaxWriteBytes) + gatherBytes); err != nil {
				klog.ErrorS(err, "Reads wait for memory", "volume", m.s.state.VolumeID, "reads", len(m.reads))
				m.active.Add(1)
				time.AfterFunc(noMemoryWait, m.read)
				m.mu.Unlock()
				return
			}
		}
		r := m.reads[0]
		m.reads = append(m.reads[:0], m.reads[1:]...)
		m.mu.Unlock()
		n := m.s.handle(r.header, r.body[:r.n], buf)
		m.s.reply(r.header, buf[replyOffset:replyOffset+n])
	}
}

// close answers all that is held, and holds nothing from then on. It returns when everything is answered.
func (m *limiter) close() {
	m.mu.Lock()
	m.closed = true
	m.timer.Stop()
	left := m.turns.waiting
	m.turns.waiting = nil
	m.mu.Unlock()
	for i := range left {
		m.finish(&left[i])
	}
	m.active.Wait()
}

// SetLimits changes what the volume's I/O is bounded to. It takes effect at once, also for requests that wait.
func (s *Server) SetLimits(l Limits) { s.limiter.set(l) }

// Limits returns what the volume's I/O is bounded to, and how many requests have had to wait for it since the server
// began.
func (s *Server) Limits() (l Limits, delayed int64) {
	s.limiter.mu.Lock()
	defer s.limiter.mu.Unlock()
	return s.limiter.limits, s.limiter.delayed
}

// limited answers a write, or has its reply wait.
func (s *Server) limited(h inHeader, size uint32, errno unix.Errno, reply []byte) {
	if errno != 0 || !s.limiter.holdWrite(h, int64(size), reply) {
		s.reply(h, reply)
	}
}
