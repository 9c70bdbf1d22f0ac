package replication

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/schedule"
)

// shipBurst is how much time's worth of sending an idle link saves up.
const shipBurst = 100 * time.Millisecond

// processStart is what monotonic times are counted from.
var processStart = time.Now()

func monotonicNanos() int64 { return int64(time.Since(processStart)) }

// rateDelay is how long nothing may be sent to the peer, so that the group's ship rate is kept.
func (s *sender) rateDelay() time.Duration {
	rate := s.g.shipper.rate()
	now := monotonicNanos()
	s.g.shipper.bucket.SetRate(now, rate, shipBurst)
	return s.g.shipper.bucket.Wait(now)
}

// rate is the bound of what is sent to the peer now, in bytes a second; 0 for none.
func (sh *shipper) rate() int64 {
	g := sh.g
	g.mu.Lock()
	rate, text := g.core.Meta.ShipBytesPerSecond, g.core.Meta.ShipSchedule
	g.mu.Unlock()
	if text == "" {
		return rate
	}
	known := sh.schedule.Load()
	if known == nil || known.text != text {
		parsed, err := schedule.Parse(text)
		if err != nil { // of another release, or the zone is not known any more
			klog.ErrorS(err, "The schedule of a group's rate is not kept", "group", g.Name())
		}
		known = &shipSchedule{text, parsed}
		sh.schedule.Store(known)
	}
	return known.RateAt(g.cfg.Now(), rate)
}

// shipSchedule is a parsed schedule with its text.
type shipSchedule struct {
	text string
	schedule.Schedule
}

// charge counts what was sent against the group's ship rate.
func (s *sender) charge(n int) {
	s.g.shipper.bucket.Take(monotonicNanos(), int64(n))
}

// pace leaves ShipInterval between small batches. Every batch costs processor time here, a wake-up and a disk sync
// there; one for each flush of a busy database would take from the application what it was promised. A backlog is not
// paced.
func (s *sender) pace(ctx context.Context) error {
	wait := s.g.cfg.ShipInterval - time.Since(s.sentSmall)
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.receiveEnded:
		return s.receiveErr
	case <-t.C:
		return nil
	}
}

// wait returns when there may be something to send, or it is time for a heartbeat. During a delay for the ship rate,
// heartbeats go on: they are small, and a peer that hears nothing ends the stream.
func (s *sender) wait(ctx context.Context, heartbeat <-chan time.Time, delay time.Duration) (beat bool, err error) {
	var delayed <-chan time.Time
	if delay > 0 {
		t := time.NewTimer(delay)
		defer t.Stop()
		delayed = t.C
	}
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case <-s.receiveEnded:
		return false, s.receiveErr
	case <-delayed:
		return false, nil
	case <-s.g.shipper.work:
		return false, nil
	case <-s.wake:
		return false, nil
	case <-heartbeat:
		return true, nil
	}
}
