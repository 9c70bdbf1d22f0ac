package replication

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A group that replicates on its own can be made a shard. Its copy hears of that before the first epoch is complete at
// its site. Until then it can be promoted as before: at the last ordinal that is here, without an order between nodes,
// which there was not before either.

// joined is called when a session begins: of what is applied until now no epoch says anything, if it was no copy of a
// shard before.
func (s *Shard) joined() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.copyOf()
	if !c.copy || c.epochs.Copy {
		return nil
	}
	s.release()
	s.primary, s.copy = nil, nil
	return s.keepEpochs(func(kept *core.Epochs) {
		kept.Copy, kept.Since = true, s.g.journal.Head()
		// What was primary in the group, and follows the other site now, was ordered against the other shards before.
		kept.Separate = c.ownCopy() && kept.Config.Version.Number == 0
	})
}

// Heard reports whether the copy has heard of an epoch of its group, if only of one that is not complete.
func (s *Shard) Heard() bool {
	c := s.copyOf()
	return c.copy && (c.epochs.Decision != nil || c.epochs.Config.Version.Number > 0 || len(s.marks.all()) > 0)
}

// Separate reports whether the copy was whole as one of a group of its own, and has shown no epoch since.
func (s *Shard) Separate() bool {
	c := s.copyOf()
	unmet := !c.epochs.Copy && !s.Heard() // its primary's settings are here, and the session with them did not begin
	return c.copy && c.ownCopy() && (c.epochs.Separate || unmet) && c.epochs.Decision == nil
}

// ownCopy reports whether a promotion of the group alone would give one instant of its primary: a whole copy, or what
// it was before a sync.
func (c copyOf) ownCopy() bool { return c.whole || c.base != nil && c.base.Epoch == nil }

// PromoteSeparate makes the copy primary as Group.Promote does with force, if Separate holds. Otherwise the error is
// core.ErrPrecondition.
func (s *Shard) PromoteSeparate() error {
	defer s.g.streams.refuse()() // no mark arrives anymore
	if !s.Separate() {
		return fmt.Errorf("%w: the copy of group %s has an epoch of its whole group by now; repeat the promotion",
			core.ErrPrecondition, s.g.Name())
	}
	_, err := s.g.promoteWhole(true)
	return err
}

// endSeparate notes that the copy is about to show an epoch. The caller holds mu.
func (s *Shard) endSeparate() error {
	if !s.copyOf().epochs.Separate {
		return nil
	}
	return s.keepEpochs(func(kept *core.Epochs) { kept.Separate = false })
}
