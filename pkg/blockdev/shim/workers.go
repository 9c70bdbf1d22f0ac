package shim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Workers are the few goroutines that serve all volumes of the process whose mode is ModeAck.
//
// A worker waits in epoll_wait(2) for any volume. It reads a volume's requests until there are none, gives the writes
// to the Device as one batch, does the same for the other volumes that were ready, and then asks their Devices to
// make it all durable. Devices that share a journal share the sync (blockdev.Committer); the worker that finds no
// sync running does it, answers all who waited for it, and goes on with those who came meanwhile. Another worker
// serves requests in the meantime. So the number of threads that run does not grow with the number of volumes: a
// thread for each would have 64 volumes take turns on a few cores.
//
// A volume is registered with EPOLLONESHOT: one worker is woken for it, and no other until that one gives it back
// with epoll_ctl(2), which finds out whether there is something to read again. A worker gives it back when it has
// taken all requests. Before it does something that may take long it gives away all that it holds, see block: the
// volume, other volumes that it has not come to, and batches that wait for their commit; and it makes sure that
// another worker waits in epoll_wait. What is not expected to take long and does, such as a write to a full journal,
// is found by a timer, see lookAfter. So neither a read nor another volume waits behind a commit, a stalled write or
// a Device that is being exchanged.
//
// A volume that holds workers up holds up as many as Config.MaxReaders. Beyond that number its requests wait, not
// others'.
type workerPool struct {
	epfd int
	// stopFD is an eventfd that is readable once the pool stops.
	stopFD int

	// idle counts workers that are in epoll_wait or certain to get there; see readerPool.
	idle       atomic.Int32
	watch      *time.Timer
	watchArmed atomic.Bool

	mu       sync.Mutex
	volumes  map[int32]*Server    // by epoll key; guarded by mu
	lastKey  int32                // guarded by mu
	workers  map[*worker]struct{} // guarded by mu
	stopping bool                 // guarded by mu
}

const (
	// maxIdleWorkers is how many workers stay when they have nothing to do. The kernel wakes the one that fell asleep
	// last, so the others cost memory alone. Of the three, one may sync, one read, and one is there for what comes.
	maxIdleWorkers = 3

	// maxReadyVolumes is how many volumes a worker takes at a time.
	maxReadyVolumes = 16

	// maxBatchWrites is how many writes a worker takes of a volume before it turns to others.
	maxBatchWrites = 64

	// stopKey is the eventfd's epoll key. Those of volumes are positive.
	stopKey = 0
)

// sharedWorkers is the process's pool, while it serves a volume.
var sharedWorkers struct {
	mu   sync.Mutex
	pool *workerPool // guarded by mu
}

// volumeShare is what the pool knows of a volume.
type volumeShare struct {
	pool     *workerPool
	key      int32
	stopping atomic.Bool // no more requests are taken
	inside   int         // workers that serve it; guarded by pool.mu
	deferred bool        // has requests, and as many workers as it may; guarded by pool.mu
}

// serveShared makes the workers serve a volume.
func serveShared(s *Server) error {
	sharedWorkers.mu.Lock()
	defer sharedWorkers.mu.Unlock()
	p := sharedWorkers.pool
	if p == nil {
		var err error
		if p, err = newWorkerPool(); err != nil {
			return err
		}
	}
	if err := p.add(s); err != nil {
		if sharedWorkers.pool == nil {
			p.stop()
		}
		return err
	}
	sharedWorkers.pool = p
	return nil
}

func newWorkerPool() (*workerPool, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll descriptor: %w", err)
	}
	stopFD, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("make an eventfd: %w", err)
	}
	p := &workerPool{epfd: epfd, stopFD: stopFD, volumes: map[int32]*Server{}, workers: map[*worker]struct{}{}}
	p.watch = time.AfterFunc(time.Hour, p.lookAfter)
	p.watch.Stop()
	err = unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, stopFD, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: stopKey})
	if err == nil {
		err = p.spawn()
	}
	if err != nil {
		p.close()
		return nil, fmt.Errorf("start to serve: %w", err)
	}
	return p, nil
}

func (p *workerPool) close() {
	_ = unix.Close(p.epfd)
	_ = unix.Close(p.stopFD)
}

func (p *workerPool) add(s *Server) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastKey++
	s.share.pool, s.share.key = p, p.lastKey
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: s.share.key}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_ADD, s.fd, &event); err != nil {
		return fmt.Errorf("wait for /dev/fuse: %w", err)
	}
	p.volumes[s.share.key] = s
	return nil
}

