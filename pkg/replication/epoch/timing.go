package epoch

import (
	"fmt"
	"time"
)

// Timing is how long what takes.
type Timing struct {
	// Interval is from the beginning of one epoch to the next.
	Interval time.Duration
	// Hold is how long a shard holds acknowledgements at most. The coordinator gives an epoch up earlier, after
	// Prepare.
	Hold, Prepare time.Duration
	// Resend is how long an answer is waited for before the message is sent again.
	Resend time.Duration
	// MaxPause bounds the pause after epochs that failed one after another, which doubles each time, and that between
	// epochs while a copy is away.
	MaxPause time.Duration
}

// DefaultTiming is for nodes of one site: round trips of milliseconds at most.
func DefaultTiming() Timing {
	return Timing{
		Interval: 200 * time.Millisecond, Hold: 50 * time.Millisecond, Prepare: 40 * time.Millisecond,
		Resend: 10 * time.Millisecond, MaxPause: 5 * time.Second,
	}
}

// Validate says what is wrong with a timing.
func (t Timing) Validate() error {
	switch {
	case t.Resend <= 0 || t.Prepare <= t.Resend || t.Hold < t.Prepare || t.Interval <= t.Hold || t.MaxPause < t.Interval:
		return fmt.Errorf("epochs: want 0 < resend (%s) < prepare (%s) <= hold (%s) < interval (%s) <= pause (%s)",
			t.Resend, t.Prepare, t.Hold, t.Interval, t.MaxPause)
	}
	return nil
}

// retryInterval is what retries double, where the interval is not shorter.
const retryInterval = 200 * time.Millisecond

// retry is how long the next epoch, or attempt, waits after failures in a row. A group with a long interval does not
// wait for all of it because one shard was late once.
func (t Timing) retry(failures int) time.Duration {
	return t.double(min(t.Interval, retryInterval), failures)
}

// pause is the interval, doubled so many times.
func (t Timing) pause(times int) time.Duration { return t.double(t.Interval, times) }

func (t Timing) double(d time.Duration, times int) time.Duration {
	for ; times > 0 && d < t.MaxPause; times-- {
		d *= 2
	}
	return min(d, t.MaxPause)
}
