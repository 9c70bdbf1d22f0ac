package groups

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// meterWindow is the time over which the rate of a sync is averaged.
const meterWindow = 10 * time.Second

// syncMeter measures the rate of a sync from its statuses. Its zero value has seen none. Its methods may be called
// concurrently: a progress bar draws beside the statuses.
type syncMeter struct {
	mu    sync.Mutex
	seen  []syncSample // of the running sync, oldest first, over a little more than meterWindow
	total uint64
}

type syncSample struct {
	at   time.Time
	done uint64
}

// observe takes a status. One without a running sync forgets the last sync, and so does one of another sync.
func (m *syncMeter) observe(now time.Time, g *sidecarpb.GroupStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	done := g.GetSyncDoneBytes()
	if g.GetSyncTotalBytes() == 0 || len(m.seen) > 0 && done < m.seen[len(m.seen)-1].done {
		m.seen = nil
	}
	m.total = g.GetSyncTotalBytes()
	if m.total == 0 {
		return
	}
	m.seen = append(m.seen, syncSample{now, done})
	for len(m.seen) > 2 && now.Sub(m.seen[1].at) >= meterWindow {
		m.seen = m.seen[1:]
	}
}

// rate is in bytes a second; false before there are two statuses.
func (m *syncMeter) rate() (float64, bool) {
	if len(m.seen) < 2 {
		return 0, false
	}
	first, last := m.seen[0], m.seen[len(m.seen)-1]
	took := last.at.Sub(first.at).Seconds()
	if took <= 0 {
		return 0, false
	}
	return float64(last.done-first.done) / took, true
}

// speed is the rate and the time left, as far as they are known; empty before that.
func (m *syncMeter) speed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	rate, known := m.rate()
	if !known {
		return ""
	}
	text := frame.FormatBytes(uint64(rate)) + "/s"
	left := float64(m.total - min(m.seen[len(m.seen)-1].done, m.total))
	if rate <= 0 {
		return text + ", time left " + frame.Unknown
	}
	return text + ", " + frame.FormatSeconds(left/rate) + " left"
}

// text is the progress of the running sync; empty without one.
func (m *syncMeter) text() string {
	speed := m.speed()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.seen) == 0 {
		return ""
	}
	done := m.seen[len(m.seen)-1].done
	parts := []string{fmt.Sprintf("sync %s of %s", frame.FormatBytes(done), frame.FormatBytes(m.total)),
		fmt.Sprintf("%.0f %%", 100*float64(done)/float64(m.total))}
	if speed != "" {
		parts = append(parts, speed)
	}
	return strings.Join(parts, ", ")
}
