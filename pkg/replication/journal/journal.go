package journal

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"path"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Options configure a journal. FS, Dir and SegmentBytes are required.
type Options struct {
	FS  vfs.FS
	Dir string // created if missing

	GroupID    [16]byte // segments of another group are refused
	TimelineID [16]byte // goes into the segments that are created from now on
	Shard      uint16   // segments of another shard are refused; Append puts it into the records

	// size of a segment file: a multiple of 4096, at least 64 KiB; a larger record gets one of its own
	SegmentBytes   int64
	HardLimitBytes int64 // Append returns ErrFull rather than let the files grow beyond; 0 is no limit
	FreeTarget     int   // segments that Prepare keeps ready
	// of these, as many as appends do not take while there may be other ones, so that DropFree has something to give
	KeepFree int

	StartOrdinal      uint64 // the first record of an empty journal gets StartOrdinal+1
	OldestSegment     uint64 // from the checkpoint: segments with a lower sequence are free
	MinDurableOrdinal uint64 // from the checkpoint: a recovery that ends before it is corruption
	Mark              Mark   // from the checkpoint: a record that has to be found, unless its segment is free

	// Checkpoint is the path of the file that those are from, for errors. Generation returns the number of its latest
	// durable content, which goes into new segments; a segment with a higher one than Generation returns during Open says
	// that the checkpoint is an older copy. It must not block. nil: not known.
	Checkpoint string
	Generation func() uint64
	// Announce is called when the first records of a segment are on the disk and before they count as durable, with the
	// last of them. It puts the mark into the checkpoint, durably; after an error the records do not count, and the
	// next sync calls it again. Nothing of the journal is locked, but no other sync runs meanwhile. nil is fine.
	Announce func(Mark) error

	// Visit is called by Open for each live record, in stream order. An error ends Open. Recovery may find corruption
	// behind a record that was visited already. nil is fine.
	Visit func(Header, Location) error
	// RoomMade is called when an append that got ErrFull may succeed now and neither Release nor SetLimits was what did
	// it: a segment that was released while it was read is free now, or Prepare has ended making one. The
	// journal is locked meanwhile: it must not block, nor call the journal. nil is fine.
	RoomMade func()
	// Memory keeps the newest records for cursors; nil: they are read from the files.
	Memory *Memory
	// Rand is the source of segment salts; nil is crypto/rand. Tests make it deterministic.
	Rand func() uint64
}

func (o *Options) check() error {
	switch {
	case o.FS == nil || o.Dir == "":
		return errors.New("journal: Options.FS and Options.Dir are required")
	case o.SegmentBytes < minSegmentBytes || o.SegmentBytes%segmentHeaderBytes != 0:
		return fmt.Errorf("journal %s: segment size %d must be a multiple of %d and at least %d",
			o.Dir, o.SegmentBytes, segmentHeaderBytes, minSegmentBytes)
	case o.HardLimitBytes < 0 || o.FreeTarget < 0 || o.KeepFree < 0:
		return fmt.Errorf("journal %s: negative limit", o.Dir)
	}
	return nil
}

func cryptoRand() uint64 {
	var b [8]byte
	// crypto/rand.Read never fails: it ends the program instead.
	_, _ = rand.Read(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// Journal is an open journal. All methods are safe for concurrent use.
type Journal struct {
	o Options

	// appendMu makes appends one after another. It is held over the write to the page cache, so nothing that must not
	// wait for a write (Head, ReadData, Sync of what is there) takes it. Lock order: appendMu, then mu.
	appendMu sync.Mutex
	heads    [maxRunRecords][recordHeaderBytes]byte // under appendMu
	bufs     [3 * maxRunRecords][]byte              // under appendMu
	joinBuf  []byte                                 // under appendMu; for files without WritevAt
	crcs     [maxRunRecords]uint32                  // under appendMu; of the heads

	recent *recent // nil without a Memory

	// prepareMu keeps two Prepare calls from filling the same gap.
	prepareMu sync.Mutex

	mu   sync.Mutex
	cond sync.Cond // a sync ended, a pin went away

	live []*segment // oldest first; the last one is written to unless it is sealed
	free []*segment // ready to be taken, first in first out

	timeline [16]byte
	mustRoll bool
	chain    uint32
	head     uint64
	end      Position
	// end, if a record ends there; zero in an empty journal, whose end is where its first segment will be
	prev     Position
	prevFile uint64 // number of the file that prev lies in; 0 if not known
	appended uint64 // records appended since Open; what a Sync waits for

	durable         uint64
	durableEnd      Position
	durableMark     Mark
	durableAppended uint64
	syncing         bool
	waiters         []waiter // of SyncAsync, in the order of their calls

	nextSequence uint64
	nextName     uint64
	creating     int64 // bytes of segment files being created: they count against the limit
	retired      int64 // bytes of released segments that are still pinned
	pinned       int   // pins on all segments
	failed       error
	closed       bool
}

// segment is a segment file: live, or in the free pool. Fields below hdr are under Journal.mu, except that the appender
// may read them under appendMu alone.
type segment struct {
	name string // path
	f    vfs.File
	size int64 // of the file
	hdr  segmentHeader

	end      int64 // behind the last record
	last     uint64
	synced   int64 // datasynced up to here
	sealed   bool
	pins     int
	released bool
	index    []indexEntry
}

// indexEntry lets PositionOf start near a record instead of at the start of the segment.
type indexEntry struct {
	off    int64  // of a record
	before uint64 // ordinal of the record before it
}

// indexEvery is the distance of index entries in bytes: one read of a chunk finds a record, and a GiB costs 64 KiB.
const indexEvery = 256 << 10

// note adds the record at off to the sparse index.
func (s *segment) note(off int64, before uint64) {
	if n := len(s.index); n == 0 || off-s.index[n-1].off >= indexEvery {
		s.index = append(s.index, indexEntry{off, before})
	}
}

// SegmentInfo describes a live segment.
type SegmentInfo struct {
	Sequence     uint64
	FirstOrdinal uint64 // ordinal of the last record before the segment, plus one
	LastOrdinal  uint64 // of its last record; FirstOrdinal-1 if it has none with an ordinal of its own
	Bytes        int64  // used, header included
	FileBytes    int64  // size of its file
	Sealed       bool   // takes no more records
	Timeline     [16]byte
	Begin        Position // of its first record
	End          Position // behind its last record
}

// Head returns the ordinal of the last appended record.
func (j *Journal) Head() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.head
}

// Durable returns the ordinal up to which everything is on stable storage.
func (j *Journal) Durable() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durable
}

