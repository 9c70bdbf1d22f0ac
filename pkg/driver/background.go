package driver

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

const (
	// workWaitLimit is how long a call waits for its work if the caller has more patience.
	workWaitLimit = time.Minute
	// workWaitMargin is left of the caller's deadline to answer in.
	workWaitMargin = time.Second
	// workFailureLife is how long the failure of work that nobody waited for is kept for the next call. Kubelet calls again within two minutes.
	workFailureLife = 10 * time.Minute
)

// background does the work of calls that can take longer than any call may: checking, making, mounting and growing a file system. A limit
// on such work would end it, and the repetition of the call would begin it anew, for ever. Here the call ends, with Aborted, and the work
// goes on; a repetition of the call waits for the work that it finds, and has its result.
//
// It is safe for concurrent use.
type background struct {
	ctx    context.Context
	cancel context.CancelFunc

	mu    sync.Mutex
	works map[string]*work // by volume
}

// work is what one call has begun. It holds the volume's guard until it is done.
type work struct {
	operation string
	key       string // the call's arguments: a call with others does not wait for it
	began     time.Time
	step      atomic.Value // string
	cancel    context.CancelFunc
	waited    bool // a call waits for it; guarded by background.mu
	done      chan struct{}

	// Valid when done is closed.
	err   error
	ended time.Time
}

func newBackground() *background {
	b := &background{works: map[string]*work{}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// doing notes what the work of ctx is at, for messages. Outside of work it does nothing.
func doing(ctx context.Context, step string) {
	if w, ok := ctx.Value(workKey{}).(*work); ok {
		w.step.Store(step)
	}
}

type workKey struct{}

// run runs f for a volume, or waits for the f that an earlier call with the same key has begun and left. f gets a context that does not end
// with the caller's, but with stop and close. guard enters the volume for f, and fails while other work is under way; what it returns is
// called when f has ended. An error is a status error.
func (b *background) run(ctx context.Context, id, operation, key string, guard func() (done func(), err error), f func(context.Context) error) error {
	w, err := b.begin(id, operation, key, guard, f)
	if err != nil {
		return err
	}
	defer b.leave(w)
	ctx, cancel := context.WithTimeout(ctx, workWaitLimit)
	defer cancel()
	if deadline, ok := ctx.Deadline(); ok {
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-workWaitMargin))
		defer cancel()
	}
	select {
	case <-w.done:
	case <-ctx.Done():
		step, _ := w.step.Load().(string)
		return status.Errorf(codes.Aborted, "volume %s: %s is still at work, for %v now (%s), and goes on; call again", id, operation, time.Since(w.began).Round(time.Second), step)
	}
	b.forget(id, w)
	return w.err
}

// leave ends the waiting of a call.
func (b *background) leave(w *work) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.waited = false
}

// begin returns the work that a call has to wait for.
func (b *background) begin(id, operation, key string, guard func() (func(), error), f func(context.Context) error) (*work, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w := b.works[id]; w != nil && w.operation == operation && w.key == key && !w.waited && !w.stale() {
		w.waited = true
		return w, nil
	}
	done, err := guard()
	if err != nil {
		return nil, err
	}
	w := &work{operation: operation, key: key, began: time.Now(), waited: true, done: make(chan struct{})}
	w.step.Store("begun")
	ctx, cancel := context.WithCancel(context.WithValue(b.ctx, workKey{}, w))
	w.cancel = cancel
	b.works[id] = w
	go func() {
		defer cancel()
		err := f(ctx)
		if err != nil && ctx.Err() != nil {
			err = status.Errorf(codes.Aborted, "volume %s: %s was interrupted: %s; call again", id, operation, status.Convert(err).Message())
		}
		w.err, w.ended = err, time.Now()
		if took := w.ended.Sub(w.began); took > workWaitLimit {
			klog.InfoS("Work that took long is done", "volume", id, "operation", operation, "took", took.Round(time.Second), "err", w.err)
		}
		done()
		close(w.done)
	}()
	return w, nil
}

// stale reports a result that answers no later call: a failure of long ago, and a success, which the next call finds out for itself.
func (w *work) stale() bool {
	select {
	case <-w.done:
		return w.err == nil || time.Since(w.ended) > workFailureLife
	default:
		return false
	}
}

func (b *background) forget(id string, w *work) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.works[id] == w {
		delete(b.works, id)
	}
}

// stop ends the work for a volume that no call waits for, and forgets its result. It waits for the end as long as run does: a program that
// waits in the kernel for its device does not end when it is killed.
func (b *background) stop(ctx context.Context, id string) {
	b.mu.Lock()
	w := b.works[id]
	b.mu.Unlock()
	if w == nil || b.isWaited(w) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, workWaitLimit)
	defer cancel()
	w.cancel()
	select {
	case <-w.done:
		b.forget(id, w)
	case <-ctx.Done():
	}
}

func (b *background) isWaited(w *work) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return w.waited
}

// close ends all work; the CO's next call begins it anew.
func (b *background) close() error {
	b.cancel()
	b.mu.Lock()
	var all []*work
	for _, w := range b.works {
		all = append(all, w)
	}
	b.mu.Unlock()
	for _, w := range all {
		<-w.done
	}
	return nil
}
