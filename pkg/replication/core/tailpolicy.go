package core

import (
	"cmp"
	"slices"
)

// KeptTail is a divergent tail as the policy of a group sees it.
type KeptTail struct {
	ID string
	// UnixNanos is when it was kept, by the clock of its site; 0 where that is not known.
	UnixNanos int64
	// Complete: all of its snapshots are there.
	Complete bool
}

// ExpiredTails returns the identifiers of the tails that the settings do not keep at a time, the oldest first.
//
// The newest complete tail stays, however old it is: it may be all that is left of what a site wrote. One that is not
// complete, or of which it is not known when it was kept, stays and does not count. Tails of the same time are in the
// order of their identifiers, so the answer follows from the arguments.
func (s *Settings) ExpiredTails(list []KeptTail, nowUnixNanos int64) (expired []string) {
	list = slices.DeleteFunc(slices.Clone(list), func(t KeptTail) bool { return !t.Complete || t.UnixNanos == 0 })
	slices.SortFunc(list, func(a, b KeptTail) int {
		return cmp.Or(cmp.Compare(b.UnixNanos, a.UnixNanos), cmp.Compare(a.ID, b.ID))
	})
	const millisecond = 1_000_000
	for i, t := range list {
		tooMany := s.TailsMost > 0 && i >= int(s.TailsMost)
		tooOld := s.TailsMillis > 0 && t.UnixNanos < nowUnixNanos-s.TailsMillis*millisecond
		if i > 0 && (tooMany || tooOld) {
			expired = append(expired, t.ID)
		}
	}
	slices.Reverse(expired)
	return expired
}
