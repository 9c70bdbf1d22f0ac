package shim

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/blockdevtest"
)

// connection is the kernel's side of a volume that the workers serve over a socket in /dev/fuse's place.
type connection struct {
	t  *testing.T
	s  *Server
	fd int
}

func connect(t *testing.T, dev blockdev.Device, change ...func(*Config)) *connection {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cfg Config
	for _, f := range change {
		f(&cfg)
	}
	s := newServer(nil, validState(), cfg, dev)
	s.fd = fds[0]
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
	})
	return &connection{t, s, fds[1]}
}

func (c *connection) send(frame []byte) {
	c.t.Helper()
	if err := unix.Sendto(c.fd, frame, 0, nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *connection) write(unique uint64, page int64, fill byte) {
	c.t.Helper()
	data := bytes.Repeat([]byte{fill}, pageSize)
	c.send(request(opWrite, unique, fileNode, dataBody(uint64(page*pageSize), pageSize, data)))
}

func (c *connection) read(unique uint64, page int64) {
	c.t.Helper()
	c.send(request(opRead, unique, fileNode, dataBody(uint64(page*pageSize), pageSize, nil)))
}

// answered says whether there is a reply within a time.
func (c *connection) answered(within time.Duration) bool {
	c.t.Helper()
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int(within.Milliseconds()))
	if err != nil && err != unix.EINTR {
		c.t.Fatal(err)
	}
	return n == 1
}

// reply is the next one, of any request.
func (c *connection) reply() (unique uint64, errno unix.Errno, body []byte) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); !c.answered(time.Second); {
		if time.Now().After(end) {
			c.t.Fatal("no reply for a minute")
		}
	}
	b := make([]byte, pageSize+outHeaderSize)
	n, err := unix.Read(c.fd, b)
	if err != nil {
		c.t.Fatal(err)
	}
	unique = native.Uint64(b[8:])
	errno, body = checkReply(c.t, b[:n], unique)
	return unique, errno, body
}

func (c *connection) wantReply(unique uint64, errno unix.Errno) []byte {
	c.t.Helper()
	got, gotErrno, body := c.reply()
	if got != unique || gotErrno != errno {
		c.t.Fatalf("reply to %d with %v, want one to %d with %v", got, gotErrno, unique, errno)
	}
	return body
}

// volatileDevice is a disk with a cache that a loss of power empties. Its commits are groups, as a journal's.
type volatileDevice struct {
	*blockdevtest.MemDevice
	disk *blockdevtest.MemDevice // what survives

	mu      sync.Mutex
	dirty   map[int64][]byte // by offset; guarded by mu
	waiting []func(error)    // guarded by mu
	leads   bool             // guarded by mu
	syncs   int              // guarded by mu
	// sync, if not nil, is called in each sync, without the lock.
	sync func() error
}

func newVolatileDevice(size int64) *volatileDevice {
	return &volatileDevice{
		MemDevice: blockdevtest.NewMemDevice(size), disk: blockdevtest.NewMemDevice(size), dirty: map[int64][]byte{}}
}

func (d *volatileDevice) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dirty[off] = bytes.Clone(p)
	return d.MemDevice.WriteAt(p, off)
}

func (d *volatileDevice) Discard(off, n int64) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func (d *volatileDevice) Zero(off, n int64) error { return d.Discard(off, n) }

func (d *volatileDevice) Flush() error {
	done := make(chan error, 1)
	if lead := d.Commit(func(err error) { done <- err }); lead != nil {
		lead()
	}
	return <-done
}

func (d *volatileDevice) Commit(done func(error)) (lead func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting = append(d.waiting, done)
	if d.leads {
		return nil
	}
	d.leads = true
	return d.lead
}

func (d *volatileDevice) lead() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.waiting) > 0 {
		waiting, dirty := d.waiting, d.dirty
		d.waiting, d.dirty = nil, map[int64][]byte{}
		d.syncs++
		d.mu.Unlock()
		var err error
		if d.sync != nil {
			err = d.sync()
		}
		if err == nil {
			for off, p := range dirty {
				_, _ = d.disk.WriteAt(p, off)
			}
		}
		for _, done := range waiting {
			done(err)
		}
		d.mu.Lock()
	}
	d.leads = false
}

func (d *volatileDevice) survives(t *testing.T, page int64, fill byte) bool {
	t.Helper()
	got := make([]byte, pageSize)
	if _, err := d.disk.ReadAt(got, page*pageSize); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(got, bytes.Repeat([]byte{fill}, pageSize))
}

