// Package replication is the consistency group: volumes with one write order, one journal, one role.
//
// A volume is its image plus the journal records not yet applied to it. Each line of that picture is a file here:
//
//	write   write.go     record appended to the group's journal (page cache, log.go), indexed, acknowledged
//	flush   flush.go     fdatasync(journal), one for all volumes of the group that wait
//	apply   apply.go     durable records go to the images, in order, lazily, coalesced, at a pace that leaves the disk
//	                     to the journal (apply_writeout.go); then checkpoint.go
//	ship    ship.go      durable records go to the peer, in order, batched (sender.go); sync.go copies extents
//	read    read.go      index of unapplied records first, else the image
//	trim    trim.go      a segment goes when applied here, and acknowledged there or folded into the change map
//	cut     cut.go       images at one ordinal: apply runs to it, and copies what it overwrites from then on
//	keep    preserved.go images at one ordinal without a copy: apply keeps what it overwrites
//	view    view.go      image + records up to one ordinal (points.go), and what the view has of its own
//
// receive.go is the same engine fed by the link, recover.go opens what a crash left, promote.go changes the role,
// relocate.go moves it by agreement, yield.go gives writes past a fork up, verify.go compares both sites,
// members.go has the volumes, leave.go takes them out, copies.go binds a secondary's, site.go holds a site's groups,
// site_calls.go takes the calls of peers, shard.go has what a group does as a part of one over several nodes.
// Decisions are made in package core; formats belong to the packages journal and changemap, and to checkpoint.go,
// meta.go, remember.go and cut_state.go here. clock.go tells how old the writes are that the peer lacks.
//
// It is not a block device: a [Volume] implements blockdev.Device, and something else (the shim) serves it.
//
// # Concurrency
//
// All exported methods are safe for concurrent use. Locks, taken in this order and never the other way round, named by
// their types or by the fields of Group:
//
//	Site.mu                 the list of groups; see also Site.quotaMu, which comes before members.mu
//	settings.mu             one change of settings at a time
//	bookmarks.mu            one bookmark is set at a time; never with settings.mu
//	handover.mu             one relocation or yield at a time; never with settings.mu
//	streams.mu              which streams there are, and who keeps them out
//	Shard.mu                what a shard decides about epochs; answerHold and shardMarks take no other lock within theirs
//	members.mu              one change of members at a time; held over what that takes, never by the data path
//	cuts.opMu               one cut, or release of one, at a time; never with members.mu
//	views.opMu              one view is made or deleted at a time; never with members.mu
//	applier.mu              one pass of apply at a time
//	log.mu                  one append at a time: ordinal, page cache and index move together
//	rememberedFile.mu       the file of what is remembered of the peer
//	records of the pool     Pool.Update and what it calls; never taken with one of those below held
//	Group.mu                core and what it decides about; never held across data I/O, held while group.json is written
//	ViewVolume.ownMu        a view takes extents
//	ViewVolume.mu, View.mu  which extents a view has; whether it has failed, and that being stored
//	changeSet.mu, cuts.mu   the change map, the file of cuts; held while it is written
//	checkpointFile.mu       the checkpoint; held while it is written, and around the file that it gets a generation of
//
// Locks of types that take no other lock (writeClock, mark, extentCopy, broadcast, verification) come last. Those of
// preservedSets and preserved, in this order, come before those of extentCopy.
//
// A group runs six goroutines: apply, trim, commit (makes unflushed records durable), link, one that copies images to
// snapshots, and one that compares both sites.
package replication
