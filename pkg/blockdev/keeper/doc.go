// Package keeper holds open files for a process that may die. The replicator puts the /dev/fuse descriptor of each
// volume here, with what it has to remember of it; when it comes back it gets both and serves on. As long as the
// keeper holds a descriptor the FUSE connection lives, and I/O waits instead of failing.
//
// It is a process of its own (cmd/keeper), and in a cluster a pod of its own, that nothing restarts: the driver and
// the replicator may both be dead, killed or replaced by newer ones, and the volumes live. It is small on purpose: it
// interprets neither names nor metadata, does no I/O on what it holds, keeps nothing on disk and starts no process,
// so that it rarely has to be replaced. What it holds dies with it; Holder, in the process that uses it, brings
// everything back when it returns. Only the keeper and the replicator dying at the same time loses a connection.
//
// Writeback, which lives in the keeper's process too, is the one thing that touches the mounts. See there for why it is
// not in the serving process. The driver says which files, through Watcher.
//
// # Protocol
//
// A Unix stream socket; frames in both directions, integers little-endian:
//
//	request   0  u32  n, bytes that follow, at most 65797
//	          4  u8   operation: 1 PUT, 2 GET, 3 LIST, 4 DROP, 5 WATCH, 6 UNWATCH
//	          5  u8   length of name, 1 to 255 (0 in LIST, WATCH and UNWATCH)
//	          6       name
//	             u32  length of meta, at most 65536 (0 in GET, LIST and DROP)
//	                  meta; in WATCH and UNWATCH an absolute path, at most 4095 bytes
//
//	response  0  u32  n, bytes that follow, at most 1 MiB
//	          4  u8   status: 0 ok, 1 not found, 2 bad request, 3 full, 4 busy
//	          5       ok: GET the meta, LIST for each name u8 length and name; the others nothing
//	                  not ok: a message in UTF-8
//
// One descriptor travels as SCM_RIGHTS with the first byte of a PUT request and of a GET's ok response. A PUT
// replaces what was there under the name. A DROP of a name that is not there is ok. WATCH makes Writeback visit a
// file, UNWATCH ends that and is ok when the file is closed, busy while a visit still waits for the file's server;
// both can be repeated. Requests on a connection are answered in order. A request that does not parse is answered
// with "bad request" and the connection is closed, since the start of the next request is unknown; unexpected
// descriptors are closed.
//
// # Concurrency
//
// All types are safe for concurrent use. A connection has a goroutine and deadlines of its own: a client that stops in
// the middle of a frame, or does not read its answer, loses its connection and delays no other client.
package keeper