// TestAnsweredIsDurable loses power at the moment of each answer, with many requests at once: what was answered is on
// the disk. A flush is answered by saying that there is none.
func TestAnsweredIsDurable(t *testing.T) {
	const pages = 64
	dev := newVolatileDevice(2 * pages * pageSize)
	dev.sync = func() error {
		time.Sleep(100 * time.Microsecond)
		return nil
	}
	c := connect(t, dev)
	for round := range byte(20) {
		fill := round + 1
		for page := range int64(pages) {
			c.write(uint64(100+page), page, fill)
		}
		c.send(request(opFallocate, 1000, fileNode, fallocateBody(0, pageSize, fallocPunchHole|fallocKeepSize)))
		c.send(request(opFsync, 1001, fileNode, make([]byte, fsyncInSize)))
		for range pages + 2 {
			unique, errno, _ := c.reply()
			switch {
			case unique == 1001:
				if errno != unix.ENOSYS {
					t.Fatalf("the flush was answered with %v", errno)
				}
			case errno != 0:
				t.Fatalf("request %d: %v", unique, errno)
			case unique == 1000:
				if !dev.survives(t, 0, 0) {
					t.Fatal("a discard was answered and is not on the disk")
				}
			case unique > 100: // page 0 is discarded meanwhile
				if !dev.survives(t, int64(unique-100), fill) {
					t.Fatalf("round %d: the write to page %d was answered and is not on the disk", round, unique-100)
				}
			}
		}
	}
	if dev.mu.Lock(); dev.syncs > 20*pages/4 {
		t.Errorf("%d syncs for %d writes: they share none", dev.syncs, 20*pages)
	}
	dev.mu.Unlock()
}

// TestFaultsOfTheWorkersAreCaught: with the deliberate fault built in, the test above fails.
func TestFaultsOfTheWorkersAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package with deliberate faults")
	}
	testenv.Catches(t, bug.AnswerBeforeDurable, "TestAnsweredIsDurable")
}

// TestFailedCommit: what could not be made durable is an error to all who waited, also to the flush.
func TestFailedCommit(t *testing.T) {
	dev := newVolatileDevice(64 * pageSize)
	var failure atomic.Pointer[error]
	dev.sync = func() error {
		if err := failure.Load(); err != nil {
			return *err
		}
		return nil
	}
	c := connect(t, dev)
	for _, want := range []struct{ err, errno error }{
		{errors.New("the disk is gone"), unix.EIO},
		{fmt.Errorf("the disk is full: %w", unix.ENOSPC), unix.ENOSPC},
	} {
		failure.Store(&want.err)
		c.write(1, 1, 1)
		c.write(2, 1000, 1) // refused whatever the disk does
		c.send(request(opFallocate, 3, fileNode, fallocateBody(0, pageSize, fallocZeroRange)))
		c.send(request(opFsync, 4, fileNode, make([]byte, fsyncInSize)))
		for range 4 {
			unique, errno, _ := c.reply()
			if expect := map[bool]error{true: unix.EFBIG, false: want.errno}[unique == 2]; errno != expect {
				t.Errorf("request %d with %v: %v, want %v", unique, want.err, errno, expect)
			}
		}
	}
	failure.Store(nil)
	c.write(5, 1, 2)
	c.wantReply(5, 0)
}

// held lets what calls it wait until it is let go.
type held struct {
	entered chan struct{}
	release chan struct{}
}

func newHeld() held { return held{make(chan struct{}, 1000), make(chan struct{})} }

func (h held) wait() {
	h.entered <- struct{}{}
	<-h.release
}

// TestReadPassesCommit holds the commits of a volume, more than the workers that stay: reads, of it and of others, are
// answered meanwhile, and so are the writes of another volume.
func TestReadPassesCommit(t *testing.T) {
	h := newHeld()
	slow, quick := newVolatileDevice(64*pageSize), newVolatileDevice(64*pageSize)
	slow.sync = func() error { h.wait(); return nil }
	a, b := connect(t, slow), connect(t, quick)
	a.write(1, 1, 1)
	<-h.entered
	for i := range uint64(5) {
		a.write(10+i, int64(2+i), 1)
		a.read(100+i, 1)
		if body := a.wantReply(100+i, 0); body[0] != 1 {
			t.Error("a read does not see a write that waits for its commit")
		}
		b.write(200+i, int64(i), 1)
		b.wantReply(200+i, 0)
		b.read(300+i, int64(i))
		b.wantReply(300+i, 0)
	}
	if a.answered(10 * time.Millisecond) {
		t.Error("a write was answered before its commit")
	}
	close(h.release)
	for range 6 {
		if _, errno, _ := a.reply(); errno != 0 {
			t.Error(errno)
		}
	}
}

