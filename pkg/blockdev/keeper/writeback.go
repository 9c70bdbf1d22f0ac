package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Writeback starts the writeback of files periodically (sync_file_range with SYNC_FILE_RANGE_WRITE), which bounds how
// long an unflushed write to a flush-mode volume stays in the page cache, where replication does not see it.
// Nothing becomes durable by it.
//
// It runs in the keeper's process and not in the one that serves the files: sync_file_range may wait for a page lock
// whose holder waits for the server, and a process that waits for itself does not end when it is killed. For the same
// reason each file has a goroutine of its own: one whose server is away holds up no other.
//
// A process that has a file of a FUSE mount open is slowed down when it starts a child: exec closes the child's copy,
// which waits for writeback, and the parent waits for the exec. With a server that is away, the keeper would stop. So
// the file is opened in a thread that has a descriptor table of its own, and no child inherits it.
//
// A file stays open between Add and Remove. Opening it for each round would be worse: closing a FUSE file with a
// writeback cache writes everything back and waits for it, under a lock that writers need. But an open file keeps its
// mount busy, so Remove has to come before the unmount.
type Writeback struct {
	interval time.Duration

	mu     sync.Mutex
	files  map[string]*writebackFile // guarded by mu
	closed bool                      // guarded by mu
}

type writebackFile struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when the file is closed
}

// NewWriteback returns a Writeback that visits each of its files once per interval. Close it.
func NewWriteback(interval time.Duration) *Writeback {
	return &Writeback{interval: interval, files: make(map[string]*writebackFile)}
}

// Add starts visiting the file at path. It is opened in the background, when its server answers; a file that cannot be
// opened is logged and tried again. Adding it twice is the same as once.
func (w *Writeback) Add(path string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("writeback is closed")
	}
	if _, ok := w.files[path]; ok {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	f := &writebackFile{cancel: cancel, done: make(chan struct{})}
	w.files[path] = f
	go func() {
		defer close(f.done)
		w.run(ctx, path)
	}()
	return nil
}

// Remove stops visiting the file and returns when it is closed, so that its mount can be unmounted. With an error,
// when ctx is done first: a system call is waiting for the file's server; it is closed when that answers, and Remove
// can be called again to wait for it. A path that was not added is not an error.
func (w *Writeback) Remove(ctx context.Context, path string) error {
	w.mu.Lock()
	f := w.files[path]
	w.mu.Unlock()
	if f == nil {
		return nil
	}
	f.cancel()
	select {
	case <-f.done:
	case <-ctx.Done():
		return fmt.Errorf("writeback of %q has not ended, its server does not answer: %w", path, ctx.Err())
	}
	w.mu.Lock()
	if w.files[path] == f {
		delete(w.files, path)
	}
	w.mu.Unlock()
	return nil
}

// Close removes all files and waits for them as Remove does.
func (w *Writeback) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	var paths []string
	for path, f := range w.files {
		f.cancel()
		paths = append(paths, path)
	}
	w.mu.Unlock()
	var errs []error
	for _, path := range paths {
		errs = append(errs, w.Remove(ctx, path))
	}
	return errors.Join(errs...)
}

// paths returns what is visited, sorted.
func (w *Writeback) paths() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(maps.Keys(w.files))
}

// run visits one file until ctx is done. Everything that can wait for the file's server happens in a thread of its own.
func (w *Writeback) run(ctx context.Context, path string) {
	visit := make(chan struct{})
	result := make(chan error)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		visitor(path, visit, result)
	}()
	t := time.NewTicker(w.interval)
	defer t.Stop()
	failed := false
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
			continue
		case <-t.C:
		}
		visit <- struct{}{}
		err := <-result
		if err != nil && !failed {
			klog.ErrorS(err, "Cannot start writeback, trying again", "path", path, "interval", w.interval)
		}
		failed = err != nil
	}
	close(visit)
	<-ended
}

// visitor starts the file's writeback for each visit, and ends with its thread. It must not do anything else with
// descriptors, not even log: the thread has standard input, output and error, and the file.
func visitor(path string, visit <-chan struct{}, result chan<- error) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	const firstAfterStderr = 3
	fd := -1
	private := unix.CloseRange(firstAfterStderr, math.MaxInt32, unix.CLOSE_RANGE_UNSHARE)
	for range visit {
		result <- func() (err error) {
			if private != nil {
				return fmt.Errorf("unshare the descriptor table: %w", private)
			}
			if fd < 0 {
				// Any open file will do; read-only says that nothing is written here. Not os.Open: it would register the file
				// with the runtime's poller, through a descriptor that does not exist here.
				if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
					fd = -1
					return err
				}
			}
			if err := unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WRITE); err != nil {
				unix.Close(fd) // the mount may have been replaced
				fd = -1
				return fmt.Errorf("sync_file_range: %w", err)
			}
			return nil
		}()
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}
