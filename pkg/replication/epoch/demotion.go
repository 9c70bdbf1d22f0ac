package epoch

import (
	"fmt"
	"slices"
)

// A group is demoted as a whole in three steps. Each is repeated until all shards have done it:
//
//	close   the shard takes no more writes, durably, and goes on putting marks
//	cut     an epoch that is marked on all shards while all are closed; it has everything that was ever written
//	demote  each shard gives its role up, and names that epoch
//
// The first demotion comes after the last closing and after the epoch. So whatever is interrupted, a shard that is
// demoted says that the others have written nothing since, unless they were opened again. What was opened and closed
// again has another name for its closing.

// Stand is what a shard does while its group is demoted as a whole.
type Stand string

const (
	// StandOpen: it is primary and takes writes.
	StandOpen Stand = "open"
	// StandClosed: it is primary, takes no writes, and puts marks.
	StandClosed Stand = "closed"
	// StandDemoted: its role is given up, and nothing more comes into its journal.
	StandDemoted Stand = "demoted"
	// StandFollowing: the other site is primary.
	StandFollowing Stand = "following"
)

// Standing is what a shard says of itself at one instant.
type Standing struct {
	Shard ShardID
	Stand Stand
	// Closing names the time since when it is closed: another one each time.
	Closing Life
	// Marked is the last epoch that has a mark in the journal, Covered the first one behind whose boundary there is
	// nothing but marks. Both are zero if something else is last.
	Covered, Marked ID
	// Final is the epoch that the shard was demoted at, until it is opened again; zero for none.
	Final ID
}

// DemotionStep is what is to be done next. Exactly one of its fields but Epoch is set.
type DemotionStep struct {
	// Close are shards to be closed.
	Close []ShardID
	// Cut: an epoch is needed, or its mark is not on all shards yet.
	Cut bool
	// Demote are shards to be demoted at Epoch, each under the name of its closing.
	Demote []Standing
	// Done: all shards are demoted, or follow.
	Done bool
	// Epoch has everything that the shards wrote; zero if none of them knows of one.
	Epoch ID
}

// NextOfDemotion returns the next step from what all shards of a group said. Errors are ErrRefused: a shard wrote after
// another one was demoted, so no epoch can have everything before the demotion is taken back.
func NextOfDemotion(shards []Standing) (DemotionStep, error) {
	var open, gone []ShardID
	var remaining []Standing
	final, finals := ID{}, 0
	for _, s := range shards {
		switch s.Stand {
		case StandOpen:
			open = append(open, s.Shard)
		case StandClosed:
			remaining = append(remaining, s)
		default:
			gone = append(gone, s.Shard)
		}
		if s.Stand != StandOpen && s.Stand != StandFollowing && !s.Final.IsZero() {
			if finals == 0 || s.Final != final {
				final, finals = s.Final, finals+1
			}
		}
	}
	switch {
	case len(open) > 0:
		return DemotionStep{Close: open}, nil
	case len(gone) == 0:
		return cutOrDemote(remaining), nil
	case finals > 1:
		return DemotionStep{}, fmt.Errorf("%w: its shards were demoted at different epochs", ErrRefused)
	case len(remaining) == 0:
		return DemotionStep{Done: true, Epoch: final}, nil
	}
	for _, s := range remaining {
		if !s.covers(final) {
			return DemotionStep{}, fmt.Errorf("%w: shard %d was written to after shard %d was demoted", ErrRefused, s.Shard,
				gone[0])
		}
	}
	return DemotionStep{Demote: remaining, Epoch: final}, nil
}

// covers reports whether an epoch has everything that a closed shard wrote.
func (s *Standing) covers(epoch ID) bool {
	return !epoch.IsZero() && !s.Covered.IsZero() && !epoch.Before(s.Covered)
}

// cutOrDemote is the step of a group whose shards are all closed. If all have the mark of one epoch last, it has
// everything.
func cutOrDemote(shards []Standing) DemotionStep {
	if len(shards) == 0 {
		return DemotionStep{Cut: true}
	}
	epoch := shards[0].Marked
	if slices.ContainsFunc(shards, func(s Standing) bool { return s.Marked != epoch || !s.covers(epoch) }) {
		return DemotionStep{Cut: true}
	}
	return DemotionStep{Demote: shards, Epoch: epoch}
}
