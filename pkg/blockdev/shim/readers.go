package shim

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Readers are goroutines that block in read(2) on /dev/fuse, serve what they got and answer it with one write(2). The
// kernel wakes one of them per request (it waits exclusively), so a request that finds an idle reader costs one wakeup and
// one that does not costs none: the reader that finishes next takes it without sleeping. Alternatives that lost:
//
//   - poll(2) on the descriptor and an eventfd before a non-blocking read, which makes stopping simple: two system calls
//     per request more, and every poller wakes for every request.
//   - one reader that hands requests to workers: a hand-off to another thread per request costs more than serving it.
//   - as many readers as requests may block: under load all of them run, and on few cores they take turns instead of
//     working off the queue (see maxIdleReaders).
//
// The rule is that one reader is always free to read, or one is started: a flush waits for the disk, and writes must be
// served meanwhile. Requests that are expected to block (fsync, fallocate, reads that miss the page cache) start a
// reader at once when they are taken by the last idle one. A write is expected not to: for it a timer looks after
// watchInterval whether anything got done since, and only then starts a reader. A reader that finds enough others idle
// when it is done ends.
//
// Stopping has to end reads that block, on kernels that have no call for it. The descriptor is made non-blocking, which a
// read that already waits does not notice, and every thread of the process gets a SIGURG, which the runtime's handler
// takes for one of its own preemption requests (it sends them all the time, and chose a signal that is harmless). The
// handler returns, the read is restarted and now returns EAGAIN. Closing the descriptor wakes nobody; a notification that
// makes the kernel queue something for a reader (FUSE_NOTIFY_RETRIEVE) works only for a file that is in the inode cache;
// signalling only the readers' threads needs them locked to their goroutines, which makes each wait inside the Device
// dearer.

const (
	// maxIdleReaders is how many readers stay when they have nothing to do. The kernel wakes idle readers in turn, and on
	// other cores. Measured with fio (4 KiB, loop device over a Device in memory, 2 busy cores, so trust the direction
	// only): 2 was slower than 1 for writes, 3 slower than 2. Starting a reader for each flush costs less than keeping
	// one for it.
	maxIdleReaders = 1

	// watchInterval is how long a request that was not expected to block may keep the last reader before another one is
	// started. It is far above what a write into the page cache takes and far below what anybody waits for.
	watchInterval = 2 * time.Millisecond

	// maxSignalInterval is how often threads are signalled while a reader's last request is still in the Device.
	maxSignalInterval = 100 * time.Millisecond
)

// readerPool runs a Server's readers.
type readerPool struct {
	// idle counts readers that are in read(2) or certain to get there. It is incremented for a new reader by the one that
	// starts it, and by stay.
	idle atomic.Int32
	// completed counts requests, for the watch.
	completed atomic.Uint64

	stopping atomic.Bool

	mu      sync.Mutex
	total   int      // readers that have not ended; guarded by mu
	buffers [][]byte // of readers that have ended, for the next; guarded by mu

	watch        *time.Timer
	watchArmed   atomic.Bool
	watchedCount uint64 // completed when the watch was last looked at; touched by the armed timer only
}

func (p *readerPool) start(s *Server) {
	p.watch = time.AfterFunc(time.Hour, func() { p.lookAfter(s) })
	p.watch.Stop()
	p.spawn(s)
}

// spawn starts a reader unless there are enough or the server stops.
func (p *readerPool) spawn(s *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping.Load() || p.total >= s.maxReaders {
		return
	}
	var buf []byte
	if n := len(p.buffers); n > 0 {
		buf = p.buffers[n-1]
		p.buffers = p.buffers[:n-1]
	} else {
		var err error
		buf, err = newBuffer(int(s.state.MaxWriteBytes))
		if err != nil {
			klog.ErrorS(err, "Cannot start another reader", "volume", s.state.VolumeID, "readers", p.total)
			if p.total == 0 {
				s.fail(err)
				go s.finish()
			}
			return
		}
	}
	p.total++
	p.idle.Add(1)
	go func() {
		p.run(s, buf)
		p.ended(s, buf)
	}()
}

