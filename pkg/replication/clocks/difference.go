package clocks

import "sync"

// Difference is the best that is known of the peer's wall clock minus this site's. The zero value knows nothing.
type Difference struct {
	mu   sync.Mutex
	best Sample
	at   Instant
}

// Add takes a measurement made at now. The best one stays until it has aged beyond a new one, or contradicts it: then
// one of the clocks was set.
func (d *Difference) Add(now Instant, s Sample) {
	d.mu.Lock()
	defer d.mu.Unlock()
	old, ok := d.estimateLocked(now)
	apart := max(s.Nanos-old.Nanos, old.Nanos-s.Nanos)
	if !ok || s.ErrorNanos <= old.ErrorNanos || apart > s.ErrorNanos+old.ErrorNanos {
		d.best, d.at = s, now
	}
}

// Estimate returns the difference as it is now. Its error grows with the time since the measurement, for clocks drift.
func (d *Difference) Estimate(now Instant) (Sample, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.estimateLocked(now)
}

func (d *Difference) estimateLocked(now Instant) (Sample, bool) {
	age, ok := now.SinceAtMost(d.at)
	if !ok {
		return Sample{}, false
	}
	s := d.best
	s.ErrorNanos += 2 * int64(Stretched(age)-age) // both clocks drift
	// Where this site's wall clock was set since, the difference changed by as much.
	s.Nanos -= (now.WallNanos - d.at.WallNanos) - (now.BootNanos - d.at.BootNanos)
	return s, true
}

// Forget is for another peer.
func (d *Difference) Forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.best, d.at = Sample{}, Instant{}
}
