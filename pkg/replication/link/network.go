package link

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Network connects named sites in one process, for tests and the oracle: each site's Dialer reaches the Handlers of the
// others, over streams as Pipe makes them. A site can be cut off and healed. Its methods are safe for concurrent use.
// Use NewNetwork.
type Network struct {
	keep func(inFlight int) int

	mu       sync.Mutex
	handlers map[string]Handler
	cut      map[string]bool
	closed   bool
	streams  []connected    // open ones, oldest first
	running  sync.WaitGroup // handlers
}

type connected struct {
	*pipe
	from, to string // sites
}

// NewNetwork returns a network without sites. keep says, for each direction of each stream that is cut, how many of its
// messages in flight still arrive; nil means none. It is called for the oldest stream first, and for its direction to
// the secondary first, so that randomness from a seed is used in the same order each time. It must not use the network.
func NewNetwork(keep func(inFlight int) int) *Network {
	return &Network{keep: keep, handlers: map[string]Handler{}, cut: map[string]bool{}}
}

// Attach makes a site's handler reachable, in place of an earlier one. Streams of the earlier one stay.
func (n *Network) Attach(site string, h Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handlers[site] = h
}

// Detach makes a site's handler unreachable, as if its process had died: its streams are cut. Dials of the site itself
// still work; its own process is who makes them.
func (n *Network) Detach(site string) {
	n.mu.Lock()
	delete(n.handlers, site)
	hit := n.take(func(c connected) bool { return c.to == site })
	n.mu.Unlock()
	n.cutAll(hit)
}

// Cut cuts a site off from all others until Heal: its streams break, in both directions, and dials from and to it fail.
func (n *Network) Cut(site string) {
	n.mu.Lock()
	n.cut[site] = true
	hit := n.take(func(c connected) bool { return c.from == site || c.to == site })
	n.mu.Unlock()
	n.cutAll(hit)
}

// Heal undoes Cut. Streams that were cut stay so.
func (n *Network) Heal(site string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, site)
}

// Close cuts everything and returns when all handlers have returned.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	hit := n.take(func(connected) bool { return true })
	n.mu.Unlock()
	n.cutAll(hit)
	n.running.Wait()
}

// take removes the streams between sites that which accepts, and returns them. n.mu is held.
func (n *Network) take(which func(connected) bool) (hit []connected) {
	n.streams = slices.DeleteFunc(n.streams, func(c connected) bool {
		if !which(c) {
			return false
		}
		hit = append(hit, c)
		return true
	})
	return hit
}

func (n *Network) cutAll(hit []connected) {
	for _, c := range hit {
		c.cut(n.keep)
	}
}

// Dialer returns the Dialer of a site. Addresses mean nothing to it.
func (n *Network) Dialer(site string) Dialer { return networkDialer{n, site} }

type networkDialer struct {
	network *Network
	site    string
}

func (d networkDialer) Dial(ctx context.Context, peer, address string) (Stream, error) {
	fail := func(format string, args ...any) (Stream, error) {
		return nil, fmt.Errorf("dial site %s at %s: %w", peer, address, status.Errorf(codes.Unavailable, format, args...))
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial site %s at %s: %w", peer, address, err)
	}
	n := d.network
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.handlers[peer]
	switch {
	case n.closed:
		return fail("the network is closed")
	case n.cut[peer] || n.cut[d.site]:
		return fail("link cut")
	case h == nil:
		return fail("no listener")
	}
	p := newPipe(d.site)
	n.streams = append(n.streams, connected{p, d.site, peer})
	n.running.Go(func() {
		err := h.Replicate((*pipePeer)(p))
		n.mu.Lock()
		n.take(func(c connected) bool { return c.pipe == p })
		n.mu.Unlock()
		p.finish(err)
	})
	return p, nil
}
