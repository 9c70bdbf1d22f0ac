package core

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// MaxTimelines bounds the timelines of a group, in a message and on disk: each promotion at either site adds one.
const MaxTimelines = 4096

// CheckTimelines says what is wrong with a list of timelines, oldest first, whatever its source: a peer's Hello or
// refusal, or group.json. sound is how many of the first ones are as they have to be.
//
// Identifiers are UUIDs in the form that this program writes, each one's own; the first timeline has no fork; a later
// one does not fork before the one that it continues. The empty list is fine.
func CheckTimelines(list []Timeline) (sound int, err error) {
	seen := map[string]bool{}
	for i, t := range list {
		fail := func(format string, args ...any) (int, error) {
			return i, fmt.Errorf("timeline %d of %d %s", i+1, len(list), fmt.Sprintf(format, args...))
		}
		switch {
		case i == MaxTimelines:
			return fail("is one more than the limit of %d", MaxTimelines)
		case !IsTimelineID(t.ID):
			return fail("has the malformed identifier \"%s\"", untrusted.Escape(t.ID, maxShownBytes))
		case seen[t.ID]:
			return fail("has the identifier of an earlier one, %s", t.ID)
		case i == 0 && t.ForkOrdinal != 0:
			return fail("is the first, and forks at ordinal %d", t.ForkOrdinal)
		case i > 0 && t.ForkOrdinal < list[i-1].ForkOrdinal:
			return fail("forks at ordinal %d, before the one that it continues (%d)", t.ForkOrdinal, list[i-1].ForkOrdinal)
		}
		seen[t.ID] = true
	}
	return len(list), nil
}

const maxShownBytes = 80 // of a wrong value, in an error

// IsTimelineID reports whether an identifier is one that a timeline can have: the journal writes it as 16 bytes.
func IsTimelineID(id string) bool {
	u, err := uuid.Parse(id)
	return err == nil && u.String() == id
}
