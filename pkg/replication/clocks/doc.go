// Package clocks measures time so that it is never told too short, and compares the clocks of two sites.
//
// Two machines have no clock in common: a time of one, subtracted from a time of the other, is off by their difference,
// which is unknown beforehand. So durations come from one machine's clocks alone ([Instant]), and what happens at the
// peer is placed between two messages of this machine ([Exchange]): a message that carries the echo of a stamp was
// composed after the stamp was sent, whatever the link did with either.
//
//	secondary            primary
//	stamp 7, at s  --->
//	                     reads its head H, which it does after s
//	               <---  head H, echo of 7
//
// Every write from before s has an ordinal up to H. How long the messages took makes s older, never wrong.
//
// # Assumptions
//
// No clock of a machine is slower than time itself by more than [DriftPPM], unless another one of the same machine is
// not: of boot time (counts suspension), raw monotonic time (is not steered by NTP) and wall clock (is set right after
// a virtual machine was paused) the largest difference counts. A machine that was paused, or went back to a snapshot of
// itself, and whose wall clock has not been set since, cannot know that.
//
// Not here: what ordinals mean (package core), and messages (package link).
//
// # Concurrency
//
// [Instant] is a value. [Exchange] and [Difference] are safe for concurrent use.
package clocks
