package journal

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"k8s.io/klog/v2"
)

// zeroChunk is the unit in which new segments are filled.
var zeroChunk [1 << 20]byte

// takeFree returns a segment file for a record of need bytes: from the pool, or a new one if the limit allows. A record
// that is too large for the journal's segments, one of a peer or of the time before SetLimits, gets a file of its own
// size.
func (j *Journal) takeFree(need int64) (*segment, error) {
	j.mu.Lock()
	size := max(j.o.SegmentBytes, segmentHeaderBytes+(need+segmentHeaderBytes-1)/segmentHeaderBytes*segmentHeaderBytes)
	limit := j.o.HardLimitBytes
	if limit > 0 && j.usedLocked()+size > limit {
		j.mu.Unlock()
		return nil, ErrFull
	}
	full := limit > 0 && j.totalLocked()+size > limit // no more files: then also what is kept
	if n := len(j.free); size == j.o.SegmentBytes && (n > j.o.KeepFree || n > 0 && full) {
		s := j.free[0]
		j.free = append(j.free[:0], j.free[1:]...)
		j.mu.Unlock()
		return s, nil
	}
	var drop []*segment
	if size > j.o.SegmentBytes && limit > 0 { // free segments are no reason to refuse it
		for len(j.free) > 0 && j.totalLocked()+size > limit {
			drop = append(drop, j.free[0])
			j.free = append(j.free[:0], j.free[1:]...)
		}
	}
	name, err := j.reserveLocked(size)
	j.mu.Unlock()
	for _, s := range drop {
		j.remove(s)
	}
	if err != nil {
		return nil, err
	}
	s, err := j.create(name, size, false)
	j.mu.Lock()
	j.creating -= size
	j.mu.Unlock()
	return s, err // appends are one at a time: no other append was refused because of this one
}

const segmentSuffix = ".seg"

// fileName is the name of the n-th segment file of a directory.
func fileName(n uint64) string { return fmt.Sprintf("%08d%s", n, segmentSuffix) }

// fileNumber is the number in a segment file's name; 0 if it is not one that fileName made.
func fileNumber(name string) uint64 {
	n, err := strconv.ParseUint(strings.TrimSuffix(path.Base(name), segmentSuffix), 10, 64)
	if err != nil || n >= 1<<62 {
		return 0
	}
	return n
}

// reserveLocked sets room for one more file aside, and names it.
func (j *Journal) reserveLocked(size int64) (string, error) {
	if j.o.HardLimitBytes > 0 && j.totalLocked()+size > j.o.HardLimitBytes {
		return "", ErrFull
	}
	j.creating += size
	name := fileName(j.nextName)
	j.nextName++
	return j.o.path(name), nil
}

// create makes a segment file whose size and name are durable before anything is in it, so that a file shorter than its
// header says is damage and nothing else. With fill, its blocks are written, too: an fdatasync after a write into
// blocks that were only preallocated has to commit their conversion as metadata.
func (j *Journal) create(name string, size int64, fill bool) (_ *segment, err error) {
	f, err := j.o.FS.Create(name)
	if err != nil {
		return nil, fmt.Errorf("journal: creating segment %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("journal: creating segment %s of %d bytes: %w", name, size, err)
			_ = f.Close()
			if rerr := j.o.FS.Remove(name); rerr != nil {
				klog.ErrorS(rerr, "Cannot remove a segment file that could not be created; the next open removes it", "file", name)
			}
		}
	}()
	// Preallocated even if it is filled: the file system then finds the space in one piece, or says at once that it is
	// full.
	if err := f.Preallocate(0, size); err != nil {
		return nil, err
	}
	for off := int64(0); fill && off < size; off += int64(len(zeroChunk)) {
		if _, err := f.WriteAt(zeroChunk[:min(int64(len(zeroChunk)), size-off)], off); err != nil {
			return nil, err
		}
	}
	if err := f.Datasync(); err != nil {
		return nil, err
	}
	if err := j.o.FS.SyncDir(j.o.Dir); err != nil {
		return nil, err
	}
	return &segment{name: name, f: f, size: size}, nil
}

