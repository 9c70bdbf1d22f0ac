package core

// Timeline is one history of ordinals. A group's list runs from the oldest to the current one.
type Timeline struct {
	ID string `json:"id"`
	// ForkOrdinal is the last ordinal shared with the timeline before it in the list; 0 for the first.
	ForkOrdinal     uint64 `json:"forkOrdinal"`
	ForkedUnixNanos int64  `json:"forkedUnixNanos"`
}

// Relation is what two sites' histories say about each other.
type Relation int

const (
	// RelationSame: one timeline; one side's ordinals continue the other's.
	RelationSame Relation = iota
	// RelationTheyContinue: their timeline forked from mine at or after my last ordinal; I can follow them.
	RelationTheyContinue
	// RelationIContinue: my timeline forked from theirs at or after their last ordinal; they can follow me.
	RelationIContinue
	// RelationTheyDiverged: my timeline forked from theirs, and they hold ordinals past the fork.
	RelationTheyDiverged
	// RelationIDiverged: their timeline forked from mine, and I hold ordinals past the fork.
	RelationIDiverged
	// RelationBothDiverged: two forks of one timeline.
	RelationBothDiverged
	// RelationUnrelated: no timeline in common; not the same group's history.
	RelationUnrelated
)

// Divergences between two sides of one timeline, which only a disk that lost durable records can bring about.
const (
	relationPeerAhead  = "peer-ahead"
	relationPeerBehind = "peer-behind"
)

func (r Relation) String() string {
	return [...]string{"same", "they-continue", "i-continue", "they-diverged", "i-diverged", "both-diverged",
		"unrelated"}[r]
}

// Relate compares two histories. common is the last ordinal that both sides certainly share; 0 for unrelated ones.
func Relate(mine []Timeline, myLast uint64, theirs []Timeline, theirLast uint64) (r Relation, common uint64) {
	n := 0
	for n < len(mine) && n < len(theirs) && mine[n].ID == theirs[n].ID {
		n++
	}
	if n == 0 {
		return RelationUnrelated, 0
	}
	// A side may have less than the fork: it never received it, or its disk was put back.
	shared := func(fork uint64) uint64 { return min(fork, myLast, theirLast) }
	iFork, theyFork := n < len(mine), n < len(theirs)
	switch {
	case !iFork && !theyFork:
		return RelationSame, min(myLast, theirLast)
	case iFork && theyFork:
		return RelationBothDiverged, shared(min(mine[n].ForkOrdinal, theirs[n].ForkOrdinal))
	case iFork:
		fork := mine[n].ForkOrdinal
		if theirLast > fork {
			return RelationTheyDiverged, shared(fork)
		}
		return RelationIContinue, shared(fork)
	default:
		fork := theirs[n].ForkOrdinal
		if myLast > fork {
			return RelationIDiverged, shared(fork)
		}
		return RelationTheyContinue, shared(fork)
	}
}
