// Package epoch orders the shards of one consistency group against each other. A group whose members are on several
// nodes has one shard on each of these nodes, with its own journal and ordinals. An epoch is one instant on all shards:
// a boundary in the journal of each. A copy of the group is only ever shown at a complete epoch.
//
// It is the deterministic part: events in, effects out, no I/O, no clock, no goroutine, no random numbers. Times and
// identities come in events. The engine (package replication) holds acknowledgements, appends marks, applies, and
// carries the messages. Each type is for one goroutine at a time. docs/design/epochs.md has the proof.
//
// # Primary site
//
// [Coordinator] runs beside the first shard of the configuration, [Shard] beside every shard:
//
//	coordinator                         each shard
//	  Ask      ---------------------->    who it is, its last epoch, its configuration
//	           <----------------------  Answer
//	  Prepare  ---------------------->    boundary = end of the journal; hold what lies behind it
//	           <----------------------  Ready
//	  (all are ready: this instant is the epoch)
//	  Commit   ---------------------->    append the mark, release
//	           <----------------------  Committed
//
// A shard that waits longer than the bound releases, and refuses the commit forever: the epoch has no mark there, is
// complete nowhere, and the next one is tried. The coordinator prepares only after every shard has just answered. So a
// shard that is away costs the others at most one hold.
//
// # Secondary site
//
// [Collector] runs at any node, [Copy] beside the copy of every shard:
//
//	collector                           each copy
//	  Gather   ---------------------->    follow no older attempt than this one
//	           <----------------------  Report: durable marks, the epoch that it shows, its decision
//	  Grant    ---------------------->    it may apply up to the boundary of this epoch
//	  Decide   ---------------------->    promotion at this epoch; durable and permanent
//	           <----------------------  Decided
//	  Settled  ---------------------->    answers the report of a copy that needs a resync: its later marks are void
//
// # Why nothing but marks, configurations and decisions is durable
//
// Everything needs every shard. So each process that restarts takes a new [Life], and every message says which life of
// its receiver it is for: what was promised in an earlier life binds no process, and no process accepts it. Who
// coordinates, and whether there are two who do, decides only whether epochs come about, never whether one is
// consistent.
package epoch
