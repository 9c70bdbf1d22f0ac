// Package core decides what a consistency group does: which role it has, whom it follows, what it ships from where,
// what may be trimmed, when it can be promoted and what that lost.
//
// It is a deterministic state machine: [Group.Step] takes one event and returns the actions to carry out, in order. It
// does no I/O, reads no clock, starts no goroutine and draws no random number; times and identifiers come in events.
// The same events give the same actions, so the scripts in testdata are its specification.
//
// It does not see data. Records, images and extents are the caller's (package replication); core sees ordinals.
//
// # Obligations of the caller
//
//  1. Carry out actions in order. A [Persist] must be durable before the next action is begun.
//  2. Report local facts (head, durable, applied, released ordinals) with the event that needs them.
//  3. After an action failed, close the stream and report [Disconnected]; after a failed Persist, stop the group.
//  4. One goroutine at a time.
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
// The last one is what Meta.Term is for: after a planned promotion the timeline is the same, so a call from before it, or of a demoted
// primary that has not heard of it, could not be told from the new primary's.
package core
