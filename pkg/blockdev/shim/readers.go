package shim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Readers are goroutines of a volume whose mode is ModeFlush. They take requests from /dev/fuse, serve and answer
// them. What a request costs is not copying but waking threads: on the machines measured, waking one on another core
// takes longer than everything else that is done for a small write. So a reader takes all there is before it sleeps:
// it reads without blocking until the queue is empty, and only then waits in poll(2). Writes that it finds together,
// as those that a flush sends, go to the Device as one batch and are answered together, so that the flush which waits
// for them is woken once (see gather.go).
//
// Reading and answering never block, so they are made without telling Go's scheduler, which would otherwise look after
// the thread by way of other threads. Alternatives that lost:
//
//   - a blocking read(2), which is one system call less where requests come one by one: it cannot find out that the
//     queue is empty while answers are withheld.
//   - looking at the queue for some time before sleeping: on few cores it takes the core that the next step needs.
//   - one reader that hands requests to workers: a hand-off to another thread per request costs more than serving it.
//   - as many readers as requests may block: under load all of them run, and on few cores they take turns instead of
//     working off the queue (see maxIdleReaders).
//
// The rule is that one reader is always free to read, or one is started before a request has to wait for it. Behind a
// loop device with the writeback cache no request waits for some time: the loop device runs its requests one after
// another, so while it waits for a flush or a read, only writeback can arrive. So a timer looks after
// watchInterval whether anything got done since, and only then starts a reader. A reader that finds enough others
// idle when it is done ends.
//
// stop wakes them through an eventfd in the same poll.

const (
	// maxIdleReaders is how many readers stay when they have nothing to do. The kernel wakes all that poll, on other
	// cores too. Measured with fio (4 KiB, loop device over a Device in memory, 2 busy cores, so trust the direction
	// only): 2 was slower than 1 for writes, 3 slower than 2.
	maxIdleReaders = 1

	// watchInterval is how long a request that was not expected to block may keep the last reader before another one is
	// started. It is above what a flush takes on a disk that is not overloaded.
	watchInterval = 10 * time.Millisecond
)

// readerPool runs a Server's readers.
type readerPool struct {
	// idle counts readers that are in read(2) or certain to get there. It is incremented for a new reader by the one that
	// starts it, and by stay.
	idle atomic.Int32
	// completed counts requests, for the watch.
	completed atomic.Uint64

	stopping atomic.Bool
	// stopFD is an eventfd that is readable once the pool stops.
	stopFD int

	mu    sync.Mutex
	total int // readers that have not ended; guarded by mu

	watch        *time.Timer
	watchArmed   atomic.Bool
	watchedCount uint64 // completed when the watch was last looked at; touched by the armed timer only
}

func (p *readerPool) start(s *Server) error {
	var err error
	if p.stopFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	p.watch = time.AfterFunc(time.Hour, func() { p.lookAfter(s) })
	p.watch.Stop()
	p.spawn(s)
	return nil
}

// spawn starts a reader unless there are enough or the server stops.
func (p *readerPool) spawn(s *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping.Load() || p.total >= s.maxReaders {
		return
	}
	buf, err := spareBuffers.get(int(s.state.MaxWriteBytes) + gatherBytes)
	if err != nil {
		klog.ErrorS(err, "Cannot start another reader", "volume", s.state.VolumeID, "readers", p.total)
		if p.total == 0 {
			s.fail(err)
			go s.finish()
		}
		return
	}
	p.total++
	p.idle.Add(1)
	go func() {
		r := reader{pool: p, s: s, gathered: gathered{buf: buf}}
		r.run()
		p.ended(s, buf)
	}()
}

func (p *readerPool) ended(s *Server, buf []byte) {
	spareBuffers.put(buf)
	p.mu.Lock()
	p.total--
	last := p.total == 0
	if last {
		// No reader is left: none will be started, whatever the watch finds.
		p.stopping.Store(true)
	}
	p.mu.Unlock()
	if last {
		p.watch.Stop()
		s.limiter.close()
		// Flushes that the Device has not finished are answered first.
		s.deviceMu.Lock()
		defer s.deviceMu.Unlock()
		s.finish()
	}
}

// reader is one of the pool's goroutines.
type reader struct {
	pool *readerPool
	s    *Server
	gathered
}

// run serves requests until the server stops, the connection ends or enough other readers are idle.
func (r *reader) run() {
	p := r.pool
	for p.wait(r.s) {
		left := p.idle.Add(-1)
		served, ok := r.drain(left == 0)
		if !ok {
			return
		}
		p.completed.Add(served)
		if !stayIdle(&p.idle, maxIdleReaders) {
			return
		}
	}
}

