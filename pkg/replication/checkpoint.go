package replication

import (
	"encoding/binary"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// checkpoint is what recovery starts from: the images hold every record before Applied, and the journal is live from
// OldestSegment on.
//
// It is a file of two slots of 4096 bytes, written in turn, so that a torn write leaves the one before. A rename would
// cost two more syncs, and a checkpoint is written while applications wait for the same disk. Slot, little endian:
//
//	 0  u64  magic "SLPCHKP3"
//	 8  u64  generation; the valid slot with the higher one counts
//	16  u64  applied ordinal
//	24  u64  applied position: segment
//	32  i64  applied position: offset in the segment, bytes
//	40  u64  oldest live segment
//	48  u64  durable ordinal when this was written: recovery that ends before it is corruption
//	56  u64  highest ordinal released because it was acknowledged (and not folded)
//	64       group id, 16 bytes
//	80       pool id, 16 bytes
//	96  u64  last durable record: segment
//	104 i64  last durable record: offset of its end in the segment, bytes
//	112 u64  last durable record: number in the name of the segment's file
//	120 u32  last durable record: checksum of its header
//	124      0
//	128 u64  generations of group.json,
//	136 u64    the change map,
//	144 u64    and the file of cuts (files.go)
//	152 u64  horizon: what the peer sent in a sync shows its writes up to this ordinal at most (journal.KindHorizon)
//	160 u64  identity of a record that has left the journal, or never was in it: ordinal; 0 for none
//	168 u64    and fingerprint
//	176 u64  reach: the images hold no record behind this place; segment, 0 if that is not known
//	184 i64  reach: offset in the segment, bytes
//	192 u64  the last applied ordinal whose time is known: ordinal; 0 for none
//	200 i64  and when it was written, Unix nanoseconds
//	208      0
//	508 u32  CRC-32C of bytes 0 to 508
//
// Version 2 had the magic "SLPCHKP2", and no reach. Version 1 had the magic "SLPCHKP1", and ended with the CRC-32C of
// bytes 0 to 64, at 64.
type checkpoint struct {
	Generation     uint64
	AppliedOrdinal uint64
	Applied        journal.Position
	OldestSegment  uint64
	DurableOrdinal uint64
	ReleasedAcked  uint64
	Owner          owner
	Mark           journal.Mark // its Ordinal is DurableOrdinal
	Files          [fileCount]uint64
	Horizon        uint64
	Tail           core.Tail
	Reach          journal.Position
	Dated          RecoveryPoint
}

const (
	checkpointMagic1    = 0x31504b4843504c53 // "SLPCHKP1"
	checkpointMagic2    = 0x32504b4843504c53 // "SLPCHKP2"
	checkpointMagic     = 0x33504b4843504c53 // "SLPCHKP3"
	checkpointSlotBytes = 4096
	checkpointUsedBytes = 512
)

// take notes the last durable record. A journal that has none has nothing to say.
func (c *checkpoint) take(m journal.Mark) {
	if m != (journal.Mark{}) {
		c.Mark, c.DurableOrdinal = m, m.Ordinal
	}
}

func (c *checkpoint) encode() []byte {
	b := make([]byte, checkpointSlotBytes)
	le := binary.LittleEndian
	le.PutUint64(b[0:], checkpointMagic)
	le.PutUint64(b[8:], c.Generation)
	le.PutUint64(b[16:], c.AppliedOrdinal)
	le.PutUint64(b[24:], c.Applied.Segment)
	le.PutUint64(b[32:], uint64(c.Applied.Offset))
	le.PutUint64(b[40:], c.OldestSegment)
	le.PutUint64(b[48:], c.DurableOrdinal)
	le.PutUint64(b[56:], c.ReleasedAcked)
	copy(b[64:], c.Owner.group[:])
	copy(b[80:], c.Owner.pool[:])
	le.PutUint64(b[96:], c.Mark.End.Segment)
	le.PutUint64(b[104:], uint64(c.Mark.End.Offset))
	le.PutUint64(b[112:], c.Mark.File)
	le.PutUint32(b[120:], c.Mark.Chain)
	for i, generation := range c.Files {
		le.PutUint64(b[128+8*i:], generation)
	}
	le.PutUint64(b[152:], c.Horizon)
	le.PutUint64(b[160:], c.Tail.Ordinal)
	le.PutUint64(b[168:], c.Tail.Fingerprint)
	le.PutUint64(b[176:], c.Reach.Segment)
	le.PutUint64(b[184:], uint64(c.Reach.Offset))
	le.PutUint64(b[192:], c.Dated.Ordinal)
	le.PutUint64(b[200:], uint64(c.Dated.UnixNanos))
	le.PutUint32(b[508:], crc32c.Sum(b[:508]))
	return b
}

// decodeCheckpointSlot returns an error that says what is wrong with the slot.
func decodeCheckpointSlot(b []byte) (checkpoint, error) {
	le := binary.LittleEndian
	if len(b) < checkpointUsedBytes {
		return checkpoint{}, fmt.Errorf("truncated to %s", words.Count(len(b), "byte"))
	}
	sum, version1 := 508, le.Uint64(b) == checkpointMagic1
	if version1 {
		sum = 64
	}
	if got := le.Uint64(b); got != checkpointMagic && got != checkpointMagic2 && !version1 {
		return checkpoint{}, fmt.Errorf("magic %#x at offset 0", got)
	}
	if want, got := le.Uint32(b[sum:]), crc32c.Sum(b[:sum]); want != got {
		return checkpoint{}, fmt.Errorf("checksum %#x at offset %d, content has %#x", want, sum, got)
	}
	c := checkpoint{
		Generation:     le.Uint64(b[8:]),
		AppliedOrdinal: le.Uint64(b[16:]),
		Applied:        journal.Position{Segment: le.Uint64(b[24:]), Offset: int64(le.Uint64(b[32:]))},
		OldestSegment:  le.Uint64(b[40:]),
		DurableOrdinal: le.Uint64(b[48:]),
		ReleasedAcked:  le.Uint64(b[56:]),
	}
	if version1 {
		return c, nil
	}
	copy(c.Owner.group[:], b[64:])
	copy(c.Owner.pool[:], b[80:])
	c.Mark = journal.Mark{
		Ordinal: c.DurableOrdinal, Chain: le.Uint32(b[120:]), File: le.Uint64(b[112:]),
		End: journal.Position{Segment: le.Uint64(b[96:]), Offset: int64(le.Uint64(b[104:]))},
	}
	for i := range c.Files {
		c.Files[i] = le.Uint64(b[128+8*i:])
	}
	c.Horizon = le.Uint64(b[152:])
	c.Tail = core.Tail{Ordinal: le.Uint64(b[160:]), Fingerprint: le.Uint64(b[168:])}
	if le.Uint64(b) == checkpointMagic {
		c.Reach = journal.Position{Segment: le.Uint64(b[176:]), Offset: int64(le.Uint64(b[184:]))}
		c.Dated = RecoveryPoint{Ordinal: le.Uint64(b[192:]), UnixNanos: int64(le.Uint64(b[200:]))}
	}
	return c, nil
}

// checkpointFile writes checkpoints in turn. It is safe for concurrent use: apply moves it on, trim releases segments
// behind it, and every file that is replaced as a whole puts its generation there.
type checkpointFile struct {
	file vfs.File
	// mu guards last and the file. It is held while the file is written. The journal's locks may be taken with it held.
	mu   sync.Mutex
	last checkpoint
	// generation is last's, to be read without the lock.
	generation atomic.Uint64
	// horizon goes into every checkpoint that is written. It may be that of a record which is not durable yet.
	horizon atomic.Uint64
}

// takeEnd puts the last durable record of a journal into the checkpoint. It lets recovery tell damage to the newest
// records from the torn tail of a crash, which nothing else in the journal can: they have no successor.
func (f *checkpointFile) takeEnd(j *journal.Journal) error {
	return f.change(func(c *checkpoint) { c.take(j.DurableMark()) })
}

// announceSegment puts a segment that has its first durable records into the checkpoint: from then on it has to be
// there.
func (f *checkpointFile) announceSegment(m journal.Mark) error {
	return f.change(func(c *checkpoint) { c.take(m) })
}

// openCheckpoint reads the newer valid slot. One damaged slot is what a crash while writing leaves; two are corruption,
// an error naming file and offsets.
func openCheckpoint(fsys vfs.FS, path string) (*checkpointFile, error) {
	file, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	c := &checkpointFile{file: file}
	var slotErr [2]error
	found := false
	for slot := range slotErr {
		b := make([]byte, checkpointUsedBytes)
		n, readErr := file.ReadAt(b, int64(slot)*checkpointSlotBytes)
		got, err := decodeCheckpointSlot(b[:n])
		if err != nil {
			slotErr[slot] = err
			if n == 0 && readErr != nil {
				slotErr[slot] = readErr
			}
			continue
		}
		if !found || got.Generation > c.last.Generation {
			c.last, found = got, true
		}
	}
	if !found {
		file.Close()
		return nil, fmt.Errorf("%s: no valid checkpoint: slot at offset 0: %w; slot at offset %d: %w; restore the group "+
			"from its peer",
			path, slotErr[0], checkpointSlotBytes, slotErr[1])
	}
	c.generation.Store(c.last.Generation)
	c.horizon.Store(c.last.Horizon)
	return c, nil
}

// createCheckpoint makes the file whole before it has its name, so that a crash never leaves one without a valid slot.
func createCheckpoint(fsys vfs.FS, path string, first checkpoint) error {
	first.Generation = 1
	return vfs.WriteFileAtomic(fsys, path, append(first.encode(), make([]byte, checkpointSlotBytes)...))
}

// read returns the checkpoint that counts.
func (f *checkpointFile) read() checkpoint {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// change makes a changed checkpoint durable; one that change leaves as it is needs no writing. After an error the
// checkpoint before it still counts.
func (f *checkpointFile) change(change func(*checkpoint)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changeLocked(change)
}

func (f *checkpointFile) changeLocked(change func(*checkpoint)) error {
	next := f.last
	if change(&next); next == f.last {
		return nil
	}
	return f.writeLocked(next)
}

// changeAnd is change, and then keeps others from changing the checkpoint until also is done.
func (f *checkpointFile) changeAnd(change func(*checkpoint), also func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.changeLocked(change); err != nil {
		return err
	}
	return also()
}

// saveSyncBegin makes the horizon of a sync durable, and the identity of the last record before it; nil if that is not
// known.
func (f *checkpointFile) saveSyncBegin(horizon uint64, tail *core.Tail) error {
	f.horizon.Store(horizon)
	return f.change(func(c *checkpoint) {
		c.Horizon, c.Tail = horizon, core.Tail{}
		if tail != nil {
			c.Tail = *tail
		}
	})
}

// beginAt sets where apply begins, in memory: the next checkpoint that is written says it. For a group that is being
// opened.
func (f *checkpointFile) beginAt(p journal.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last.Applied = p
}

// writeLocked makes c durable. After an error the checkpoint before it still counts.
func (f *checkpointFile) writeLocked(c checkpoint) error {
	c.Generation = f.last.Generation + 1
	c.Horizon = f.horizon.Load()
	slot := int64(c.Generation % 2)
	if _, err := f.file.WriteAt(c.encode(), slot*checkpointSlotBytes); err != nil {
		return fmt.Errorf("checkpoint %s: %w", f.file.Name(), err)
	}
	if err := f.file.Datasync(); err != nil {
		return fmt.Errorf("checkpoint %s: %w", f.file.Name(), err)
	}
	f.last = c
	f.generation.Store(c.Generation)
	return nil
}

func (f *checkpointFile) close() error { return f.file.Close() }
