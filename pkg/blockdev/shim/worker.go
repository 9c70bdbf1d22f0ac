package shim

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// worker is one of the pool's goroutines.
type worker struct {
	pool *workerPool
	gathered
	batch *batch // of the volume that is served
	// readyReads counts reads that were answered while others waited for what this worker holds.
	readyReads int

	// call is incremented before and after a call of a Device that may turn out to take long.
	call atomic.Uint64
	seen uint64 // call when the watch last looked; guarded by pool.mu

	s       *Server  // the volume that is served; written by the worker alone, under pool.mu
	armed   bool     // s has been given back; guarded by pool.mu
	ready   []int32  // volumes to serve, by key; guarded by pool.mu
	pending []*batch // of volumes that were served; guarded by pool.mu
}

func inCall(call uint64) bool { return call%2 == 1 }

func (w *worker) beginCall() {
	w.call.Add(1)
	w.pool.armWatch()
}

func (w *worker) endCall() { w.call.Add(1) }

func (w *worker) run() {
	p := w.pool
	defer p.ended(w)
	var events [maxReadyVolumes]unix.EpollEvent
	for stopping := false; !stopping; {
		n, err := unix.EpollWait(p.epfd, events[:], -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil { // cannot be: the descriptor is open as long as there are workers
			klog.ErrorS(err, "A worker cannot wait for requests")
			p.idle.Add(-1)
			return
		}
		p.idle.Add(-1)
		stopping = w.take(events[:n])
		for w.enter() {
			w.serve()
			w.leave()
		}
		w.commit()
		if stopping || !stayIdle(&p.idle, maxIdleWorkers) {
			return
		}
	}
}

// take notes which volumes have requests, and reports whether the pool stops.
func (w *worker) take(events []unix.EpollEvent) (stopping bool) {
	w.readyReads = 0
	w.pool.mu.Lock()
	defer w.pool.mu.Unlock()
	for i := range events {
		if key := events[i].Fd; key == stopKey {
			stopping = true
		} else {
			w.ready = append(w.ready, key)
		}
	}
	return stopping
}

// enter begins to serve the next volume; false if there is none.
func (w *worker) enter() bool {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(w.ready) > 0 {
		s := p.volumes[w.ready[0]]
		w.ready = append(w.ready[:0], w.ready[1:]...)
		switch {
		case s == nil || s.share.stopping.Load():
		case s.share.inside >= s.maxReaders:
			s.share.deferred = true
		default:
			s.share.inside++
			w.s, w.armed = s, false
			return true
		}
	}
	return false
}

// leave ends serving a volume.
func (w *worker) leave() {
	p := w.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	s := w.s
	if w.batch != nil {
		w.pending = append(w.pending, w.batch)
		w.batch = nil
	}
	s.share.inside--
	if !w.armed || s.share.deferred {
		s.share.deferred = false
		p.armLocked(s)
	}
	w.s = nil
	if s.share.stopping.Load() && s.share.inside == 0 {
		go p.endVolume(s)
	}
}

// block is called before what may take long, and gives away all that this worker holds, but for what was gathered.
// When it returns, another worker waits for requests.
func (w *worker) block() {
	w.readyReads = 0
	p := w.pool
	p.mu.Lock()
	if w.batch != nil {
		w.pending = append(w.pending, w.batch)
		w.batch = nil
	}
	batches := p.takeLocked(w)
	p.mu.Unlock()
	p.ensureIdle()
	if len(batches) > 0 {
		go commit(batches)
	}
}

// lock takes the Device for a call.
func (w *worker) lock() {
	if w.s.deviceMu.TryRLock() {
		return
	}
	// It is being exchanged, which waits for the batches that this worker holds.
	w.block()
	w.s.deviceMu.RLock()
}

// serve serves a volume's requests until there are none, or enough for a turn.
func (w *worker) serve() {
	s := w.s
	for !s.share.stopping.Load() {
		at := w.next()
		n, err := readNow(s.fd, w.buf[at-requestHead:])
		if err != 0 {
			took := len(w.writes) > 0
			w.write()
			if err == unix.EAGAIN {
				if took && len(w.batch.answers) < maxBatchWrites {
					continue // what came meanwhile need not wake another worker
				}
				return
			}
			if s.readAgain(err) {
				continue
			}
			w.pool.stopVolume(s)
			return
		}
		h, body, parsed := s.parseRequest(w.buf[at-requestHead:][:n])
		if !parsed {
			continue
		}
		w.request(h, body, at)
	}
	w.write()
}

// request serves one request, whose data would begin at a place of the buffer.
func (w *worker) request(h inHeader, body []byte, at int) {
	s := w.s
	switch h.opcode {
	case opWrite:
		w.gather(s, h, body)
		if w.full(int(s.state.MaxWriteBytes)) || len(w.writes) >= maxBatchWrites {
			w.write()
		}
	case opFallocate:
		var copied [fallocateInSize]byte
		n := copy(copied[:], body)
		w.write() // it comes behind them
		w.fallocate(h, copied[:n])
	case opFsync:
		w.write()
		w.begin()
		// No flush is needed, so the kernel is told that there is none, which it remembers: fsync(2) then succeeds without
		// asking. The first one may be about writes that a server of an earlier release has answered, so it is done.
		w.batch.answers = append(w.batch.answers, answer{
			header: h, start: s.now(), outcome: outcome{op: OpFlush, called: true, errno: unix.ENOSYS}})
	case opRead:
		w.read(h, body, at)
	default:
		if needsDevice(h.opcode) {
			w.lock()
			defer s.deviceMu.RUnlock()
		}
		w.answer(h, body, at)
	}
}

// answer serves a request at once, with the Device held if it needs it.
func (w *worker) answer(h inHeader, body []byte, at int) {
	// Behind the gathered data there is room for a reply of the largest size, or full would have said so.
	buf := w.buf[at-dataOffset:]
	if size := w.s.handleLocked(h, body, buf); size > 0 {
		w.s.reply(h, buf[replyOffset:replyOffset+size])
	}
}

// read serves a read, which may have to wait for a disk. Nothing that this worker holds waits for it, nor it for that.
func (w *worker) read(h inHeader, body []byte, at int) {
	s := w.s
	if s.limiter.holdRead(h, body) || w.readReady(h, body, at) {
		return
	}
	if w.readyReads >= maxReadyReads {
		w.write() // block gives away what was written, not what was gathered
	}
	if len(w.writes) > 0 && s.limiter.readAside(h, body) {
		return
	}
	w.block()
	s.deviceMu.RLock()
	defer s.deviceMu.RUnlock()
	w.answer(h, body, at)
}

// maxReadyReads is how many reads a worker answers before it gives away what it holds: other volumes' requests and
// writes that are not durable yet. Each takes a few microseconds.
const maxReadyReads = 64

// readReady answers a read that needs no disk, and reports whether it did. So such a read wakes no other worker.
func (w *worker) readReady(h inHeader, body []byte, at int) bool {
	s := w.s
	if w.readyReads >= maxReadyReads || !s.deviceMu.TryRLock() {
		return false
	}
	defer s.deviceMu.RUnlock()
	buf := w.buf[at-dataOffset:]
	w.beginCall()
	n, ready := s.readReady(body, buf[dataOffset:])
	w.endCall()
	if !ready {
		return false
	}
	w.readyReads++
	putOutHeader(buf[replyOffset:], outHeaderSize+n, 0, h.unique)
	s.reply(h, buf[replyOffset:replyOffset+outHeaderSize+n])
	return true
}

// begin makes sure that there is a batch of the volume, and so that its Device is held.
func (w *worker) begin() {
	if w.batch == nil {
		w.lock()
		w.batch = newBatch(w.s)
	}
}

// write gives the gathered writes to the Device. They are answered when the batch is durable.
func (w *worker) write() {
	if len(w.writes) == 0 {
		return
	}
	w.begin()
	start := w.s.now()
	w.beginCall()
	w.execute(w.s)
	w.endCall()
	for i := range w.writes {
		g := &w.writes[i]
		w.batch.answers = append(w.batch.answers, answer{
			header: inHeader{opcode: opWrite, unique: g.unique}, size: g.size, start: start, outcome: g.outcome})
	}
	w.writes = w.writes[:0]
}

// fallocate discards or zeroes. It is answered when the batch is durable.
func (w *worker) fallocate(h inHeader, body []byte) {
	w.begin()
	start := w.s.now()
	w.beginCall()
	o := w.s.fallocate(body)
	w.endCall()
	w.batch.answers = append(w.batch.answers, answer{header: h, start: start, outcome: o})
}

// commit makes durable, and answers, what the worker has written.
func (w *worker) commit() {
	w.pool.mu.Lock()
	batches := w.pending
	w.pending = nil
	w.pool.mu.Unlock()
	leads := enlist(batches)
	if len(leads) == 0 {
		return
	}
	w.pool.ensureIdle()
	lead(leads)
}