// readyDevice knows that no read has to wait. Each read is followed by another one.
type readyDevice struct {
	*volatileDevice
	next func()
}

func (d *readyDevice) ReadAt(p []byte, off int64) (int, error) {
	d.next()
	return d.volatileDevice.ReadAt(p, off)
}

func (d *readyDevice) ReadReadyAt(p []byte, off int64) bool {
	_, err := d.ReadAt(p, off)
	return err == nil
}

// TestReadyReads has one read after the other answered at once, with what was written. Writes are answered all the
// same, of the volume and of others.
func TestReadyReads(t *testing.T) {
	var a *connection
	var last atomic.Uint64
	last.Store(1000)
	room := make(chan struct{}, 8) // of the socket, for replies
	stop := make(chan struct{})
	a = connect(t, &readyDevice{newVolatileDevice(64 * pageSize), func() {
		select {
		case room <- struct{}{}:
			a.read(last.Add(1), 1)
		case <-stop:
		}
	}})
	b := connect(t, newVolatileDevice(64*pageSize))
	a.write(1, 1, 7)
	a.wantReply(1, 0)
	a.read(1000, 1)
	for written := 0; written < 20; {
		unique, errno, body := a.reply()
		switch {
		case errno != 0:
			t.Fatalf("request %d: error %v", unique, errno)
		case unique < 1000:
			written++
			continue
		case body[0] != 7:
			t.Fatalf("read %d sees %d", unique, body[0])
		case unique%100 == 50 && unique < 3000:
			a.write(unique/100, int64(unique/100), 1)
			b.write(unique, 2, 1)
			b.wantReply(unique, 0)
		}
		if unique > 1000 {
			<-room
		}
	}
	close(stop)
}

// stalledDevice holds its writes.
type stalledDevice struct {
	*volatileDevice
	held
}

func (d *stalledDevice) WriteAt(p []byte, off int64) (int, error) {
	d.wait()
	return d.volatileDevice.WriteAt(p, off)
}

// TestStalledVolumeHurtsNobody stalls one volume's writes, as a full journal does, in as many workers as it may have,
// while others are written and read: also those whose requests a worker had already taken when it was held up.
func TestStalledVolumeHurtsNobody(t *testing.T) {
	const others, readers = 8, 4
	stalled := &stalledDevice{newVolatileDevice(64 * pageSize), newHeld()}
	a := connect(t, stalled, func(c *Config) { c.MaxReaders = readers })
	var conns []*connection
	for range others {
		conns = append(conns, connect(t, newVolatileDevice(64*pageSize)))
	}
	const rounds, each = 4, 5 // what is not taken stays in the socket, which has room for few
	for round := range uint64(rounds) {
		for i := range uint64(each) {
			a.write(round*100+i, int64(i), 1)
		}
		for i, c := range conns {
			c.write(round, int64(i), 1)
		}
		for _, c := range conns {
			c.wantReply(round, 0)
			c.read(1000, 0)
			c.wantReply(1000, 0)
		}
	}
	if a.answered(0) {
		t.Error("a stalled write was answered")
	}
	if p := a.s.share.pool; p != nil {
		p.mu.Lock()
		if a.s.share.inside > readers {
			t.Errorf("%d workers are in the stalled volume", a.s.share.inside)
		}
		p.mu.Unlock()
	}
	close(stalled.release)
	for range rounds * each {
		if _, errno, _ := a.reply(); errno != 0 {
			t.Error(errno)
		}
	}
}

