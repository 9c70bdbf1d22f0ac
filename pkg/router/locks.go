package router

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// locks are mutexes by name that can be given up waiting for.
type locks struct {
	mu   sync.Mutex
	held map[string]chan struct{} // closed when the holder is done
}

func newLocks() *locks { return &locks{held: map[string]chan struct{}{}} }

// try takes a lock, or reports Aborted.
func (l *locks) try(name string) (unlock func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[name] != nil {
		return nil, status.Errorf(codes.Aborted, "%s: another call for it is still running; call again later", name)
	}
	return l.take(name), nil
}

// wait takes a lock as soon as it is free, as long as ctx is not done.
func (l *locks) wait(ctx context.Context, name string) (unlock func(), err error) {
	for {
		l.mu.Lock()
		held := l.held[name]
		if held == nil {
			defer l.mu.Unlock()
			return l.take(name), nil
		}
		l.mu.Unlock()
		select {
		case <-held:
		case <-ctx.Done():
			return nil, status.Errorf(codes.Aborted, "%s: other calls for it are still running; call again later", name)
		}
	}
}

// take is called with mu held.
func (l *locks) take(name string) (unlock func()) {
	done := make(chan struct{})
	l.held[name] = done
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.held, name)
		close(done)
	}
}
