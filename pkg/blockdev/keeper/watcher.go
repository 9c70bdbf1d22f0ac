package keeper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// Watcher tells a keeper which files it has to start the writeback of, and tells it again when it was away. It is
// Writeback as the driver sees it: the visits are made by the keeper, whose process nothing restarts.
type Watcher struct {
	path   string
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // has a message when files have one that the keeper may not know

	// talk is held while a request that depends on files is made, so that an old WATCH cannot come after an UNWATCH. It
	// comes before mu.
	talk  sync.Mutex
	mu    sync.Mutex
	files map[string]bool // whether the keeper was told; guarded by mu
}

// NewWatcher starts a Watcher for the keeper at socketPath, which need not be there yet. Close it.
func NewWatcher(socketPath string) *Watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{path: socketPath, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), files: make(map[string]bool)}
	w.wg.Go(w.run)
	return w
}

// Close stops telling the keeper. What it was told stays in force there: the files are in use whether or not the driver
// runs.
func (w *Watcher) Close() error {
	w.cancel()
	w.wg.Wait()
	return nil
}

// Add has the file at path visited, as soon as the keeper can be told. Adding it twice is the same as once. The error
// is for a path that no keeper would take.
func (w *Watcher) Add(path string) error {
	if len(path) > maxPathBytes || len(path) == 0 || path[0] != '/' {
		return fmt.Errorf("keeper: %q is not an absolute path of at most %d bytes", path, maxPathBytes)
	}
	w.mu.Lock()
	if _, ok := w.files[path]; !ok {
		w.files[path] = false
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return nil
}

// Remove returns when the keeper has closed the file, so that its mount can be unmounted. With an error, when it has
// not, because its server does not answer, or when the keeper does not answer; Remove can be repeated. A keeper that
// does not run has no file open.
func (w *Watcher) Remove(ctx context.Context, path string) error {
	w.talk.Lock()
	defer w.talk.Unlock()
	w.mu.Lock()
	delete(w.files, path)
	w.mu.Unlock()
	c, err := Dial(w.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	return c.Unwatch(ctx, path)
}

// run tells a keeper that came back what it has to do.
func (w *Watcher) run() {
	keepSession(w.ctx, w.session, func(err error) {
		klog.ErrorS(err, "Keeper is away: unflushed writes are replicated late", "socket", w.path)
	}, func() {})
}

// session connects, tells all files, then each one that is added, and returns when the connection is lost.
func (w *Watcher) session(ready func()) error {
	c, err := Dial(w.path)
	if err != nil {
		return err
	}
	defer c.Close()
	// A second connection notices the end while the first one waits for something to say.
	end, err := Dial(w.path)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- end.waitClosed() }()
	defer func() {
		end.Close()
		<-ended
	}()

	w.mu.Lock()
	for path := range w.files {
		w.files[path] = false
	}
	w.mu.Unlock()
	for told := false; ; told = true {
		if err := w.tell(c); err != nil {
			return err
		}
		if !told {
			ready()
		}
		select {
		case <-w.wake:
		case <-w.ctx.Done():
			return w.ctx.Err()
		case err := <-ended:
			ended <- err
			return err
		}
	}
}

// tell makes the keeper watch each file that it was not told of yet.
func (w *Watcher) tell(c *Client) error {
	w.talk.Lock()
	defer w.talk.Unlock()
	w.mu.Lock()
	var untold []string
	for path, told := range w.files {
		if !told {
			untold = append(untold, path)
		}
	}
	w.mu.Unlock()
	for _, path := range untold {
		ctx, cancel := context.WithTimeout(w.ctx, putTimeout)
		err := c.Watch(ctx, path)
		cancel()
		if err != nil {
			return err
		}
		w.mu.Lock()
		if _, ok := w.files[path]; ok {
			w.files[path] = true
		}
		w.mu.Unlock()
	}
	return nil
}
