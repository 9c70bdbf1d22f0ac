package clocks

import "time"

// DriftPPM is how much slower than time itself the best clock of a machine may be: crystals and calibration stay
// within 0.05 %, and NTP does not steer the raw clock.
const DriftPPM = 1000

// ReadingError is how far apart the clocks of one instant may have been read.
const ReadingError = 50 * time.Microsecond

// Instant is a moment as a machine's clocks tell it. The zero value is the unknown instant. Instants of one boot of one
// machine can be compared; others cannot.
type Instant struct {
	// BootID is the kernel's name for this boot; empty for an unknown instant.
	BootID string `json:"bootID,omitempty"`
	// BootNanos is the time since the boot, suspension included. RawNanos is it without suspension and without NTP.
	BootNanos int64 `json:"bootNanos,omitempty"`
	RawNanos  int64 `json:"rawNanos,omitempty"`
	// WallNanos is the wall clock, since 1970. It is the only one of the three that means something to people.
	WallNanos int64 `json:"wallNanos,omitempty"`
}

// Known reports whether the instant is one.
func (i Instant) Known() bool { return i.BootID != "" }

// SinceAtMost returns how long before i the earlier instant was at most, not below 0. ok is false where that cannot be
// proven: one of the two is unknown or of another boot, or a clock that never goes back did.
func (i Instant) SinceAtMost(earlier Instant) (elapsed time.Duration, ok bool) {
	boot, raw := i.BootNanos-earlier.BootNanos, i.RawNanos-earlier.RawNanos
	if !i.Known() || i.BootID != earlier.BootID || boot < 0 || raw < 0 {
		return 0, false
	}
	return Stretched(time.Duration(max(boot, raw, i.WallNanos-earlier.WallNanos))), true
}

// SinceAtLeast returns how long before i the earlier instant was at least. ok is as for SinceAtMost. Time in which the
// machine slept does not count, nor what the wall clock was set ahead.
func (i Instant) SinceAtLeast(earlier Instant) (elapsed time.Duration, ok bool) {
	boot, raw := i.BootNanos-earlier.BootNanos, i.RawNanos-earlier.RawNanos
	if !i.Known() || i.BootID != earlier.BootID || boot < 0 || raw < 0 {
		return 0, false
	}
	d := time.Duration(min(boot, raw))
	return max(0, d-(d/1e6+1)*DriftPPM), true
}

// Ago returns the instant that was d before i, or a little earlier. The unknown instant stays unknown.
func (i Instant) Ago(d time.Duration) Instant {
	if !i.Known() {
		return i
	}
	n := int64(Stretched(d))
	return Instant{BootID: i.BootID, BootNanos: i.BootNanos - n, RawNanos: i.RawNanos - n, WallNanos: i.WallNanos - n}
}

// Stretched is the longest time that a clock may have measured as d, which is not negative.
func Stretched(d time.Duration) time.Duration {
	if d == 0 {
		return 0
	}
	return d + (d/1e6+1)*DriftPPM
}

// Elapsed returns how much time passed from then to now at most, for two times of this process.
func Elapsed(now, then time.Time) time.Duration {
	// Sub compares monotonic times where both have one, UnixNano wall clocks.
	return Stretched(max(0, now.Sub(then), time.Duration(now.UnixNano()-then.UnixNano())))
}
