// The bench measures what replication costs: the same loads on a plain loop device and on a replicated volume of two
// real sites on this machine, in turn, and writes down the ratios beside their targets. docs/performance.md has the
// method and the latest results.
//
// A stage sets up devices for all its variants (beds) and runs its loads on them. A round runs each load on every
// variant before it goes on to the next load, beginning with another variant each round, so that a machine whose speed
// changes does so for all variants. A row's ratio is the median over the rounds of the quotient of two neighbouring
// measurements, not the quotient of two medians. After each measurement everything that was put off (journal records
// not applied or not shipped, dirty pages) is finished off the clock, so that no variant pays for the one before it.
//
// What makes a comparison fair is in the beds: all images are on the same file system and were written in full before,
// file systems are made alike, databases are copies of one another.
//
// It is not a load test of a disk, and its absolute numbers are of little use elsewhere. Nothing in it fails because a
// target is missed: that is a result.
//
// # Concurrency
//
// One goroutine runs everything in order, because two measurements at a time would measure each other. Watchers of a
// running load (lag, resources) are goroutines that end before the load's result is used.
package main
