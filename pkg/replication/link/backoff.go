package link

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	minRedial    = 100 * time.Millisecond
	maxRedial    = 10 * time.Second
	redialJitter = 0.5 // of the interval, up and down
)

// Backoff says how long to wait before the next Dial: each interval is about twice the one before it, with jitter, so
// that the groups of a site do not all dial at the same instant when the link is back. It is not safe for concurrent
// use; each group has its own. Use NewBackoff.
type Backoff struct {
	b *backoff.ExponentialBackOff
}

// NewBackoff returns a Backoff whose first interval is about first. The longest interval is 100 times as long, and at
// most 10 s.
func NewBackoff(first time.Duration) *Backoff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = first
	b.Multiplier = 2
	b.RandomizationFactor = redialJitter
	// The library adds jitter after the cap.
	capped := float64(first) * float64(maxRedial/minRedial) / (1 + redialJitter)
	b.MaxInterval = time.Duration(capped)
	b.Reset()
	return &Backoff{b}
}

// Next returns how long to wait now, and moves on.
func (b *Backoff) Next() time.Duration { return min(b.b.NextBackOff(), maxRedial) }

// Reset goes back to the beginning. Call it when a stream has carried something, not when it was merely opened: a peer
// that accepts and then fails at once is not to be hammered.
func (b *Backoff) Reset() { b.b.Reset() }
