package replication

import (
	"sync"
	"time"
)

// writeClock remembers when ordinals were written, so that lag can be told in seconds: the age of the oldest write that
// the peer lacks. It keeps a bounded number of samples; when they get too many, every second one goes, so that the
// error grows with the lag and stays below a thousandth of it.
type writeClock struct {
	mu      sync.Mutex
	samples []writeSample // ascending; of each the first ordinal at its time
	spacing time.Duration
}

type writeSample struct {
	ordinal   uint64
	unixNanos int64
}

const (
	maxWriteSamples    = 4096
	leastWriteSpacing  = time.Millisecond
	writeSpacingFactor = 2
)

func newWriteClock() *writeClock { return &writeClock{spacing: leastWriteSpacing} }

// wrote notes a write. Ordinals must ascend.
func (c *writeClock) wrote(ordinal uint64, unixNanos int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.samples)
	if n > 0 && unixNanos-c.samples[n-1].unixNanos < int64(c.spacing) {
		return
	}
	if n == maxWriteSamples {
		for i := 0; i < n/2; i++ {
			c.samples[i] = c.samples[i*2]
		}
		c.samples = c.samples[:n/2]
		c.spacing *= writeSpacingFactor
	}
	c.samples = append(c.samples, writeSample{ordinal, unixNanos})
}

// oldestAfter returns the time of the oldest known write with an ordinal past acked, and forgets those before it.
// The sample before it may be earlier than that write by the spacing: the age is never told too small.
func (c *writeClock) oldestAfter(acked uint64) (unixNanos int64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := 0
	for i < len(c.samples) && c.samples[i].ordinal <= acked {
		i++
	}
	if i > 1 {
		// Keep the one before: writes between it and the next sample happened after it.
		c.samples = append(c.samples[:0], c.samples[i-1:]...)
		i = 1
	}
	if len(c.samples) < maxWriteSamples/4 {
		c.spacing = max(leastWriteSpacing, c.spacing/writeSpacingFactor)
	}
	switch {
	case len(c.samples) == 0:
		return 0, false
	case i == 0:
		return c.samples[0].unixNanos, true
	case i < len(c.samples) && c.samples[i].ordinal == acked+1:
		return c.samples[i].unixNanos, true
	default:
		return c.samples[i-1].unixNanos, true
	}
}