// spawn starts a worker, unless the pool stops.
func (p *workerPool) spawn() error {
	buf, err := spareBuffers.get(maxWriteBytes + gatherBytes)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		spareBuffers.put(buf)
		return nil
	}
	w := &worker{pool: p}
	w.buf = buf
	p.workers[w] = struct{}{}
	p.idle.Add(1)
	go w.run()
	return nil
}

// ensureIdle starts a worker if none waits.
func (p *workerPool) ensureIdle() {
	if p.idle.Load() > 0 {
		return
	}
	if err := p.spawn(); err != nil {
		klog.ErrorS(err, "Cannot start another worker; volumes wait for those that are there")
	}
}

func (p *workerPool) ended(w *worker) {
	spareBuffers.put(w.buf)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.workers, w)
	if p.stopping && len(p.workers) == 0 {
		p.close()
	}
}

// stop ends the workers after what they are doing. It does not wait for them.
func (p *workerPool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopping = true
	p.watch.Stop()
	if _, err := unix.Write(p.stopFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
		klog.ErrorS(err, "Cannot stop the workers that served volumes") // cannot be: an eventfd takes it
	}
}

// stopVolume ends taking requests of a volume. It ends when what was taken is answered.
func (p *workerPool) stopVolume(s *Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.volumes[s.share.key] != s || s.share.stopping.Load() {
		return
	}
	s.share.stopping.Store(true)
	// Others may hold a duplicate of the descriptor, so closing it would not take it out.
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_DEL, s.fd, nil); err != nil {
		klog.ErrorS(err, "Cannot stop waiting for /dev/fuse", "volume", s.state.VolumeID)
	}
	if s.share.inside == 0 {
		go p.endVolume(s)
	}
}

// endVolume runs when no worker serves a stopping volume any more.
func (p *workerPool) endVolume(s *Server) {
	s.limiter.close()
	s.deviceMu.Lock() // what waits for a commit is answered first
	defer s.deviceMu.Unlock()
	sharedWorkers.mu.Lock()
	p.mu.Lock()
	delete(p.volumes, s.share.key)
	last := len(p.volumes) == 0
	p.mu.Unlock()
	if last {
		sharedWorkers.pool = nil
		p.stop()
	}
	sharedWorkers.mu.Unlock()
	s.finish()
}

// armLocked gives a volume back to epoll: from now on a worker is woken for it, at once if it has requests.
func (p *workerPool) armLocked(s *Server) {
	if s.share.stopping.Load() {
		return
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: s.share.key}
	if err := unix.EpollCtl(p.epfd, unix.EPOLL_CTL_MOD, s.fd, &event); err != nil {
		klog.ErrorS(err, "Cannot wait for /dev/fuse", "volume", s.state.VolumeID) // cannot be: it was added
	}
}

// takeLocked takes all that a worker holds besides the request that it is at: the volume and those that it has not
// come to are given back to epoll, and the batches that wait for their commit are the caller's.
func (p *workerPool) takeLocked(w *worker) (batches []*batch) {
	if w.s != nil && !w.armed {
		w.armed = true
		p.armLocked(w.s)
	}
	for _, key := range w.ready {
		if s := p.volumes[key]; s != nil {
			p.armLocked(s)
		}
	}
	w.ready = w.ready[:0]
	batches, w.pending = w.pending, nil
	return batches
}

func (p *workerPool) armWatch() {
	if !p.watchArmed.Load() && p.watchArmed.CompareAndSwap(false, true) {
		p.watch.Reset(watchInterval)
	}
}

// lookAfter is the timer's function: it takes from workers that have been in the same call of a Device for an interval
// what they hold.
func (p *workerPool) lookAfter() {
	p.mu.Lock()
	var taken []*batch
	busy, stuck := false, false
	for w := range p.workers {
		call := w.call.Load()
		if inCall(call) {
			busy = true
			if call == w.seen {
				stuck = true
				taken = append(taken, p.takeLocked(w)...)
			}
		}
		w.seen = call
	}
	stopping := p.stopping
	p.mu.Unlock()
	if len(taken) > 0 {
		go commit(taken)
	}
	if stuck {
		p.ensureIdle()
	}
	if busy && !stopping {
		p.watch.Reset(watchInterval)
		return
	}
	p.watchArmed.Store(false)
	// A worker may have begun a call between the look at it and the line above, and found the watch armed.
	p.mu.Lock()
	defer p.mu.Unlock()
	for w := range p.workers {
		if inCall(w.call.Load()) && !p.stopping {
			p.armWatch()
			return
		}
	}
}
