package replication

import (
	"context"
	"errors"
	"sync"
)

// streams are the two streams of a group: the one that its peer opened, as primary, and the one that this site opened.
// There is at most one of each. It is safe for concurrent use. Its lock comes before Group.mu: who may open a stream is
// decided with both held, so a change of role or peer comes wholly before a stream or wholly after it.
type streams struct {
	mu sync.Mutex
	// incoming is the peer's stream; nil without one.
	incoming *receiver
	// refusals is how many callers of refuse keep the peer's streams out.
	refusals int

	// holds is how many callers of hold keep this site from opening a stream.
	holds int
	// cancel ends this site's stream, nil without one; done is closed when it has ended.
	cancel context.CancelFunc
	done   chan struct{}
}

// errReplaced ends a stream when the primary has opened another, or the group's role is changing.
var errReplaced = errors.New("another stream or a change of role ended this one")

// accept makes r the only stream of the peer. It ends the one before, whose connection may be dead without
// a sign of it, and waits for that. admit says whether the stream may begin, or end another.
func (s *streams) accept(r *receiver, admit func() error) error {
	for {
		old, err := s.tryAccept(r, admit)
		if old == nil {
			return err
		}
		old.cancel()
		<-old.done
	}
}

// tryAccept is accept without waiting: it returns the stream that has to end first.
func (s *streams) tryAccept(r *receiver, admit func() error) (*receiver, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := admit(); err != nil {
		return nil, err
	}
	if s.incoming != nil {
		return s.incoming, nil
	}
	if s.refusals > 0 {
		return nil, errReplaced
	}
	s.incoming = r
	return nil, nil
}

// left notes that the peer's stream has ended.
func (s *streams) left(r *receiver) {
	s.mu.Lock()
	s.incoming = nil
	s.mu.Unlock()
	close(r.done)
}

// refuse keeps streams of the peer out until allow is called, and ends the one there is.
func (s *streams) refuse() (allow func()) {
	s.mu.Lock()
	s.refusals++
	s.mu.Unlock()
	s.endIncoming()
	return func() {
		s.mu.Lock()
		s.refusals--
		s.mu.Unlock()
	}
}

// endIncoming ends the peer's stream, if there is one, and waits for it. The peer may open another.
func (s *streams) endIncoming() {
	s.mu.Lock()
	r := s.incoming
	s.mu.Unlock()
	if r != nil {
		r.cancel()
		<-r.done
	}
}

// open begins this site's stream. It returns the stream's context and whom to call, which target says; no peer while
// there is none to call, or another goroutine holds the stream.
func (s *streams) open(ctx context.Context, target func() (peer, address string)) (_ context.Context, peer,
	address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.holds > 0 {
		return nil, "", ""
	}
	if peer, address = target(); peer == "" {
		return nil, "", ""
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.done = make(chan struct{})
	return ctx, peer, address
}

// closed notes that this site's stream has ended.
func (s *streams) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel()
	s.cancel = nil
	close(s.done)
}

// hold ends this site's stream, waits for that, and keeps it closed until release is called.
func (s *streams) hold() (release func()) {
	s.mu.Lock()
	s.holds++
	cancel, done := s.cancel, s.done
	s.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
	return func() {
		s.mu.Lock()
		s.holds--
		s.mu.Unlock()
	}
}

// restart ends this site's stream; the caller sees to it that another begins.
func (s *streams) restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cancel != nil {
		s.cancel()
	}
}
