package blockdev

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ErrLocked is returned when another process of the kind has the pool.
var ErrLocked = errors.New("in use")

// locker takes the locks of a pool. It is an interface because a pool in memory has no files that flock could take.
type locker interface {
	// tryLock takes a lock, or fails with ErrLocked when another process has it. Closing releases it.
	tryLock(path string) (io.Closer, error)
	// tryLockPatiently is tryLock that fails when another process still has the lock after lockPatience. The caller holds
	// no lock that others wait for.
	tryLockPatiently(path string) (io.Closer, error)
	// lock waits for a lock.
	lock(path string) (io.Closer, error)
}

func lockerFor(fs vfs.FS) locker {
	if vfs.Base(fs) == vfs.OS {
		return flocker{}
	}
	return memLocker{fs}
}

// flocker uses flock(2). The kernel releases a lock when its process ends, however it ends, so there is no stale
// lock. One may outlive a killed process by a moment: see lockPatience.
type flocker struct{}

// lockPatience bounds waiting for another process's lock. A process that was killed while it started a program may
// leave a child that has not reached execve(2) yet, and holds all descriptors, with their locks, until then: that is
// the time in which the kernel reads the program's first page. It is a variable for tests.
var lockPatience = 5 * time.Second

func (l flocker) tryLockPatiently(path string) (held io.Closer, err error) {
	err = pause.Poll(lockPatience, func(err error) bool { return errors.Is(err, ErrLocked) }, func() (err error) {
		held, err = l.tryLock(path)
		return err
	})
	return held, err
}

func (flocker) tryLock(path string) (io.Closer, error) {
	f, err := flock(path, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s is locked%s: %w; stop that process first", path, holder(path), ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	// For the message above; the lock does not depend on it.
	if err := f.Truncate(0); err == nil {
		_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	return f, nil
}

func (flocker) lock(path string) (io.Closer, error) {
	f, err := flock(path, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func flock(path string, how int) (*os.File, error) {
	f, err := vfs.OpenRegular(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func holder(path string) string {
	const maxBytes = 64 // it is one number
	text, err := vfs.ReadFile(vfs.OS, path, maxBytes)
	if pid := strings.TrimSpace(string(text)); err == nil && pid != "" {
		return " by process " + pid
	}
	return ""
}

// memLocker locks between the users of one FS value in this process.
type memLocker struct{ fs vfs.FS }

type memLockKey struct {
	fs   vfs.FS
	path string
}

var memLocks = struct {
	sync.Mutex
	released *sync.Cond
	held     map[memLockKey]bool
}{held: map[memLockKey]bool{}}

func init() { memLocks.released = sync.NewCond(&memLocks.Mutex) }

type memLock struct {
	key  memLockKey
	once sync.Once
}

func (l *memLock) Close() error {
	l.once.Do(func() {
		memLocks.Lock()
		defer memLocks.Unlock()
		delete(memLocks.held, l.key)
		memLocks.released.Broadcast()
	})
	return nil
}

func (m memLocker) tryLock(path string) (io.Closer, error) {
	memLocks.Lock()
	defer memLocks.Unlock()
	key := memLockKey{m.fs, path}
	if memLocks.held[key] {
		return nil, fmt.Errorf("%s is locked by this process: %w", path, ErrLocked)
	}
	memLocks.held[key] = true
	return &memLock{key: key}, nil
}

// tryLockPatiently does not wait: no process dies that has a lock of memory.
func (m memLocker) tryLockPatiently(path string) (io.Closer, error) { return m.tryLock(path) }

func (m memLocker) lock(path string) (io.Closer, error) {
	memLocks.Lock()
	defer memLocks.Unlock()
	key := memLockKey{m.fs, path}
	for memLocks.held[key] {
		memLocks.released.Wait()
	}
	memLocks.held[key] = true
	return &memLock{key: key}, nil
}
