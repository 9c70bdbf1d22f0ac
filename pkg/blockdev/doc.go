// Package blockdev is what a volume is made of on one node: the pool directory, volume records, image files, loop
// devices, and Device, the interface between the shim and the engine.
//
// It is not replication: it does not know what is in a journal, and a replicable volume's current contents are more
// than its image. It is not policy either: who may mount what, and when something is formatted, is the driver's
// business; this package stores what the driver decided. It needs Linux.
//
// # Pool
//
// A pool is a directory on one file system:
//
//	pool.json                  the pool's id; written once (see also WithStateDir, of the record outside of the pool)
//	driver.lock                flock, held by the one driver process
//	replicator.lock            flock, held by the one replicator process
//	records.lock               flock, held while a record is changed, or a volume, snapshot or view comes or goes
//	volumes/<id>/volume.json   the volume record
//	volumes/<id>/image         the image: as many bytes as the record says, or more while it is being grown
//	volumes/<id>.creating/     a volume that is being created, with a flock of its image; garbage after a crash
//	volumes/<id>.deleting/     a volume that is being deleted; garbage
//	snapshots/<id>/            a snapshot: snapshot.json, its record, and image; .creating and .deleting as for volumes
//	views/<id>/                a view: view.json, its record, and for each volume its own extents and which they are
//	groups/<id>/               a group's files; see package replication
//	preserved/<group id>/      members of a group as they were at one ordinal; see package replication
//	reserve/                   space that is given up for what gives space back; see reserve.go
//
// A volume, snapshot or view comes and goes with the rename of its directory, so that at every instant, also after a
// power loss, it is there whole or not at all. Pool.Sweep removes the garbage. A directory without a record is damage,
// not garbage: it is reported and never removed. Package recordfile says how a record is written.
//
// # Concurrency
//
// A Pool, and everything that implements Device, may be used by many goroutines. Processes exclude each other by
// flock(2): one driver and one replicator per pool, and changes of records one at a time. Space is reserved for an
// image without the records' lock (create.go). Reading a record takes no lock, since it is replaced atomically. On a
// file system other than vfs.OS the locks are between the users of that FS value in this process.
package blockdev