// wait returns true when there may be something to read, false when the server stops.
func (p *readerPool) wait(s *Server) bool {
	fds := [2]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(p.stopFD), Events: unix.POLLIN}}
	for !p.stopping.Load() {
		n, err := unix.Poll(fds[:], -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			s.fail(fmt.Errorf("poll /dev/fuse: %w", err))
			return false
		case n > 0 && fds[0].Revents != 0: // an error too: the read says which
			return true
		}
	}
	return false
}

// drain serves requests until there are none, and returns how many. ok is false when the connection has ended. last
// says that no other reader was idle when it began.
func (r *reader) drain(last bool) (served uint64, ok bool) {
	s := r.s
	for {
		at := r.next()
		n, err := readNow(s.fd, r.buf[at-requestHead:])
		if err != 0 {
			r.flush()
			if err == unix.EAGAIN {
				return served, true
			}
			if s.readAgain(err) {
				continue
			}
			return served, false
		}
		served++
		h, body, parsed := s.parseRequest(r.buf[at-requestHead:][:n])
		if !parsed {
			continue
		}
		if last {
			r.pool.armWatch()
		}
		if h.opcode == opWrite {
			r.gather(s, h, body)
			if r.full(int(s.state.MaxWriteBytes)) {
				r.flush()
			}
			continue
		}
		// What was taken after gathered writes does not wait for them: the Device may hold a write for long. They wait for a
		// read instead, which ends by itself. What changes the volume or makes it durable comes behind them.
		if len(r.writes) > 0 && (h.opcode == opFsync || h.opcode == opFallocate) {
			r.flush()
			n := copy(r.buf[requestOffset:], r.buf[at-requestHead:][:n])
			h, body, _ = parseInHeader(r.buf[requestOffset:][:n])
			at = dataOffset
		}
		if h.opcode == opFsync {
			s.fsync(h, s.reply)
			continue
		}
		if h.opcode == opRead && s.limiter.holdRead(h, body) {
			continue
		}
		// Behind the gathered data there is room for a reply of the largest size, or full would have said so.
		buf := r.buf[at-dataOffset:]
		if size := s.handle(h, body, buf); size > 0 {
			s.reply(h, buf[replyOffset:replyOffset+size])
		}
	}
}

// stayIdle is what a reader asks when it has answered a request: whether it should read the next one, for which it is
// then counted as idle, or end.
//
// A reader that is counted will read, and a reader that ends was not counted. So the idle reader that lets another
// one end either stays, or takes a request and starts a new one. Counting first and taking it back when there are too
// many is wrong: two readers can both see the other's count, and both end.
func stayIdle(idle *atomic.Int32, most int32) bool {
	for {
		n := idle.Load()
		if n >= most {
			return false
		}
		if idle.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (p *readerPool) armWatch() {
	if p.watchArmed.CompareAndSwap(false, true) {
		p.watch.Reset(watchInterval)
	}
}

// lookAfter is the timer's function: it starts a reader if none is idle and none has finished anything for an interval.
func (p *readerPool) lookAfter(s *Server) {
	if p.stopping.Load() {
		return
	}
	count := p.completed.Load()
	if p.idle.Load() <= 0 && count == p.watchedCount {
		p.spawn(s)
	}
	p.watchedCount = count
	if p.idle.Load() <= 0 {
		p.watch.Reset(watchInterval)
		return
	}
	p.watchArmed.Store(false)
	// The last idle reader may have taken a request between the two lines above, and found the watch armed.
	if p.idle.Load() <= 0 {
		p.armWatch()
	}
}

// stop tells all readers to end after what they are doing and returns when they have.
func (p *readerPool) stop(s *Server) error {
	p.mu.Lock()
	p.stopping.Store(true)
	if p.total > 0 { // else the eventfd is closed
		if _, err := unix.Write(p.stopFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
			p.mu.Unlock()
			return fmt.Errorf("wake readers: %w", err)
		}
	}
	p.mu.Unlock()
	<-s.done
	return nil
}

// reply answers a request. What cannot be delivered was given up by the kernel.
func (s *Server) reply(h inHeader, b []byte) {
	err := writeNow(s.fd, b)
	switch err {
	case 0, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED, unix.ENOTCONN, unix.EPERM:
		return
	}
	klog.ErrorS(err, "The kernel refused a reply", "volume", s.state.VolumeID, "opcode", h.opcode, "bytes", len(b))
	// The caller that waits for the reply must not wait forever.
	var out [outHeaderSize]byte
	putOutHeader(out[:], len(out), -int32(unix.EIO), h.unique)
	if err := writeNow(s.fd, out[:]); err != 0 {
		klog.ErrorS(err, "The kernel refused an error reply", "volume", s.state.VolumeID, "opcode", h.opcode)
	}
}
