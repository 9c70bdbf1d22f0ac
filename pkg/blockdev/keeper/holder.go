package keeper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
)

const (
	// putTimeout bounds one request of the background loop.
	putTimeout = 5 * time.Second

	minRetryDelay = 20 * time.Millisecond
	maxRetryDelay = 2 * time.Second
)

// Entry is what a keeper holds under a name.
type Entry struct {
	Name string
	Meta []byte
	// File is a duplicate, the receiver's to close.
	File *os.File
}

// Holder keeps a keeper informed: everything that was added is put again whenever the connection to the keeper is
// lost and comes back, so that a keeper that was restarted holds it all. It is the part of the process that serves.
//
// It holds a duplicate of each descriptor, so that files may be closed after Add.
type Holder struct {
	path string

	cancel context.CancelFunc
	ctx    context.Context
	wg     sync.WaitGroup

	// talk is held while a request that depends on entries is made, so that an old PUT of the background loop cannot come
	// after a DROP. It comes before mu.
	talk sync.Mutex

	mu      sync.Mutex
	entries map[string]*held    // guarded by mu
	dropped map[string]struct{} // names whose DROP was not confirmed; guarded by mu
}

type held struct {
	meta []byte
	// fd is owned. It is no os.File: package os would poll a descriptor that does not block, and be woken by every request
	// to the volume that it leads to.
	fd int
}

// NewHolder starts a Holder for the keeper at socketPath, which need not be there yet. Close it.
func NewHolder(socketPath string) *Holder {
	ctx, cancel := context.WithCancel(context.Background())
	h := &Holder{
		path:    socketPath,
		ctx:     ctx,
		cancel:  cancel,
		entries: make(map[string]*held),
		dropped: make(map[string]struct{}),
	}
	h.wg.Go(h.run)
	return h
}

// Close stops keeping the keeper informed and closes the Holder's duplicates. What the keeper holds stays there.
func (h *Holder) Close() error {
	h.cancel()
	h.wg.Wait()
	h.talk.Lock()
	defer h.talk.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, e := range h.entries {
		unix.Close(e.fd)
		delete(h.entries, name)
	}
	return nil
}

// Add puts name into the set and returns when the keeper has confirmed that it holds it. It tries again, while the
// keeper is away, until ctx is done. After an error the entry stays in the set and is put when the keeper comes back:
// the volume can be served meanwhile, but does not outlive this process yet.
//
// An entry of the same name is replaced. fd stays the caller's.
func (h *Holder) Add(ctx context.Context, name string, meta []byte, fd *os.File) error {
	if _, err := encodeRequest(request{op: opPut, name: name, meta: meta}); err != nil {
		return fmt.Errorf("keeper: %w", err)
	}
	if name == "" {
		return errors.New("keeper: an entry needs a name")
	}
	e := &held{meta: append([]byte(nil), meta...)}
	err := withFD(fd, func(raw int) error {
		dup, err := unix.FcntlInt(uintptr(raw), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("keeper: duplicate the descriptor of %q: %w", name, err)
		}
		e.fd = dup
		return nil
	})
	if err != nil {
		return err
	}
	h.talk.Lock()
	h.mu.Lock()
	if h.ctx.Err() != nil {
		h.mu.Unlock()
		h.talk.Unlock()
		unix.Close(e.fd)
		return errors.New("keeper: the holder is closed")
	}
	old := h.entries[name]
	h.entries[name] = e
	delete(h.dropped, name)
	h.mu.Unlock()
	if old != nil {
		unix.Close(old.fd)
	}
	h.talk.Unlock()

	return h.retry(ctx, func() error {
		c, err := Dial(h.path)
		if err != nil {
			return err
		}
		defer c.Close()
		return h.putIfCurrent(ctx, c, name, e)
	})
}

// Remove takes name out of the set and returns when the keeper has closed it, or with an error when ctx is done.
// After an error it is out of the set, and dropped from the keeper when that comes back.
func (h *Holder) Remove(ctx context.Context, name string) error {
	h.talk.Lock()
	h.mu.Lock()
	e := h.entries[name]
	delete(h.entries, name)
	h.dropped[name] = struct{}{}
	h.mu.Unlock()
	h.talk.Unlock()
	if e != nil {
		unix.Close(e.fd)
	}
	return h.retry(ctx, func() error {
		c, err := Dial(h.path)
		if err != nil {
			return err
		}
		defer c.Close()
		return h.dropIfCurrent(ctx, c, name)
	})
}

