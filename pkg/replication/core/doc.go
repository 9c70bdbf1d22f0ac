// Package core decides what a consistency group does: which role it has, whom it follows, what it ships from where,
// what may be trimmed, when it can be promoted and what that lost.
//
// It is a deterministic state machine: [Group.Step] takes one event and returns the effects to carry out, in order, and
// one decision about the stream. It does no I/O, reads no clock, starts no goroutine and draws no random number; times
// and identifiers come in events. The same events give the same effects and decisions, so the scripts in testdata are
// its specification.
//
// It does not see data. Records, images and extents are the caller's (package replication); core sees ordinals.
//
// # Obligations of the caller
//
//  1. Carry out the effects in order, each before the next one is begun, and all before the decision. A [Persist] has
//     to be durable then.
//  2. Report local facts (head, durable, applied, released ordinals) with the event that needs them.
//  3. After a decision that could not be carried out, close the stream and report [Disconnected]; after a failed
//     effect, stop the group.
//  4. Call from one goroutine at a time.
//
// # Roles and states
//
//	              Promote (planned: peer demoted, all here; forced: fork)
//	secondary  ------------------------------------------------------->  primary
//	    ^                                                                   |
//	    |  Hello of the promoted peer           Demote (nothing attached)   |
//	    +------------------------  demoted  <-------------------------------+
//
// A primary's link goes connecting -> streaming or syncing, and to diverged when the peer's history and its own
// disagree; from there only a person leads out. Invariants, for a group without a divergence:
//
//	secondary.durable <= primary.durable
//	acked <= durable <= head, applied <= durable
//	released without folding <= acked             (what left the journal is at the peer, or in the change map)
//	promotable => the copy is the primary's prefix up to durable
//	one of the two sites is primary or demoted    (else each would wait for the other's call)
//
// The last one is why there is a Meta.Term. After a planned promotion the timeline is the same. So a call from before
// it, or of a demoted primary that has not heard of it, could not be told from a call of the new primary.
package core
