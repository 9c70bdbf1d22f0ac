// Package journal is a group's ordered log of writes on disk: records in segment files, appended to the page cache,
// made durable by group commit, read back in order, recovered after a crash, and recycled.
//
// It is not a write-ahead log for this program's own state, does not know images, peers or roles, and never decides
// that a segment may go: Release is told so. It does not lock its directory either; one process at a time opens it.
//
// # Concurrency
//
// All methods of Journal are safe for concurrent use. Appends run one after another; reads, syncs and the creation of
// segments run beside them. A Cursor belongs to one goroutine. The package starts no goroutines.
//
// # Directory
//
// Segment files NNNNNNNN.seg, preallocated; of Options.SegmentBytes, except for older ones from before that was
// changed, and for those of a record that needed more. The names mean nothing; a file's identity is in its header. Live
// segments form a chain: each names its predecessor and the place in it where it continues it. All other files are
// free: zero header, or a sequence below the checkpoint's OldestSegment. Free files are used again without being
// cleared; a random salt per use, mixed into every record's checksum, keeps what an earlier use left from being read.
//
// # Segment header
//
// 4096 bytes, of which the first 512 hold the fields, so that writing them is writing one sector; a copy of the 512
// lies at 2048, so that damage to the first can be told from a file that was never used. Integers are little endian.
//
//	0    magic           8 bytes "SLPJSEG\n"
//	8    version         u32  1
//	12   shard           u16
//	14   0               u16
//	16   group id        16 bytes
//	32   timeline id     16 bytes
//	48   sequence        u64  1 and up; used again only if a power loss left no record in it
//	56   salt            u64  random
//	64   first ordinal   u64  ordinal of the last record before this segment, plus one
//	72   prev sequence   u64  segment with the record before this one's first; 0 if there was none
//	80   prev end        i64  offset in that segment where it ends; what lies behind is superseded
//	88   chain           u32  header checksum of the record before
//	92   0               u32
//	96   durable         u64  durable ordinal when the segment was created
//	104  segment bytes   i64  size of the file
//	112  durable segment u64  where the durable part of the stream ended when the segment was created:
//	120  durable offset  i64    segment and offset
//	128  prev file       u64  number in the file name of the segment that this one continues; 0: none or not known
//	136  generation      u64  of the checkpoint when the segment was created; 0 if not known
//	144  0
//	508  checksum        u32  CRC-32C of the 508 bytes before
//
// # Record
//
// At multiples of 64 bytes, from 4096 on; header, data if the kind has any, zeros up to a multiple of 64. A record
// never spans segments.
//
//	0   magic           u32  "SLJR"
//	4   header checksum u32  CRC-32C of salt u64, sequence u64, offset of the record in the file u64, and bytes 8 to 64
//	8   data checksum   u32  CRC-32C xor CRC-32 (IEEE 802.3) of the data; 0 without data
//	12  chain           u32  header checksum of the record before; for a segment's first record, its header's chain
//	16  ordinal         u64
//	24  durable         u64  durable ordinal when the record was written here
//	32  offset          i64  in the volume, bytes
//	40  length          u32  bytes; of the data if the kind has any
//	44  volume          u32
//	48  epoch           u32
//	52  shard           u16
//	54  kind            u8
//	55  flags           u8   1: everything before this record was durable when it was written
//	56  time            i64  Unix nanoseconds
//
// On the link a record is the same header with salt, sequence, place, chain and flags 0, and its data without padding.
//
// # Recovery
//
// The chain is read record by record until one does not verify. If anything that does verify, before or behind that
// place, or the checkpoint, says that the place was durable, it is corruption: CorruptionError, and no byte is changed.
// Otherwise it is the torn tail of a crash and the stream ends there. What was read but is not proven durable is
// written and synced again, segments behind the end lose their headers, and the next record goes to a new segment,
// whose header says where its predecessor ends. So nothing behind a torn tail, and nothing from an earlier use of a
// file, comes back.
//
// # Missing files
//
// A Mark in the checkpoint names the last durable record: its place, its checksum and its file. Before the first
// records of a segment count as durable, Options.Announce puts the segment into the checkpoint; each segment names the
// one that it continues. So every file between the checkpoint's OldestSegment and the announced one must be there, and
// be the one that was written: one that is missing, shorter, an older copy or another journal's is a CorruptionError
// with its name. A segment names the checkpoint's generation, too, so that an older copy of that is found out.
//
// What cannot be detected: damage to the last records of the journal when nothing was written after they became durable
// and the checkpoint does not name them. On disk that is the same as a tail that was never synced.
package journal