// TestManyVolumesFewWorkers writes to 64 volumes at once: the workers stay few.
func TestManyVolumesFewWorkers(t *testing.T) {
	const volumes, rounds = 64, 50
	var conns []*connection
	for range volumes {
		dev := newVolatileDevice(64 * pageSize)
		dev.sync = func() error { time.Sleep(50 * time.Microsecond); return nil }
		conns = append(conns, connect(t, dev))
	}
	most := 0
	for round := range uint64(rounds) {
		for _, c := range conns {
			c.write(round, 0, byte(round))
		}
		p := conns[0].s.share.pool
		p.mu.Lock()
		most = max(most, len(p.workers))
		p.mu.Unlock()
		for _, c := range conns {
			c.wantReply(round, 0)
		}
	}
	t.Logf("up to %d workers", most)
	// Each of these volumes has a disk of its own, and so a sync of its own, which one worker may do at a time.
	if most > volumes/4 {
		t.Errorf("%d workers for %d volumes", most, volumes)
	}
}

// TestSwapWaitsForCommits exchanges devices that hold what was written and not committed: the exchange waits, and what
// comes meanwhile waits for it, without holding up another volume.
func TestSwapWaitsForCommits(t *testing.T) {
	h := newHeld()
	first, second := newVolatileDevice(64*pageSize), newVolatileDevice(64*pageSize)
	first.sync = func() error { h.wait(); return nil }
	a, b := connect(t, first), connect(t, newVolatileDevice(64*pageSize))
	a.write(1, 1, 1)
	<-h.entered
	swapped := make(chan struct{})
	go func() {
		a.s.Swap(second)
		close(swapped)
	}()
	for deadline := time.Now().Add(time.Minute); a.s.deviceMu.TryRLock(); a.s.deviceMu.RUnlock() {
		if time.Now().After(deadline) {
			t.Fatal("the exchange does not wait")
		}
		time.Sleep(time.Millisecond)
	}
	a.write(2, 2, 2)
	a.read(3, 2)
	for i := range uint64(20) {
		b.write(i, 1, 1)
		b.wantReply(i, 0)
	}
	if a.answered(10 * time.Millisecond) {
		t.Error("a request was answered during the exchange")
	}
	close(h.release)
	<-swapped
	for range 3 {
		if _, errno, _ := a.reply(); errno != 0 {
			t.Error(errno)
		}
	}
	if !first.survives(t, 1, 1) || !second.survives(t, 2, 2) {
		t.Error("a write is not on the device that it was for")
	}
}

// TestCloseWaitsForCommits: requests that were taken are answered before Close returns, and the last volume that goes
// takes the workers with it.
func TestCloseWaitsForCommits(t *testing.T) {
	h := newHeld()
	dev := newVolatileDevice(64 * pageSize)
	dev.sync = func() error { h.wait(); return nil }
	c := connect(t, dev)
	c.write(1, 1, 1)
	<-h.entered
	closed := make(chan struct{})
	go func() {
		_ = c.s.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Fatal("closed with a write that is not answered")
	case <-time.After(20 * time.Millisecond):
	}
	close(h.release)
	<-closed
	if !c.answered(0) {
		t.Fatal("closed, and a write that was taken is not answered")
	}
	c.wantReply(1, 0)
	c.write(2, 1, 2) // waits for the next server
	if c.answered(10 * time.Millisecond) {
		t.Error("a closed server answers")
	}
	sharedWorkers.mu.Lock()
	defer sharedWorkers.mu.Unlock()
	if sharedWorkers.pool != nil {
		t.Error("without a volume there are workers")
	}
}

// TestLimitsOfWorkers: a write that waits for its turn is durable all the same, and is answered when limits go.
func TestLimitsOfWorkers(t *testing.T) {
	dev := newVolatileDevice(64 * pageSize)
	c := connect(t, dev, func(cfg *Config) { cfg.Limits = Limits{OperationsPerSecond: 1} })
	const writes = 20
	for i := range uint64(writes) {
		c.write(i, int64(i), 7)
	}
	c.read(100, 1)
	c.send(request(opFsync, 101, fileNode, make([]byte, fsyncInSize)))
	answered := map[uint64]bool{}
	take := func() {
		unique, errno, _ := c.reply()
		if want := map[bool]unix.Errno{true: unix.ENOSYS}[unique == 101]; errno != want {
			t.Errorf("request %d: %v", unique, errno)
		}
		answered[unique] = true
	}
	for !answered[101] {
		take() // on a slow machine a write may have had its turn
	}
	if len(answered) > writes/2 {
		t.Errorf("%d requests were answered at once, at one a second", len(answered))
	}
	for i := range int64(writes) {
		if !dev.survives(t, i, 7) {
			t.Errorf("write %d, whose reply waits, is not on the disk", i)
		}
	}
	c.s.SetLimits(Limits{})
	for len(answered) < writes+2 {
		take()
	}
}
