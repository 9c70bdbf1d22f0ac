package replication

import (
	"context"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

// linkControl is the stream that this side opened, and who keeps it closed. It is guarded by Group.mu.
type linkControl struct {
	held   int
	cancel context.CancelFunc // nil without a stream
	done   chan struct{}
}

// beginStream returns whom to call and the context of the stream to it; no peer while there is nobody to call, or nobody may.
func (g *Group) beginStream(ctx context.Context) (_ context.Context, peer, address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.link.held > 0 {
		return nil, "", ""
	}
	if peer, address = g.dialTargetLocked(); peer == "" {
		return nil, "", ""
	}
	ctx, g.link.cancel = context.WithCancel(ctx)
	g.link.done = make(chan struct{})
	return ctx, peer, address
}

func (g *Group) endStream() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.link.cancel()
	g.link.cancel = nil
	close(g.link.done)
}

// holdLink ends the stream that this side opened and keeps it closed until release is called.
func (g *Group) holdLink() (release func()) {
	g.mu.Lock()
	g.link.held++
	cancel, done := g.link.cancel, g.link.done
	g.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
	return func() {
		g.mu.Lock()
		g.link.held--
		g.mu.Unlock()
		g.linkWork.send()
	}
}

// restartLink ends the stream that this side opened; another begins.
func (g *Group) restartLink() {
	g.mu.Lock()
	if g.link.cancel != nil {
		g.link.cancel()
	}
	g.mu.Unlock()
	g.linkWork.send()
}

// shipBurst is how much time's worth of sending an idle link saves up.
const shipBurst = 100 * time.Millisecond

// processStart is what monotonic times are counted from.
var processStart = time.Now()

func monotonicNanos() int64 { return int64(time.Since(processStart)) }

// owed is how long nothing may be sent to the peer.
func (s *sender) owed() time.Duration {
	s.g.mu.Lock()
	rate := s.g.core.Meta.ShipBytesPerSecond
	s.g.mu.Unlock()
	now := monotonicNanos()
	s.g.shipBucket.SetRate(now, rate, shipBurst)
	return s.g.shipBucket.Wait(now)
}

// charge accounts for what was sent.
func (s *sender) charge(n int) {
	if !bug.Enabled(bug.NoShipLimit) {
		s.g.shipBucket.Take(monotonicNanos(), int64(n))
	}
}

// wait returns when there may be something to send, or it is time for a heartbeat. While something is owed, heartbeats go on:
// they are small, and a peer that hears nothing ends the stream.
func (s *sender) wait(ctx context.Context, heartbeat <-chan time.Time, owed time.Duration) (beat bool, err error) {
	var paid <-chan time.Time
	if owed > 0 {
		t := time.NewTimer(owed)
		defer t.Stop()
		paid = t.C
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case err := <-s.received:
		s.received <- err
		return false, err
	case <-paid:
		return false, nil
	case <-s.g.shipWork:
		return false, nil
	case <-s.wake:
		return false, nil
	case <-heartbeat:
		return true, nil
	}
}
