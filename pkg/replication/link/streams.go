package link

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// DefaultMaxStreams is how many streams one peer may have open: more than it may have groups, since a new stream of a
// group replaces an old one that may not have ended.
const DefaultMaxStreams = 1024

// Before the first message of a stream arrives, the stream belongs to no group, and gRPC may hold a message of the
// largest size for it.
const (
	// maxGreeting is how many streams of one peer are read from at a time until their Hello is here.
	maxGreeting = 8
	// maxWaiting is how many streams of one peer may be waiting for that or in it. A site that comes back opens those
	// of all its groups at once; what is turned away calls again.
	maxWaiting = 64
)

// errTooMany is a stream that its peer may open when others of it have ended.
var errTooMany = errors.New("too many streams")

// streams are those that peers have open at a server. It is safe for concurrent use.
type streams struct {
	limit int
	mu    sync.Mutex
	peers map[string]*peerStreams
}

type peerStreams struct {
	open, waiting int
	greeting      chan struct{}
}

func newStreams(limit int) *streams { return &streams{limit: limit, peers: map[string]*peerStreams{}} }

// openStream is one stream that counts.
type openStream struct {
	s    *streams
	peer *peerStreams
	once sync.Once
}

// open counts a stream of a peer and waits until its first message may be read. errTooMany: the peer has as many as it
// may.
func (s *streams) open(ctx context.Context, peer string) (*openStream, error) {
	p, err := s.enter(peer)
	if err != nil {
		return nil, err
	}
	select {
	case p.greeting <- struct{}{}:
		return &openStream{s: s, peer: p}, nil
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		p.open--
		p.waiting--
		return nil, ctx.Err()
	}
}

func (s *streams) enter(peer string) (*peerStreams, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.peers[peer]
	if p == nil {
		p = &peerStreams{greeting: make(chan struct{}, maxGreeting)}
		s.peers[peer] = p // peers are configured: there are few names
	}
	switch {
	case p.open >= s.limit:
		return nil, fmt.Errorf("%w: %d are open, the limit is %d (--peer-max-streams)", errTooMany, p.open, s.limit)
	case p.waiting >= maxWaiting:
		return nil, fmt.Errorf("%w: %d have not said yet which group they are about; call again", errTooMany, p.waiting)
	}
	p.open++
	p.waiting++
	return p, nil
}

// greeted says that the first message is here, or will not come. It may be called again and again.
func (o *openStream) greeted() {
	o.once.Do(func() {
		<-o.peer.greeting
		o.s.mu.Lock()
		defer o.s.mu.Unlock()
		o.peer.waiting--
	})
}

func (o *openStream) close() {
	o.greeted()
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.peer.open--
}
