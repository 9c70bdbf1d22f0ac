package replication

import (
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// changeSet is what the peer lacks besides records of the journal: extents that are to be sent, and those that were
// sent and are not acknowledged. It is safe for concurrent use. Its lock comes after Group.mu; the lock of the
// checkpoint is taken with it held.
type changeSet struct {
	fs   vfs.FS
	path string // of the file
	// checkpoint says which group and pool the file belongs to, and has its generation.
	checkpoint *checkpointFile
	// withReserve is Pool.WithReserve.
	withReserve func(func() error) error

	mu       sync.Mutex
	pending  *changemap.Map
	inFlight []sentExtents
	// folded is the last ordinal that went from the journal to pending since the group was opened; 0 for none. The records
	// up to it are not shipped, also while the journal still holds them.
	folded uint64
	// syncAt is the ordinal of the last sync-begin, and forgotten the last ordinal with content among the extents that the
	// peer acknowledged: records past it are in the journal or in pending.
	syncAt, forgotten uint64
	// generation is that of the file.
	generation uint64
	// relied is how far the peer was when it had acknowledged the extents that are neither pending nor in flight any more;
	// reliedSaved is what group.json says of it.
	relied, reliedSaved core.Delivery
	// syncEnd is the batch of the sync-end on its way, until core has taken note of its acknowledgement; 0 without one.
	syncEnd uint64
	// doneBytes of the totalBytes of a sync were acknowledged, for the status; unsaved is how many extents were
	// acknowledged since the file was written.
	doneBytes, totalBytes, unsaved uint64
}

// sentExtents is a run of extents on its way.
type sentExtents struct {
	sequence uint64 // batch
	volume   uint32
	extent   uint64
	count    uint64
	// other is how many bytes of a range were sent that is not of the set: see sender.undo.
	other uint64
}

func (s *sentExtents) restore(m *changemap.Map) {
	for i := range s.count {
		m.MarkExtent(s.volume, s.extent+i)
	}
}

func newChangeSet(fs vfs.FS, path string, withReserve func(func() error) error) *changeSet {
	return &changeSet{
		fs: fs, path: path, withReserve: withReserve, pending: changemap.New(),
	}
}

// load sets what was on disk. It is for a group that is being opened.
func (c *changeSet) load(pending *changemap.Map, generation uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.generation = pending, generation
}

// loadRelied sets what group.json says of relied. It is for a group that is being opened.
func (c *changeSet) loadRelied(relied core.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.relied, c.reliedSaved = relied, relied
}

// reliedOn is how far the peer was when it acknowledged the last extents.
func (c *changeSet) reliedOn() core.Delivery {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.relied
}

// reliedStored notes what group.json says now.
func (c *changeSet) reliedStored(relied core.Delivery) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reliedSaved.Before(relied) {
		c.reliedSaved = relied
	}
}

// save makes what is pending or in flight durable. Extents that the peer acknowledged leave the file by it, so
// group.json has to say before how far the peer was then. Where it does not yet, save writes nothing and returns that
// and false.
func (c *changeSet) save() (relied core.Delivery, saved bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reliedSaved.Before(c.relied) {
		return c.relied, false, nil
	}
	return c.relied, true, c.saveLocked()
}

func (c *changeSet) saveLocked() error {
	all := c.pending.Clone()
	for _, s := range c.inFlight {
		s.restore(all)
	}
	c.unsaved = 0
	who := c.checkpoint.read().Owner
	generation, err := c.checkpoint.replaceFile(fileMap, c.generation, func(generation uint64) error {
		tag := changemap.Tag{Group: who.group, Pool: who.pool, Generation: generation}
		return c.withReserve(func() error { return all.SaveTagged(c.fs, c.path, tag) })
	})
	c.generation = generation
	return err
}

// replaceAll makes a map all that the peer lacks, durably. What it forgets is in the new map, so relied need not be
// stored.
func (c *changeSet) replaceAll(pending *changemap.Map) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.inFlight = pending, nil
	return c.saveLocked()
}

// forget empties the set, in memory: what is in it was meant for another peer.
func (c *changeSet) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.inFlight, c.syncEnd = changemap.New(), nil, 0
	c.doneBytes, c.totalBytes = 0, 0
}

// mark adds a range of a volume.
func (c *changeSet) mark(volume uint32, off, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.Mark(volume, off, n)
}

// fold adds what the records up to an ordinal touched. From then on these records are not shipped: the marks and the
// ordinal change under one hold of the lock.
func (c *changeSet) fold(marks *changemap.Map, through uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.Merge(marks)
	c.folded = max(c.folded, through)
}

// foldedThrough is the last ordinal that was folded; 0 for none.
func (c *changeSet) foldedThrough() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.folded
}

// runs returns what is pending or on its way, as ranges.
func (c *changeSet) runs() []byteRange {
	c.mu.Lock()
	all := c.pending.Clone()
	for _, s := range c.inFlight {
		s.restore(all)
	}
	c.mu.Unlock()
	var list []byteRange
	for at := (changemap.Cursor{}); ; {
		volume, extent, n, ok := all.NextRun(at, 1<<62)
		if !ok {
			return list
		}
		list = append(list, byteRange{volume, int64(extent) * changemap.ExtentBytes, int64(n) * changemap.ExtentBytes})
		at = changemap.Cursor{Volume: volume, Extent: extent + n}
	}
}