// Fetch returns everything that the keeper holds, whether or not it is in the Holder's set: what a process that has
// just started calls to adopt what its predecessor left. The files are the caller's to close, also of what it does
// not want. It tries once; ctx bounds it.
func (h *Holder) Fetch(ctx context.Context) ([]Entry, error) {
	c, err := Dial(h.path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	names, err := c.List(ctx)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, name := range names {
		meta, f, err := c.Get(ctx, name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			for _, e := range entries {
				e.File.Close()
			}
			return nil, err
		}
		entries = append(entries, Entry{Name: name, Meta: meta, File: f})
	}
	return entries, nil
}

// putIfCurrent puts an entry unless it was removed or replaced meanwhile.
func (h *Holder) putIfCurrent(ctx context.Context, c *Client, name string, e *held) error {
	h.talk.Lock()
	defer h.talk.Unlock()
	h.mu.Lock()
	current := h.entries[name] == e
	h.mu.Unlock()
	if !current {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	return c.put(ctx, name, e.meta, e.fd)
}

func (h *Holder) dropIfCurrent(ctx context.Context, c *Client, name string) error {
	h.talk.Lock()
	defer h.talk.Unlock()
	h.mu.Lock()
	_, current := h.dropped[name]
	h.mu.Unlock()
	if !current {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	if err := c.Drop(ctx, name); err != nil {
		return err
	}
	h.mu.Lock()
	delete(h.dropped, name)
	h.mu.Unlock()
	return nil
}

func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = minRetryDelay
	b.MaxInterval = maxRetryDelay
	return b
}

// retry calls f until it succeeds, ctx or the Holder is done, or the keeper says that it never will.
func (h *Holder) retry(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	b := newBackOff()
	for {
		err := f()
		if err == nil || errors.Is(err, ErrFull) {
			return err
		}
		if !pause.For(ctx, b.NextBackOff()) {
			return errors.Join(ctx.Err(), err)
		}
	}
}

// run tells a keeper that came back what it should hold.
func (h *Holder) run() {
	keepSession(h.ctx, h.session, func(err error) {
		klog.ErrorS(err, "Keeper is away: volumes are served, but would not outlive this process", "socket", h.path)
	}, func() {
		klog.InfoS("Keeper is back and holds everything again", "socket", h.path)
	})
}

// keepSession runs one session after another until ctx is done. A session holds a connection open to notice the
// keeper's end, and calls ready when the keeper knows everything. away is called when there is no keeper any more,
// back when there is one again.
func keepSession(ctx context.Context, session func(ready func()) error, away func(error), back func()) {
	b := newBackOff()
	lost := false
	for ctx.Err() == nil {
		err := session(func() {
			b.Reset()
			if lost {
				back()
			}
			lost = false
		})
		if ctx.Err() != nil {
			return
		}
		if !lost {
			away(err)
			lost = true
		}
		pause.For(ctx, b.NextBackOff())
	}
}

// session connects, puts and drops what has to be, calls ready, and returns when the connection is lost.
func (h *Holder) session(ready func()) error {
	c, err := Dial(h.path)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(h.ctx, func() { c.Close() })()

	h.mu.Lock()
	puts := make(map[string]*held, len(h.entries))
	for name, e := range h.entries {
		puts[name] = e
	}
	drops := make([]string, 0, len(h.dropped))
	for name := range h.dropped {
		drops = append(drops, name)
	}
	h.mu.Unlock()
	for _, name := range drops {
		if err := h.dropIfCurrent(h.ctx, c, name); err != nil {
			return err
		}
	}
	for name, e := range puts {
		if err := h.putIfCurrent(h.ctx, c, name, e); err != nil {
			return err
		}
	}
	ready()
	return c.waitClosed()
}

// waitClosed returns when the connection ends. The keeper sends nothing that was not asked for.
func (c *Client) waitClosed() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.c.SetDeadline(time.Time{}); err != nil {
		return err
	}
	var b [1]byte
	if n, err := c.c.Read(b[:]); err != nil {
		return unexpected(err)
	} else if n > 0 {
		return fmt.Errorf("%w: an answer without a question", errMalformed)
	}
	return nil
}

func closeFD(fd int) { unix.Close(fd) }
