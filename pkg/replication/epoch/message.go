package epoch

import (
	"cmp"
	"fmt"
	"slices"
)

// Message is what the parts tell each other. The engine carries it; it may be lost, delayed, repeated and overtaken.
type Message interface{ message() }

// Ask asks a shard who it is. Config is the sender's; a shard whose own is older adopts it.
type Ask struct {
	Round  uint64
	Config Config
}

// Answer is the answer to Ask.
type Answer struct {
	Round uint64
	Life  Life
	// Last is the highest epoch that the shard marked, or held in this life.
	Last   ID
	Config Config
	// Acked is the last epoch whose mark the shard's peer has on stable storage.
	Acked ID
}

// Prepare asks a shard to fix its boundary and to hold what lies behind. Life is the receiver's.
type Prepare struct {
	Epoch   ID
	Life    Life
	Version Version
}

// Ready is the answer of a shard that holds acknowledgements.
type Ready struct {
	Epoch    ID
	Life     Life
	Boundary uint64
}

// Commit tells a shard that all are ready. Life is the receiver's.
type Commit struct {
	Epoch ID
	Life  Life
}

// Committed is the answer of a shard that has the mark in its journal, durable or not.
type Committed struct {
	Epoch ID
	Life  Life
	Acked ID
}

// Abort lets a shard release early.
type Abort struct {
	Epoch ID
	Life  Life
}

// Refused is the answer of a shard to a Prepare or Commit that it does not obey.
type Refused struct {
	Epoch  ID
	Life   Life
	Reason Refusal
}

// Refusal says why.
type Refusal string

const (
	// RefusedLife: the message is for an earlier life of the shard's process.
	RefusedLife Refusal = "other-life"
	// RefusedConfig: the epoch is of another configuration than the shard's.
	RefusedConfig Refusal = "other-configuration"
	// RefusedOld: the shard has held or marked this epoch or a later one, and holds this one no longer.
	RefusedOld Refusal = "old"
)

// Attempt orders collectors. A copy follows the highest one that it has heard of in this life.
type Attempt struct {
	Number uint64
	// Run is the life of the collector.
	Run Life
}

// Compare orders attempts.
func (a Attempt) Compare(b Attempt) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Run, b.Run))
}

func (a Attempt) String() string { return fmt.Sprintf("%d.%x", a.Number, uint64(a.Run)) }

// Gather asks a copy for a report, and to follow no lower attempt from now on. Marks up to After are known already; a
// zero one asks for all.
type Gather struct {
	Attempt Attempt
	After   ID
}

// Report is what a copy has.
type Report struct {
	Attempt Attempt
	Life    Life
	// Seq counts the reports of this life; a lower one is older.
	Seq uint64
	// Shown is the epoch that was granted last; zero before the first since the process started. Floor is the first one
	// that the copy can still be cut at; zero if it never showed one.
	Shown, Floor ID
	// Marks are of Floor and later epochs, ascending, durable, of a copy that is whole at each boundary. Those up to After
	// are left out, as asked for.
	Marks []Mark
	After ID
	// More: there are later marks, left out to bound the message. The next Gather asks for them.
	More bool
	// Settling: the copy is about to begin a resync, and asks for Settled.
	Settling bool
	// Decision is set once the copy was told the epoch of a promotion that it is part of.
	Decision *Decision
}

// Outdated is the answer of a copy that follows a higher attempt.
type Outdated struct{ Attempt Attempt }

// Grant tells a copy that an epoch is complete. Life is the receiver's.
type Grant struct {
	Attempt Attempt
	Life    Life
	Epoch   ID
}

// Decision is the one epoch that a group is promoted at. A copy that is part of the promoted group has it on stable
// storage before it acts on it; other copies are not told.
type Decision struct {
	Epoch ID `json:"epoch"`
	// Config is the epoch's. Copies of other shards are not part of the promoted group.
	Config Config `json:"config"`
	// Without are shards that a person gave up; they are not part of the promoted group.
	Without []ShardID `json:"without,omitempty"`
}

// Has reports whether a shard is part of the promoted group.
func (d Decision) Has(s ShardID) bool { return d.Config.Has(s) && !slices.Contains(d.Without, s) }

// Of is the decision for a shard: nil if it is no part of the promoted group. Such a copy does not keep it.
func (d *Decision) Of(s ShardID) *Decision {
	if d == nil || !d.Has(s) {
		return nil
	}
	return d
}

// Decide tells a copy the decision. Life is the receiver's.
type Decide struct {
	Attempt  Attempt
	Life     Life
	Decision Decision
}

// Decided is the answer of a copy that has the decision durable.
type Decided struct {
	Attempt Attempt
	Life    Life
	Epoch   ID
}

// Settled is the answer to a report of a copy that is settling, with the report's Seq. Epoch is the last complete one.
// The copy's later marks will never be used.
type Settled struct {
	Attempt Attempt
	Life    Life
	Seq     uint64
	Epoch   ID
}

func (Ask) message()       {}
func (Answer) message()    {}
func (Prepare) message()   {}
func (Ready) message()     {}
func (Commit) message()    {}
func (Committed) message() {}
func (Abort) message()     {}
func (Refused) message()   {}
func (Gather) message()    {}
func (Report) message()    {}
func (Outdated) message()  {}
func (Grant) message()     {}
func (Decide) message()    {}
func (Decided) message()   {}
func (Settled) message()   {}