// removeVolume forgets a volume that leaves the group.
func (c *changeSet) removeVolume(volume uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.Drop(volume)
	c.endIdleProgress()
}

// needsSync reports whether there is something to send.
func (c *changeSet) needsSync() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending.Len() > 0
}

// bytes is how much the peer lacks.
func (c *changeSet) bytes() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytesLocked()
}

func (c *changeSet) bytesLocked() uint64 {
	n := c.pending.Bytes()
	for _, s := range c.inFlight {
		n += s.count * changemap.ExtentBytes
	}
	return n
}

// volumeBytes is how much of a volume is to be sent.
func (c *changeSet) volumeBytes(volume uint32) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending.VolumeBytes(volume)
}

// progress is how much of a sync was acknowledged; both are 0 while there is none.
func (c *changeSet) progress() (doneBytes, totalBytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.doneBytes, c.totalBytes
}

// beginSync notes that a sync-begin is sent at an ordinal. other is how much is sent that is not of the set.
func (c *changeSet) beginSync(at, other uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.syncEnd, c.doneBytes, c.totalBytes, c.syncAt = 0, 0, c.bytesLocked()+other, at
}

// sentOther notes that so many bytes are on their way that are not of the set.
func (c *changeSet) sentOther(sequence, bytes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight = append(c.inFlight, sentExtents{sequence: sequence, other: bytes})
}

// forgottenThrough is the last ordinal with content among the extents that the peer acknowledged.
func (c *changeSet) forgottenThrough() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.forgotten
}

// rewound empties the set of a site that follows its peer from an earlier ordinal on.
func (c *changeSet) rewound() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.inFlight, c.syncEnd, c.folded = changemap.New(), nil, 0, 0
	c.doneBytes, c.totalBytes = 0, 0
	return c.saveLocked()
}

// endSync notes the batch that a sync-end is about to be sent in. Behind the sending its acknowledgement could be
// there before the note.
func (c *changeSet) endSync(sequence uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.syncEnd = sequence
}

// ending reports whether a sync-end is on its way.
func (c *changeSet) ending() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.syncEnd != 0
}

// next is the first run that is to be sent.
func (c *changeSet) next(maxExtents uint64) (volume uint32, extent, count uint64, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending.NextRun(changemap.Cursor{}, maxExtents)
}

// take moves a run from what is to be sent to what is on its way. It reports false, and moves nothing, when records
// past the ordinal at were folded.
func (c *changeSet) take(run sentExtents, at uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.folded > at {
		return false
	}
	c.pending.ClearRun(run.volume, run.extent, run.count)
	c.inFlight = append(c.inFlight, run)
	return true
}

// putBack undoes the last take.
func (c *changeSet) putBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := len(c.inFlight) - 1
	c.inFlight[last].restore(c.pending)
	c.inFlight = c.inFlight[:last]
}

// clear forgets a run that the peer does not need.
func (c *changeSet) clear(volume uint32, extent, count uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.ClearRun(volume, extent, count)
}

// acknowledged forgets what the peer has on stable storage, up to a batch. place is how far the peer is with it. ended
// says that the sync-end was among it and nothing is left to send: syncEnded has to follow. save says that the file is
// to be brought up to date.
func (c *changeSet) acknowledged(sequence uint64, place core.Delivery) (ended, save bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.inFlight) && c.inFlight[n].sequence <= sequence {
		c.unsaved += c.inFlight[n].count
		c.doneBytes += c.inFlight[n].count*changemap.ExtentBytes + c.inFlight[n].other
		if c.inFlight[n].count > 0 {
			c.forgotten = max(c.forgotten, c.syncAt)
		}
		n++
	}
	c.inFlight = c.inFlight[n:]
	if n > 0 && c.relied.Before(place) {
		c.relied = place
	}
	arrived := c.syncEnd != 0 && sequence >= c.syncEnd
	ended = arrived && c.pending.Len() == 0 && len(c.inFlight) == 0
	if arrived && !ended {
		c.syncEnd = 0 // another sync follows, also if what came meanwhile leaves with its volume before
	}
	return ended, ended || c.unsaved >= saveMapExtents
}

// syncEnded is called when core knows that the sync is complete. It reports whether there is something to send again.
func (c *changeSet) syncEnded() (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doneBytes, c.totalBytes, c.syncEnd = 0, 0, 0
	return c.pending.Len() > 0
}

// streamEnded gives back to the map what was sent and never acknowledged.
func (c *changeSet) streamEnded() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, sent := range c.inFlight {
		sent.restore(c.pending)
	}
	c.inFlight, c.syncEnd = nil, 0
	c.endIdleProgress()
}

// endIdleProgress ends the progress of a sync that will not go on: nothing is left to send.
func (c *changeSet) endIdleProgress() {
	if c.bytesLocked() == 0 && c.syncEnd == 0 {
		c.doneBytes, c.totalBytes = 0, 0
	}
}
