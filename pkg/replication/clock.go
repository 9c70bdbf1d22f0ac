package replication

import (
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
)

// writeClock tells a primary's lag in seconds: how old the oldest write is at most that the peer lacks, on this
// machine's clocks alone. It keeps a bounded number of samples of when ordinals were written; when they get too many,
// every second one goes, so that the error grows with the lag and stays below a thousandth of it.
//
// Of ordinals that an earlier process wrote it has no samples. For those it has an instant, which that process left
// behind: every write that the peer lacked was younger. Without one their age is unknown.
type writeClock struct {
	mu      sync.Mutex
	samples []writeSample // ascending; of each the first ordinal at its time
	spacing time.Duration
	// base is the last ordinal without a sample, since what is known of ordinals up to there.
	base  uint64
	since clocks.Instant
	// whole is set once the peer had a whole copy, and acked is what it had of the group when it last was. In a sync the
	// peer's ordinals run ahead of what it has.
	whole bool
	acked uint64 // also of an earlier process
	// claimed is the last ordinal that a running append may take, and since when; 0 without one.
	claimed      uint64
	claimedSince time.Time
}

type writeSample struct {
	ordinal uint64
	at      time.Time
}

const (
	maxWriteSamples    = 4096
	leastWriteSpacing  = time.Millisecond
	writeSpacingFactor = 2
)

func newWriteClock() *writeClock { return &writeClock{spacing: leastWriteSpacing} }

// begin forgets everything: the journal is at head, the peer has at least the ordinals up to acked, and every write up
// to head that it lacks is younger than since.
func (c *writeClock) begin(head, acked uint64, since clocks.Instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.samples, c.base, c.since = nil, head, since
	c.whole, c.acked = false, acked
}

// claim notes that records up to an ordinal are about to be appended. It comes before they get their times.
func (c *writeClock) claim(upTo uint64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claimed, c.claimedSince = upTo, at
}

// head returns an ordinal that no record of an earlier time is past.
func (c *writeClock) head(journalHead func() uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return max(c.claimed, journalHead())
}

// wrote ends a claim. first is the first ordinal that was appended, 0 if none was.
func (c *writeClock) wrote(first uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.claimedSince
	c.claimed = 0
	if first != 0 {
		c.sampleLocked(first, at)
	}
}

func (c *writeClock) sampleLocked(ordinal uint64, at time.Time) {
	n := len(c.samples)
	if n > 0 && at.Sub(c.samples[n-1].at) < c.spacing {
		return
	}
	if n == maxWriteSamples {
		for i := 0; i < n/2; i++ {
			c.samples[i] = c.samples[i*2]
		}
		c.samples = c.samples[:n/2]
		c.spacing *= writeSpacingFactor
	}
	c.samples = append(c.samples, writeSample{ordinal, at})
}

// has notes that the peer has a whole copy, with every ordinal up to acked, and forgets the samples before. The caller
// makes sure that calls come in the order of what they say.
func (c *writeClock) has(acked uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if acked < c.acked {
		// The peer lost what it had, and nothing is known of when that was written.
		c.base, c.since = max(c.base, c.acked), clocks.Instant{}
	}
	c.whole, c.acked = true, acked
	i := 0
	for i < len(c.samples) && c.samples[i].ordinal <= acked {
		i++
	}
	if i > 1 {
		// Keep the one before: writes between it and the next sample happened after it.
		c.samples = append(c.samples[:0], c.samples[i-1:]...)
	}
	if len(c.samples) < maxWriteSamples/4 {
		c.spacing = max(leastWriteSpacing, c.spacing/writeSpacingFactor)
	}
}

// oldest returns an instant such that the peer lacks no older write; the unknown instant where nothing is known. now is
// the time in both forms, and the journal's head is read after it. The sample before the oldest such write may be
// earlier than that by the spacing: the age is never told too small.
func (c *writeClock) oldest(journalHead func() uint64, now time.Time, instant clocks.Instant) clocks.Instant {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.whole || c.acked < c.base {
		return c.since
	}
	if c.acked >= max(c.claimed, journalHead()) {
		return instant
	}
	i := 0
	for i < len(c.samples) && c.samples[i].ordinal <= c.acked {
		i++
	}
	switch {
	case len(c.samples) == 0 && c.claimed == 0:
		return clocks.Instant{}
	case len(c.samples) == 0:
		return instant.Ago(clocks.Elapsed(now, c.claimedSince))
	case i == 0, i < len(c.samples) && c.samples[i].ordinal == c.acked+1:
	default:
		i--
	}
	return instant.Ago(clocks.Elapsed(now, c.samples[i].at))
}
