// Package linktest puts a bad network between two ends of a TCP connection: a Proxy delays, throttles, stalls and cuts
// what passes. It is for tests and demonstrations on one machine, where netem is not available.
//
// Delay keeps throughput: what is read is put into a queue with the time at which it is due, so a hundred chunks can be
// on their way at once, as on a long line, where a sleep per read would make the line slow as well. The queue is
// bounded (64 MiB each way), then the sender waits.
//
// It is not a packet-level simulation: no loss within a connection, no reordering, no jitter.
//
// # Concurrency
//
// All methods of Proxy are safe for concurrent use.
package linktest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	chunkBytes = 32 << 10
	queueBytes = 64 << 20
)

// Proxy forwards TCP connections to a target. Use NewProxy.
type Proxy struct {
	target   string
	listener net.Listener
	ctx      context.Context
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	delay   time.Duration
	limiter *rate.Limiter // shared by all connections, one for each direction
	back    *rate.Limiter
	isCut   bool
	stalled chan struct{} // not nil while stalled; closed at its end
	conns   map[net.Conn]bool
}

// NewProxy listens at an address (host:port, port 0 for any) and forwards what comes to target.
func NewProxy(listenAddress, target string) (*Proxy, error) {
	lis, err := net.Listen("tcp", listenAddress)
	if err != nil {
		return nil, fmt.Errorf("proxy to %s: %w", target, err)
	}
	p := &Proxy{
		target: target, listener: lis, conns: map[net.Conn]bool{},
		limiter: rate.NewLimiter(rate.Inf, chunkBytes), back: rate.NewLimiter(rate.Inf, chunkBytes),
	}
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.running.Go(p.accept)
	return p, nil
}

// Addr is the address to dial instead of the target.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// SetDelay sets how much later everything arrives, in each direction, so half of what it adds to a round trip. It holds
// for what is read from now on. Nothing overtakes: after a smaller delay, what is behind waits for what is before it.
func (p *Proxy) SetDelay(oneWay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = oneWay
}

// SetBandwidth limits each direction, all connections together, to bytes per second; 0 is no limit.
func (p *Proxy) SetBandwidth(bytesPerSecond int64) {
	limit := rate.Inf
	if bytesPerSecond > 0 {
		limit = rate.Limit(bytesPerSecond)
	}
	p.limiter.SetLimit(limit)
	p.back.SetLimit(limit)
}

// Cut breaks all connections and refuses new ones until Heal. What is on its way is lost, and both ends learn of it.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = true
	p.breakAll()
}

// Stall lets nothing pass until Heal, while connections stay and none is refused: a line that died without a word.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stalled == nil {
		p.stalled = make(chan struct{})
	}
}

// Heal undoes Cut and Stall. What a stall held back goes on; what was cut stays so.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.isCut = false
	if p.stalled != nil {
		close(p.stalled)
		p.stalled = nil
	}
}

// Close breaks all connections, stops listening and returns when nothing of it runs any more.
func (p *Proxy) Close() error {
	p.stop()
	err := p.listener.Close()
	p.mu.Lock()
	p.isCut = true
	p.breakAll()
	p.mu.Unlock()
	p.running.Wait()
	return err
}

// breakAll resets all connections. p.mu is held.
func (p *Proxy) breakAll() {
	for c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset: what lies in socket buffers is lost too
		}
		_ = c.Close()
		delete(p.conns, c)
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the connection was gone before it was taken
		}
		p.running.Go(func() { p.serve(c) })
	}
}

// register reports false, and closes the connection, when the line is cut.
func (p *Proxy) register(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isCut {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *Proxy) serve(in net.Conn) {
	if !p.register(in) {
		return
	}
	var out net.Conn
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range []net.Conn{in, out} {
			if c != nil {
				delete(p.conns, c)
				_ = c.Close()
			}
		}
	}()
	var d net.Dialer
	out, err := d.DialContext(p.ctx, "tcp", p.target)
	if err != nil || !p.register(out) {
		return
	}
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() { p.forward(ctx, cancel, in, out, p.limiter) })
	both.Go(func() { p.forward(ctx, cancel, out, in, p.back) })
	both.Wait()
}

type chunk struct {
	due  time.Time
	data []byte
}

// forward copies one direction until its end, which it passes on, or an error, upon which it ends the other direction
// too.
func (p *Proxy) forward(ctx context.Context, cancel context.CancelFunc, from, to net.Conn, limit *rate.Limiter) {
	queue := make(chan chunk, queueBytes/chunkBytes)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(queue)
		for {
			buf := make([]byte, chunkBytes)
			n, err := from.Read(buf)
			if err != nil && !errors.Is(err, io.EOF) {
				cancel()
				return
			}
			p.mu.Lock()
			c := chunk{time.Now().Add(p.delay), buf[:n]}
			p.mu.Unlock()
			select {
			case queue <- c:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	})
	if err := p.deliver(ctx, queue, to, limit); err != nil {
		cancel()
		_ = from.Close() // frees the reader
		_ = to.Close()
	} else if t, ok := to.(*net.TCPConn); ok {
		_ = t.CloseWrite()
	}
	reader.Wait()
}

func (p *Proxy) deliver(ctx context.Context, queue <-chan chunk, to net.Conn, limit *rate.Limiter) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var c chunk
		select {
		case next, ok := <-queue:
			if !ok {
				return ctx.Err()
			}
			c = next
		case <-ctx.Done():
			return ctx.Err()
		}
		timer.Reset(time.Until(c.due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := limit.WaitN(ctx, len(c.data)); err != nil {
			return err
		}
		if err := p.waitStalled(ctx); err != nil {
			return err
		}
		if _, err := to.Write(c.data); err != nil {
			return err
		}
	}
}

func (p *Proxy) waitStalled(ctx context.Context) error {
	for {
		p.mu.Lock()
		gate := p.stalled
		p.mu.Unlock()
		if gate == nil {
			return nil
		}
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