func (p *readerPool) ended(s *Server, buf []byte) {
	p.mu.Lock()
	p.total--
	p.buffers = append(p.buffers, buf)
	last := p.total == 0
	if last {
		// Nobody serves any more: no reader will be started, whatever the watch thinks.
		p.stopping.Store(true)
		for _, b := range p.buffers {
			freeBuffer(b)
		}
		p.buffers = nil
	}
	p.mu.Unlock()
	if last {
		p.watch.Stop()
		s.finish()
	}
}

// run serves requests until the server stops, the connection ends or enough other readers are idle.
func (p *readerPool) run(s *Server, buf []byte) {
	for !p.stopping.Load() {
		n, err := unix.Read(s.fd, buf[requestOffset:])
		if err != nil {
			switch err {
			case unix.EINTR, unix.ENOENT: // ENOENT: the request was given up before it was copied
				continue
			case unix.EAGAIN: // stop, or somebody with a duplicate, made the shared description non-blocking
				if p.stopping.Load() {
					return
				}
				if err := unix.SetNonblock(s.fd, false); err != nil {
					s.fail(fmt.Errorf("make /dev/fuse blocking: %w", err))
					return
				}
				continue
			case unix.ENODEV: // unmounted
				return
			case unix.ECONNABORTED:
				s.fail(ErrAborted)
				return
			}
			s.fail(fmt.Errorf("read /dev/fuse: %w", err))
			return
		}
		left := p.idle.Add(-1)
		h, body, ok := parseInHeader(buf[requestOffset : requestOffset+n])
		if left == 0 {
			if mayBlock(h.opcode) {
				p.spawn(s)
			} else {
				p.armWatch()
			}
		}
		if ok {
			if size := s.handle(h, body, buf); size > 0 {
				s.reply(h, buf[replyOffset:replyOffset+size])
			}
		} else {
			klog.ErrorS(nil, "Ignored a request that does not parse", "volume", s.state.VolumeID, "bytes", n, "opcode", h.opcode, "length", h.len)
		}
		p.completed.Add(1)
		if !p.stay() {
			return
		}
	}
}

// stay is what a reader asks when it has answered a request: whether it should read the next one, for which it is then
// counted as idle, or end.
//
// Whoever is counted will read, and whoever ends was not counted: so the idle reader for whose sake one ends either stays,
// or takes a request and starts another. Counting first and taking it back when there are too many is wrong: two readers
// can both see the other's count, and both end.
func (p *readerPool) stay() bool {
	for {
		n := p.idle.Load()
		if n >= maxIdleReaders {
			return false
		}
		if p.idle.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// mayBlock says for which requests another reader is started at once if there is none.
func mayBlock(opcode uint32) bool {
	switch opcode {
	case opFsync, opFallocate, opRead:
		return true
	}
	return false
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
	if p.total > 0 { // else the descriptor is closed
		if err := unix.SetNonblock(s.fd, true); err != nil {
			p.mu.Unlock()
			return fmt.Errorf("make /dev/fuse non-blocking: %w", err)
		}
	}
	p.mu.Unlock()
	for wait := time.Millisecond; ; wait = min(2*wait, maxSignalInterval) {
		if err := signalThreads(); err != nil {
			return fmt.Errorf("wake readers: %w", err)
		}
		select {
		case <-s.done:
			return nil
		case <-time.After(wait):
			// A reader may have been between looking at stopping and read(2), or is in the Device still.
		}
	}
}

// signalThreads sends SIGURG to every thread of the process.
func signalThreads() error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			return err
		}
		if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil && err != unix.ESRCH {
			return err
		}
	}
	return nil
}

// reply answers a request. What cannot be delivered was given up by the kernel.
func (s *Server) reply(h inHeader, b []byte) {
	_, err := writeFD(s.fd, b)
	switch err {
	case nil, unix.ENOENT, unix.ENODEV, unix.ECONNABORTED, unix.ENOTCONN, unix.EPERM:
		return
	}
	klog.ErrorS(err, "The kernel refused a reply", "volume", s.state.VolumeID, "opcode", h.opcode, "bytes", len(b))
	// Whoever waits for it must not wait for ever.
	var out [outHeaderSize]byte
	putOutHeader(out[:], len(out), -int32(unix.EIO), h.unique)
	if _, err := writeFD(s.fd, out[:]); err != nil {
		klog.ErrorS(err, "The kernel refused an error reply", "volume", s.state.VolumeID, "opcode", h.opcode)
	}
}
