// Package shim serves a blockdev.Device as one file on a FUSE mount, <mountpoint>/volume, speaking the kernel's
// protocol on raw /dev/fuse. A loop device over that file is a replicable volume:
//
//	application -> filesystem -> /dev/loopN -> page cache of the FUSE file -> Server -> blockdev.Device
//
// It is not a general FUSE library: one directory, one file of a fixed, huge size (FileSize), no permissions beyond
// "root only". It does not attach loop devices, holds no descriptor for another process (package keeper does) and does
// not know what a journal is.
//
// # Modes
//
// ModeFlush uses the kernel's writeback cache: writes are absorbed and merged by the page cache and reach the Device at
// writeback, at the latest at the fsync that makes them durable. Attach the loop device buffered.
//
// ModeAck opens the file with direct I/O, which goes past that cache, and every write, discard and zeroing is durable
// in the Device before it is acknowledged: a disk without a volatile cache. The first FSYNC is answered with ENOSYS,
// after which the kernel sends none. The loop device must be attached with direct I/O (LO_FLAGS_DIRECT_IO). A buffered
// loop device works too, since the file's open flags and not the loop device's decide about caching, but it runs its
// requests one after another.
//
// # Outliving the process
//
// The mount lives as long as a process holds the /dev/fuse descriptor. A keeper in another process holds a duplicate,
// and State, what was negotiated at INIT, since no INIT comes again. After a crash a new process calls Adopt with
// both: it asks the kernel to resend what was in flight (FUSE_NOTIFY_RESEND, kernel 6.9) and serves. Between death
// and adoption I/O waits. A request may therefore arrive twice, the first time in a process that may have executed
// all, some or none of it: Device writes, discards and zeroings must be idempotent, and they are, having a place and
// a content.
//
// # What the serving process must not do
//
// A system call that waits for the mount must not be made by the process that serves it, other than by Unmount: after
// a kill the waiting thread does not end before a process serves again, the killed process does not end before its
// threads have ended, and the supervisor may wait for that end before it starts the next process. Nothing in this
// package stats, opens or syncs anything at or below the mount point, but for one moment in Mount (see pollOnce);
// where it has to know whether something is mounted it reads /proc/self/mountinfo. Attaching a loop device, mounting,
// sync_file_range and fsync are other processes' work.
//
// # What other processes should know
//
// A process that has the file open and starts a child waits for the file's server: exec closes the child's copy,
// which writes back the file's dirty pages, and the parent waits for exec. A loop device needs no open file once it
// is attached, so close it then. And open it with the system call, not package os (see pollOnce), unless the mount
// is known to be made by this package.
//
// # Wire format
//
// include/uapi/linux/fuse.h, protocol 7.x, in native byte order; offsets used here are in proto.go. Requests are
//
//	 0 len u32 | 4 opcode u32 | 8 unique u64 | 16 nodeid u64
//	24 uid u32 | 28 gid u32 | 32 pid u32 | 36 extlen u16, pad u16
//	40 body, by opcode
//
// and replies
//
//	 0 len u32 | 4 error i32 (negative errno) | 8 unique u64
//	16 body, by opcode
//
// # Concurrency
//
// All methods of Server are safe for concurrent use. How requests are spread over threads is described in readers.go
// for ModeFlush, where each volume has threads of its own, and in workers.go for ModeAck, where all share a few.
package shim