// End returns the position behind the last appended record.
func (j *Journal) End() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// DurableEnd returns the position up to which everything is on stable storage. Unlike Durable it also moves with
// records that take no ordinal.
func (j *Journal) DurableEnd() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durableEnd
}

// DurableMark returns the last durable record, for the checkpoint.
func (j *Journal) DurableMark() Mark {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.durableMark
}

// Segments returns the live segments, oldest first.
func (j *Journal) Segments() []SegmentInfo {
	j.mu.Lock()
	defer j.mu.Unlock()
	infos := make([]SegmentInfo, len(j.live))
	for i, s := range j.live {
		infos[i] = SegmentInfo{
			Sequence:     s.hdr.sequence,
			FirstOrdinal: s.hdr.firstOrdinal,
			LastOrdinal:  s.last,
			Bytes:        s.end,
			FileBytes:    s.size,
			Sealed:       s.sealed,
			Timeline:     s.hdr.timeline,
			Begin:        Position{s.hdr.sequence, segmentHeaderBytes},
			End:          Position{s.hdr.sequence, s.end},
		}
	}
	return infos
}

// UsedBytes returns the size of the live segments' files, including released ones that are still being read.
func (j *Journal) UsedBytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.usedLocked()
}

// TotalBytes returns the size of all segment files, live, free and about to be.
func (j *Journal) TotalBytes() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.totalLocked()
}

func (j *Journal) usedLocked() int64 {
	n := j.retired
	for _, s := range j.live {
		n += s.size
	}
	return n
}

func (j *Journal) totalLocked() int64 {
	n := j.usedLocked() + j.creating
	for _, s := range j.free {
		n += s.size
	}
	return n
}

// usableLocked says why the journal takes no more appends and syncs, if so.
func (j *Journal) usableLocked() error {
	if j.closed {
		return ErrClosed
	}
	return j.failed
}

// findLocked returns the index in live of the first segment with at least this sequence.
func (j *Journal) findLocked(sequence uint64) int {
	lo, hi := 0, len(j.live)
	for lo < hi {
		m := int(uint(lo+hi) >> 1)
		if j.live[m].hdr.sequence < sequence {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// currentLocked is the segment that takes records, or nil.
func (j *Journal) currentLocked() *segment {
	if n := len(j.live); n > 0 && !j.live[n-1].sealed {
		return j.live[n-1]
	}
	return nil
}

func (j *Journal) pinLocked(s *segment) { s.pins++; j.pinned++ }

// unpin releases a segment that a reader held, and completes its release if it waited for that.
func (j *Journal) unpin(s *segment) {
	j.mu.Lock()
	s.pins--
	j.pinned--
	drop := false
	if s.pins == 0 && s.released {
		j.retired -= s.size
		drop = !j.recycleLocked(s)
		j.tellRoomLocked()
	}
	j.cond.Broadcast()
	j.mu.Unlock()
	if drop {
		j.remove(s)
	}
}

func (j *Journal) tellRoomLocked() {
	if j.o.RoomMade != nil {
		j.o.RoomMade()
	}
}

// Close waits for a running sync and running reads, and closes the files. It does not sync: what was appended and not
// synced survives the process but not the machine. Calls after it fail with ErrClosed.
func (j *Journal) Close() error {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.cond.Broadcast()
	for j.syncing || j.pinned > 0 {
		j.cond.Wait()
	}
	segments := append(j.live, j.free...)
	j.live, j.free = nil, nil
	j.mu.Unlock()
	j.recent.forget()
	var err error
	for _, s := range segments {
		err = errors.Join(err, s.f.Close())
	}
	return err
}

// path returns the path of a segment file.
func (o *Options) path(name string) string { return path.Join(o.Dir, name) }
