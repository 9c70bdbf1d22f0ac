// The oracle searches for broken guarantees of replication (order, durability, loss reports, divergence) by running two
// sites through random disasters and judging what is left against what it asked for.
//
// A round is one consistency group with volumes, writers and a script of random events, all drawn from a seed. Writers
// write blocks stamped with who wrote them, where, as which operation and when on one clock; so a copy can be read back
// as a set of operations. Two judges look at it:
//
//   - exact (check.go, checkImage): writers take turns, so the oracle knows the operation of every ordinal. A copy at
//     ordinal n has to be the operations 1 to n and nothing else, block by block.
//   - order (checkOrder): writers run freely and only happens-before is known: an operation that had returned, or that
//     a completed flush covers, before another was issued. A copy that shows the other has to show the one, or
//     something later in its place.
//
// In mode memory both sites run in this process on crashable file systems (vfs.MemFS) and a network in memory: kill -9
// is replication.Site.Kill, a power loss is a crash clone with a random share of what was unsynced. Besides the events
// themselves, drills ask "what if a site ended now?" of clones while the round goes on. In mode loop the built programs
// run as real processes with loop devices, FUSE and TCP (loop.go).
//
// A circle (circle.go) is a round with one writer, in which the group goes from site to site and back: failovers with a
// fork from which either site gives way, moves, resyncs, test failovers, suspensions, repairs, and changes of members.
// Every copy, view and tail has to be exactly what its ordinal says. Mode loop-circle is the same on real processes,
// FUSE and loop devices, with kills by SIGKILL (devcircle.go).
//
// It is not a benchmark, and it does not test file systems or databases; the demo does.
//
// # Concurrency
//
// A round has one driving goroutine, which alone draws the events, and writers. Rounds share nothing, so many run at a
// time. A seed repeats the events of a round but not the scheduling of its goroutines.
package main
