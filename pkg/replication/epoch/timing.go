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
	// MaxPause bounds the pause after epochs that failed one after another; it doubles from Interval on.
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

// pause is how long the next epoch waits after failures in a row.
func (t Timing) pause(failures int) time.Duration {
	d := t.Interval
	for ; failures > 0 && d < t.MaxPause; failures-- {
		d *= 2
	}
	return min(d, t.MaxPause)
}
