package replication

import (
	"fmt"
	"syscall"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// errNoRoom is for what there is no room for; it also matches syscall.ENOSPC.
var errNoRoom = fmt.Errorf("no room: %w", syscall.ENOSPC)

// checkJournalFits refuses a journal that its file system has no room for: when that is full, the group's volumes take
// no writes. hasBytes is what the journal's files take already.
func (s *Site) checkJournalFits(name string, settings core.Settings, hasBytes int64) error {
	_, limit := journalLimits(&settings)
	total, free, err := s.cfg.Pool.JournalSpace()
	if err != nil {
		return fmt.Errorf("group %s: %w", name, err)
	}
	if limit-hasBytes <= free {
		return nil
	}
	grows := ""
	if limit > settings.JournalSizeBytes {
		grows = fmt.Sprintf(" and, while its records wait to be applied, grows to %d", limit)
	}
	fits := free + hasBytes
	if settings.JournalFull == core.PolicyTrack {
		fits /= 2
	}
	advice := "make that file system larger"
	if fits -= fits % (1 << 20); fits >= MinJournalBytes {
		advice = fmt.Sprintf("choose a journal of at most %s (--journal-size, slipstream.dev/journal-size), or %s",
			words.Count(fits, "byte"), advice)
	}
	return fmt.Errorf("%w: group %s: its journal takes %s%s; the file system of %s has %d of %s free; %s",
		errNoRoom, name,
		words.Count(settings.JournalSizeBytes, "byte"), grows, s.cfg.Pool.GroupsDir(), free, words.Count(total, "byte"),
		advice)
}
