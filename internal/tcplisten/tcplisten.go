package tcplisten

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/descriptors"
)

// Bounds of a port's connections, where Options say nothing. They are less where the process may have few descriptors.
const (
	DefaultWaiting  = 256
	DefaultAdmitted = 1024
)

// ErrFull is a caller that may call and finds the port's connections taken. It may call again.
var ErrFull = errors.New("too many connections")

// Options are the bounds of a port.
type Options struct {
	// Port is its name in metrics.
	Port string
	// Waiting and Admitted bound the connections; zero means the defaults.
	Waiting, Admitted int
	// Patience is how long a connection may wait to be admitted; zero: without limit, because the server itself bounds it.
	Patience time.Duration
	// UserTimeout is the connection's TCP_USER_TIMEOUT; zero leaves the system's. A server that would set it on a TCP
	// connection does not find one under this package's.
	UserTimeout time.Duration
}

// Listener is a net.Listener with bounds. Use New.
type Listener struct {
	net.Listener
	opts    Options
	dropped func(reason string)

	mu       sync.Mutex
	waiting  []*Conn // in the order in which they came
	admitted int
}

// New puts the bounds before a listener.
func New(l net.Listener, o Options) *Listener {
	if o.Waiting == 0 {
		o.Waiting = DefaultWaiting
	}
	if o.Admitted == 0 {
		o.Admitted = DefaultAdmitted
	}
	o.Waiting, o.Admitted = descriptors.ForPort(o.Waiting), descriptors.ForPort(o.Admitted)
	return &Listener{Listener: l, opts: o, dropped: countDrops(o.Port)}
}

// Conn is a connection that a Listener accepted.
type Conn struct {
	net.Conn
	l      *Listener
	source netip.Prefix
	timer  *time.Timer // nil without Patience

	state state // guarded by l.mu
}

type state int

const (
	stateWaiting state = iota
	stateAdmitted
	stateGone
)

// Accept implements net.Listener. The connection is waiting.
func (l *Listener) Accept() (net.Conn, error) {
	inner, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	setUserTimeout(inner, l.opts.UserTimeout)
	c := &Conn{Conn: inner, l: l, source: sourceOf(inner.RemoteAddr())}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = append(l.waiting, c)
	if len(l.waiting) > l.opts.Waiting {
		l.dropLocked(l.crowdLocked(), dropCrowd)
	}
	if l.opts.Patience > 0 && c.state == stateWaiting {
		c.timer = time.AfterFunc(l.opts.Patience, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if c.state == stateWaiting {
				l.dropLocked(c, dropSilent)
			}
		})
	}
	connections.WithLabelValues(l.opts.Port).Inc()
	return c, nil
}

// Close implements net.Listener. Waiting connections end, too: a server that stops waits for handshakes that are under
// way, and these would not end before their time.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.waiting) > 0 {
		c := l.waiting[0]
		l.leaveLocked(c)
		_ = c.Conn.Close()
	}
	return err
}

// crowdLocked is the oldest waiting connection of the source that has the most of them.
func (l *Listener) crowdLocked() *Conn {
	count := map[netip.Prefix]int{}
	most := 0
	for _, c := range l.waiting {
		count[c.source]++
		most = max(most, count[c.source])
	}
	return l.waiting[slices.IndexFunc(l.waiting, func(c *Conn) bool { return count[c.source] == most })]
}

func (l *Listener) dropLocked(c *Conn, reason string) {
	l.leaveLocked(c)
	l.dropped(reason)
	// Without waiting for a server that is about to write. What Close says of a connection that is given up is of no use.
	_ = c.Conn.Close()
}

// leaveLocked takes a connection out of the account.
func (l *Listener) leaveLocked(c *Conn) {
	switch c.state {
	case stateWaiting:
		l.waiting = slices.DeleteFunc(l.waiting, func(w *Conn) bool { return w == c })
	case stateAdmitted:
		l.admitted--
	}
	if c.state != stateGone {
		connections.WithLabelValues(l.opts.Port).Dec()
	}
	c.state = stateGone
	if c.timer != nil {
		c.timer.Stop()
	}
}

// Admit says that the caller may call: the connection may stay. ErrFull says that there are too many of them, and
// net.ErrClosed that it is gone. Repeating it changes nothing.
func (c *Conn) Admit() error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	switch {
	case c.state == stateAdmitted:
		return nil
	case c.state == stateGone:
		return fmt.Errorf("port %s: %w", c.l.opts.Port, net.ErrClosed)
	case c.l.admitted >= c.l.opts.Admitted:
		c.l.dropped(dropFull)
		return fmt.Errorf("port %s: %w: %d are open", c.l.opts.Port, ErrFull, c.l.admitted)
	}
	c.l.waiting = slices.DeleteFunc(c.l.waiting, func(w *Conn) bool { return w == c })
	c.l.admitted++
	c.state = stateAdmitted
	if c.timer != nil {
		c.timer.Stop()
	}
	return nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.l.mu.Lock()
	c.l.leaveLocked(c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// sourceOf is what counts as one caller.
func sourceOf(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	address := tcp.AddrPort().Addr().Unmap()
	const network6 = 64
	bits := address.BitLen()
	if address.Is6() {
		bits = network6
	}
	p, err := address.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
