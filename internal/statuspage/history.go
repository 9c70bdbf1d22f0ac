package statuspage

import (
	"sync"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const (
	// sampleInterval and samples make half an hour. A group's history takes about 20 KiB.
	sampleInterval = 5 * time.Second
	samples        = 360
	// maxGroups bounds the memory of the histories. Groups beyond it are shown without one.
	maxGroups = 1024
)

// point is a group at one moment. What is unknown is nil.
type point struct {
	UnixMillis  int64    `json:"unixMillis"`
	LagSeconds  *float64 `json:"lagSeconds"`
	JournalUsed int64    `json:"journalUsedBytes"`
}

// history has the last half hour of each group. Its methods may be called concurrently.
type history struct {
	mu     sync.Mutex
	groups map[string][]point // by name, oldest first
}

// add takes the groups as they are now. Groups that are gone are forgotten.
func (h *history) add(now time.Time, groups []*sidecarpb.GroupStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[string][]point{}
	for _, g := range groups {
		if len(next) >= maxGroups {
			break
		}
		points := h.groups[g.GetName()]
		if len(points) >= samples {
			points = append([]point(nil), points[len(points)-samples+1:]...)
		}
		p := point{UnixMillis: now.UnixMilli(), JournalUsed: g.GetJournalUsedBytes()}
		if g.LagSeconds != nil {
			p.LagSeconds = new(g.GetLagSeconds())
		}
		next[g.GetName()] = append(points, p)
	}
	h.groups = next
}

// of returns a copy of the history of a group. It is never nil.
func (h *history) of(name string) []point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]point{}, h.groups[name]...)
}