// Prepare creates segments until FreeTarget are ready or HardLimitBytes is reached, so that Append does not have to
// create one while a writer waits, and so that its blocks are written and a later fdatasync has no metadata to commit.
// To be called from a background goroutine after each change of segment; appends go on meanwhile.
func (j *Journal) Prepare() error {
	j.prepareMu.Lock()
	defer j.prepareMu.Unlock()
	for {
		j.mu.Lock()
		if j.closed {
			j.mu.Unlock()
			return ErrClosed
		}
		if len(j.free) >= j.o.FreeTarget {
			j.mu.Unlock()
			return nil
		}
		size := j.o.SegmentBytes
		name, err := j.reserveLocked(size)
		j.mu.Unlock()
		if errors.Is(err, ErrFull) {
			return nil
		}
		s, err := j.create(name, size, true)
		j.mu.Lock()
		j.creating -= size
		closed := j.closed
		other := err == nil && !closed && !j.recycleLocked(s) // SetLimits came between
		j.tellRoomLocked()
		j.mu.Unlock()
		if err != nil {
			return err
		}
		if closed {
			_ = s.f.Close()
			return ErrClosed
		}
		if other {
			j.remove(s)
		}
	}
}

// Release gives every sealed segment with Sequence <= through back to the free pool, once its readers are done. The
// caller has made durable before, in its checkpoint, that OldestSegment is above through: from here on the file may be
// overwritten at any time. A segment that takes records, or holds any that are not durable, is not released.
func (j *Journal) Release(through uint64) error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return ErrClosed
	}
	var drop []*segment
	n := 0
	var err error
	for _, s := range j.live {
		if s.hdr.sequence > through || !s.sealed {
			break
		}
		if s.end > segmentHeaderBytes && j.durableEnd.Before(Position{s.hdr.sequence, s.end}) {
			err = fmt.Errorf("journal: segment %s (sequence %d) is not durable yet, sync before releasing it", s.name,
				s.hdr.sequence)
			break
		}
		n++
		s.released = true
		if s.pins > 0 {
			j.retired += s.size
		} else if !j.recycleLocked(s) {
			drop = append(drop, s)
		}
	}
	j.live = append(j.live[:0], j.live[n:]...)
	j.mu.Unlock()
	for _, s := range drop {
		j.remove(s)
	}
	return err
}

// recycleLocked puts a released segment into the pool, and reports false if its file has another size than new ones.
func (j *Journal) recycleLocked(s *segment) bool {
	if s.size != j.o.SegmentBytes {
		return false
	}
	j.free = append(j.free, s)
	return true
}

// giveBack puts a segment that was taken and not used into the pool.
func (j *Journal) giveBack(s *segment) {
	j.mu.Lock()
	ok := j.recycleLocked(s)
	j.mu.Unlock()
	if !ok {
		j.remove(s)
	}
}

// SetLimits changes the size of the segments that are made from now on, and the limit of all together. What is there
// stays until it is released, also where it is more than the new limit: appends then get ErrFull until enough was
// released. The segment that is written to ends here if it has another size, so that it can be.
func (j *Journal) SetLimits(segmentBytes, hardLimitBytes int64) error {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.mu.Lock()
	next := j.o
	next.SegmentBytes, next.HardLimitBytes = segmentBytes, hardLimitBytes
	err := next.check()
	if j.closed {
		err = ErrClosed
	}
	if err != nil {
		j.mu.Unlock()
		return err
	}
	j.o.SegmentBytes, j.o.HardLimitBytes = segmentBytes, hardLimitBytes
	if cur := j.currentLocked(); cur != nil && cur.size != segmentBytes {
		cur.sealed = true
	}
	var drop, keep []*segment
	for _, s := range j.free {
		if s.size == segmentBytes &&
			(hardLimitBytes == 0 || j.usedLocked()+int64(len(keep)+1)*segmentBytes <= hardLimitBytes) {
			keep = append(keep, s)
		} else {
			drop = append(drop, s)
		}
	}
	j.free = keep
	j.mu.Unlock()
	for _, s := range drop {
		j.remove(s)
	}
	return nil
}

// remove deletes the file of a segment that no list has any more. A failure costs space only: the next open finds it.
func (j *Journal) remove(s *segment) {
	_ = s.f.Close()
	if err := j.o.FS.Remove(s.name); err != nil {
		klog.ErrorS(err, "Cannot remove a free segment file; the next open tries again", "file", s.name)
	}
}

// DropFree gives the space of all free segments back to the file system, durably, and returns how much that was. It is
// for what needs the space more than the next append does.
func (j *Journal) DropFree() (bytes int64) {
	j.mu.Lock()
	drop := j.free
	j.free = nil
	if j.closed {
		drop = nil
	}
	j.mu.Unlock()
	for _, s := range drop {
		bytes += s.size
		j.remove(s)
	}
	if len(drop) > 0 {
		if err := j.o.FS.SyncDir(j.o.Dir); err != nil {
			klog.ErrorS(err, "Syncing the removal of free segments", "dir", j.o.Dir)
		}
	}
	return bytes
}
