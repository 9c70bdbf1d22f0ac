// Package tokenbucket says how long to wait so that something stays below a rate. It has no clock: the time is passed
// in.
//
// A bucket never refuses. What is taken is charged at once, and the answer is when it is paid for: the one who took
// waits until then, before or after the work. So a request that is larger than the bucket is not stuck, and nothing is
// overtaken: of two takes, the later one is paid for later.
package tokenbucket

import (
	"math"
	"math/bits"
	"time"
)

// Bucket is a token bucket. The zero value has no bound. It is not safe for concurrent use.
type Bucket struct {
	rate  int64 // tokens a second; 0 is no bound
	burst time.Duration
	// paid is when everything taken so far would be paid for if the bucket had no burst, in nanoseconds of the caller's
	// clock.
	paid int64
}

// SetRate changes the rate, in tokens a second, and how much time's worth of tokens an idle bucket saves up. 0 is no
// bound. What is owed stays owed, at the new rate.
func (b *Bucket) SetRate(now int64, rate int64, burst time.Duration) {
	if rate == b.rate && burst == b.burst {
		return
	}
	switch {
	case b.rate == 0 || rate == 0:
		b.paid = math.MinInt64
	case b.paid > now:
		b.paid = saturate(now, scale(uint64(b.paid-now), uint64(b.rate), uint64(rate)))
	}
	b.rate, b.burst = rate, burst
}

// Take charges n tokens and returns how long after now they are paid for: 0 if at once. now does not have to ascend.
func (b *Bucket) Take(now, n int64) time.Duration {
	if b.rate == 0 || n <= 0 {
		return b.Wait(now)
	}
	// An idle bucket is full, not more.
	start := max(b.paid, now-int64(b.burst))
	b.paid = saturate(start, scale(uint64(n), uint64(time.Second), uint64(b.rate)))
	return b.Wait(now)
}

// Wait returns how long after now everything is paid for.
func (b *Bucket) Wait(now int64) time.Duration {
	if b.rate == 0 || b.paid <= now {
		return 0
	}
	return time.Duration(b.paid - now)
}

// scale returns n*a/b, rounded up, or the largest number where that is too large.
func scale(n, a, b uint64) uint64 {
	hi, lo := bits.Mul64(n, a)
	if hi >= b {
		return math.MaxInt64
	}
	q, r := bits.Div64(hi, lo, b)
	if r > 0 {
		q++
	}
	return min(q, math.MaxInt64)
}

// saturate returns t+d, or the latest time there is.
func saturate(t int64, d uint64) int64 {
	if sum := t + int64(d); sum >= t {
		return sum
	}
	return math.MaxInt64
}
