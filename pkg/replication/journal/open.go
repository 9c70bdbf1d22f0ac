package journal

import (
	"errors"
	"fmt"
	"io/fs"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Open opens the journal in Options.Dir, creating an empty one if there is none, and recovers what a crash left.
//
// After it, everything up to Head is durable, and new records go to a new segment. A torn tail, which holds nothing
// that any Sync covered, is dropped. Corruption is a *CorruptionError, and nothing on disk was changed; so it is with
// every other error before the first change. Opening a directory twice at the same time is the caller's to prevent.
func Open(o Options) (*Journal, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Rand == nil {
		o.Rand = cryptoRand
	}
	if err := o.FS.MkdirAll(o.Dir); err != nil {
		return nil, fmt.Errorf("journal: creating %s: %w", o.Dir, err)
	}
	files, err := readSegments(o.FS, o.Dir, o.FS.Open)
	defer func() {
		for _, s := range files {
			if s.f != nil {
				_ = s.f.Close()
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	for _, s := range files {
		if s.state == headerValid && (s.hdr.group != o.GroupID || s.hdr.shard != o.Shard) {
			return nil, fmt.Errorf("journal: %s belongs to group %x shard %d, not to group %x shard %d; nothing was changed; "+
				"move the file away if it does not belong here", s.name, s.hdr.group, s.hdr.shard, o.GroupID, o.Shard)
		}
	}
	if err := o.checkGeneration(files); err != nil {
		return nil, err
	}
	sc := &scanner{dir: o.Dir, oldest: o.OldestSegment, start: o.StartOrdinal, minDurable: o.MinDurableOrdinal,
		mark: o.Mark}
	if o.Visit != nil {
		sc.visit = func(d diskHeader, loc Location) error { return o.Visit(d.Header, loc) }
	}
	if err := sc.scan(files); err != nil {
		var c *CorruptionError
		if errors.As(err, &c) && c.File == "" {
			c.File = o.Dir
		}
		return nil, err
	}

	j := &Journal{o: o, recent: o.Memory.newRecent(), timeline: o.TimelineID, nextSequence: max(o.OldestSegment, 1),
		nextName: 1}
	j.cond.L = &j.mu
	for _, s := range files {
		if s.known() {
			j.nextSequence = max(j.nextSequence, s.hdr.sequence+1)
		}
		j.nextName = max(j.nextName, fileNumber(s.name)+1)
	}
	// A segment without records at the end is not worth keeping: a process that starts and dies in a loop would fill the
	// disk with them. The next one continues what it would have continued.
	for n := len(sc.chain); n > 0 && sc.chain[n-1].end == segmentHeaderBytes; n-- {
		last := sc.chain[n-1]
		sc.end = last.hdr.prev
		sc.rest = append(sc.rest, last)
		sc.chain = sc.chain[:n-1]
	}
	prev := sc.end
	if len(sc.chain) == 0 {
		// Empty. The end is a place that the checkpoint alone decides: it is put into the checkpoint as the place up to
		// which everything was applied, and must not lie behind the segment that a later process begins with.
		prev, sc.end = Position{}, Position{max(o.OldestSegment, 1), segmentHeaderBytes}
	}
	if err := o.makeDurable(sc); err != nil {
		return nil, err
	}

	j.head, j.durable = sc.head, sc.head
	j.end, j.durableEnd, j.prev = sc.end, sc.end, prev
	j.chain = sc.chainCRC
	if n := len(sc.chain); n > 0 {
		j.prevFile = fileNumber(sc.chain[n-1].name)
	}
	j.durableMark = j.markLocked()
	for _, d := range sc.chain {
		j.live = append(j.live, &segment{name: d.name, f: d.f, size: d.size, hdr: d.hdr, end: d.end, last: d.last,
			synced: d.end, sealed: true, index: d.index})
		d.f = nil
	}
	for _, d := range sc.rest {
		if d.f == nil {
			continue
		}
		s := &segment{name: d.name, f: d.f, size: d.size}
		d.f = nil
		// A power loss can bring back files that had been removed for the limit's sake.
		if d.size == o.SegmentBytes && (o.HardLimitBytes == 0 || j.totalLocked()+s.size <= o.HardLimitBytes) {
			j.free = append(j.free, s)
		} else {
			j.remove(s)
		}
	}
	return j, nil
}

// NextSequence returns a sequence above those of all segments in a directory, for a checkpoint that gives up the
// journal there. Nothing else has it open. A directory that does not exist has no segments.
func NextSequence(fsys vfs.FS, dir string) (uint64, error) {
	segments, err := readSegments(fsys, dir, fsys.OpenReadOnly)
	defer func() {
		for _, s := range segments {
			if s.f != nil {
				_ = s.f.Close()
			}
		}
	}()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("journal: %w", err)
	}
	next := uint64(1)
	for _, s := range segments {
		if s.known() {
			next = max(next, s.hdr.sequence+1)
		}
	}
	return next, nil
}

// checkGeneration reports a checkpoint that is older than a segment. What it says is live may have been overwritten
// since.
func (o *Options) checkGeneration(files []*diskSegment) error {
	if o.Generation == nil {
		return nil
	}
	have := o.Generation()
	for _, s := range files {
		if s.known() && s.hdr.generation > have {
			return fmt.Errorf(
				"journal: checkpoint %s is an older copy: it has generation %d, and %s was created at generation %d; "+
					"nothing was changed; put the newest checkpoint back, or resync this site from its peer",
				o.Checkpoint, have, s.name, s.hdr.generation)
		}
	}
	return nil
}

// makeDurable makes durable what the scan found, and retires what lies behind it.
func (o *Options) makeDurable(sc *scanner) error {
	// What nothing proves to be durable is written again before it is synced. If an earlier process died of a failed
	// fdatasync, those pages are in the page cache, marked clean, but not on the disk; only writing them makes the kernel
	// try again.
	from := sc.proven
	for _, s := range sc.chain {
		for _, e := range s.index {
			// Ordinals below sc.durable before this place: so the record that has it, and all before it, are durable too.
			if p := (Position{s.hdr.sequence, e.off}); e.before < sc.durable && from.Before(p) {
				from = p
			}
		}
	}
	var buf []byte
	for _, s := range sc.chain {
		if s.hdr.sequence < from.Segment || s.hdr.sequence == from.Segment && s.end <= from.Offset {
			continue
		}
		start := int64(0) // the segment header, too
		if s.hdr.sequence == from.Segment && from.Offset > segmentHeaderBytes {
			start = from.Offset
		}
		for off := start; off < s.end; off += readChunk {
			n := min(readChunk, s.end-off)
			if buf == nil {
				buf = make([]byte, readChunk)
			}
			if got, err := s.f.ReadAt(buf[:n], off); int64(got) < n {
				return fmt.Errorf("journal: reading %s at offset %d: %w", s.name, off, err)
			}
			if _, err := s.f.WriteAt(buf[:n], off); err != nil {
				return fmt.Errorf("journal: writing %s again at offset %d: %w", s.name, off, err)
			}
		}
		if err := s.f.Datasync(); err != nil {
			return fmt.Errorf("journal: syncing %s: %w", s.name, err)
		}
	}
	for _, s := range sc.rest {
		if !s.known() || s.hdr.sequence < o.OldestSegment {
			continue
		}
		klog.InfoS("Retiring a journal segment behind the end of the stream", "file", s.name, "sequence",
			s.hdr.sequence, "end", sc.end.String())
		var zero [segmentHeaderBytes]byte
		if _, err := s.f.WriteAt(zero[:], 0); err != nil {
			return fmt.Errorf("journal: retiring segment %s: %w", s.name, err)
		}
		if err := s.f.Datasync(); err != nil {
			return fmt.Errorf("journal: retiring segment %s: %w", s.name, err)
		}
	}
	return nil
}
