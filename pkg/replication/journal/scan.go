package journal

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Reading a journal's directory. Nothing here writes: Open decides on the result what to change, Dump prints it.

// readChunk is the unit of sequential reads: large enough that a disk streams.
const readChunk = 4 << 20

// window gives access to a file in ascending order through one buffer.
type window struct {
	r     io.ReaderAt
	size  int64
	chunk int
	buf   []byte
	off   int64 // of buf
}

// bytes returns n bytes at off, valid until the next call, or io.EOF if the file ends before.
func (w *window) bytes(off int64, n int) ([]byte, error) {
	if off+int64(n) > w.size {
		return nil, io.EOF
	}
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		want := min(int64(max(n, w.chunk)), w.size-off)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf = w.buf[:want]
		w.off = off
		if got, err := w.r.ReadAt(w.buf, off); got < len(w.buf) {
			w.buf = w.buf[:0]
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return w.buf[off-w.off:][:n], nil
}

type headerState int

const (
	headerBlank   headerState = iota // zeros, or too short to hold one: never used, or retired
	headerValid                      // verified
	headerDamaged                    // neither; hdr is the copy if that one verifies
)

// diskSegment is a segment file as found.
type diskSegment struct {
	name    string // path
	f       vfs.File
	size    int64
	hdr     segmentHeader
	state   headerState
	problem error // with headerDamaged: why
	copied  bool  // with headerDamaged: hdr was read from the copy

	// Set by the walk, for segments of the chain.
	end   int64
	last  uint64
	index []indexEntry
}

// known reports whether hdr was read, from the header or from its copy.
func (s *diskSegment) known() bool { return s.state == headerValid || s.copied }

func (s *diskSegment) window(buf []byte) *window {
	return &window{r: s.f, size: min(s.size, s.hdr.segmentBytes), chunk: readChunk, buf: buf[:0]}
}

// readSegments opens all segment files of a directory and reads their headers. The caller closes the files, also after
// an error.
func readSegments(fs vfs.FS, dir string, open func(string) (vfs.File, error)) ([]*diskSegment, error) {
	names, err := fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var segments []*diskSegment
	for _, name := range names {
		if !strings.HasSuffix(name, segmentSuffix) {
			continue
		}
		s := &diskSegment{name: (&Options{Dir: dir}).path(name)}
		if s.f, err = open(s.name); err != nil {
			return segments, err
		}
		segments = append(segments, s)
		if s.size, err = s.f.Size(); err != nil {
			return segments, fmt.Errorf("journal: size of %s: %w", s.name, err)
		}
		if err := s.readHeader(); err != nil {
			return segments, fmt.Errorf("journal: reading the header of %s: %w", s.name, err)
		}
	}
	return segments, nil
}

func (s *diskSegment) readHeader() error {
	var b [segmentHeaderBytes]byte
	// A segment has its whole size before its header is written: what is short and not blank was cut.
	if n, err := s.f.ReadAt(b[:min(s.size, segmentHeaderBytes)], 0); n < int(min(s.size, segmentHeaderBytes)) {
		return err
	}
	if s.size < segmentHeaderBytes && !vfs.AllZero(b[:]) {
		s.state, s.problem = headerDamaged, fmt.Errorf("the file was cut to %d bytes", s.size)
		s.copied = s.size >= segmentHeaderFields && s.hdr.decode(b[:segmentHeaderFields]) == nil
		return nil
	}
	if err := s.hdr.decode(b[:segmentHeaderFields]); err == nil {
		s.state = headerValid
		return nil
	} else if !vfs.AllZero(b[:segmentHeaderFields]) {
		s.state, s.problem = headerDamaged, err
		s.copied = s.hdr.decode(b[segmentHeaderCopyAt:segmentHeaderCopyAt+segmentHeaderFields]) == nil
	}
	return nil
}

// scanner reads a journal's stream from its segments.
type scanner struct {
	dir        string
	oldest     uint64 // segments below are free
	start      uint64 // head of an empty journal
	minDurable uint64
	mark       Mark // from the checkpoint
	visit      func(diskHeader, Location) error

	// Results.
	chain    []*diskSegment // live, in stream order
	rest     []*diskSegment // the others: free, or behind the end
	head     uint64
	chainCRC uint32
	end      Position
	bad      Position // where the walk stopped: end, or the start of the segment that continues it
	endFile  string
	endWhy   string   // what stopped the walk
	proven   Position // everything before it was durable, going by what the records say
	durable  uint64   // highest durable ordinal that was read
	marked   bool     // the record that mark names was read
	buf      []byte
}

func (sc *scanner) corrupt(s *diskSegment, off int64, format string, args ...any) error {
	return &CorruptionError{File: s.name, Offset: off, Ordinal: sc.head + 1, Reason: fmt.Sprintf(format, args...)}
}

// scan walks the segments and fills in the results. A *CorruptionError leaves them as far as the walk came.
func (sc *scanner) scan(segments []*diskSegment) error {
	sc.head = sc.start
	var used []*diskSegment
	for _, s := range segments {
		if s.known() && s.hdr.sequence >= sc.oldest {
			used = append(used, s)
		} else {
			sc.rest = append(sc.rest, s)
		}
	}
	sort.Slice(used, func(a, b int) bool { return used[a].hdr.sequence < used[b].hdr.sequence })
	for i := 1; i < len(used); i++ {
		if used[i].hdr.sequence == used[i-1].hdr.sequence {
			return sc.corrupt(used[i], 0, "has sequence %d, as %s has", used[i].hdr.sequence, used[i-1].name)
		}
	}

	if err := sc.findMissing(used, segments); err != nil {
		return err
	}

	// The chain goes from each segment to the one that says it continues it. If several do, all but the one with the
	// highest sequence were given up before anything was in them.
	first := -1
	next := make(map[uint64]int, len(used))
	for i, s := range used {
		if s.hdr.prev.Segment == 0 || s.hdr.prev.Segment < sc.oldest {
			first = i
		} else {
			next[s.hdr.prev.Segment] = i
		}
	}
	if first < 0 {
		// Nothing, or only segments whose predecessor is missing.
		sc.end = Position{max(sc.oldest, 1), segmentHeaderBytes}
		sc.proven, sc.bad = sc.end, sc.end
		if len(used) > 0 {
			sc.endFile, sc.endWhy = used[0].name, fmt.Sprintf("segment %d, which it continues, is missing",
				used[0].hdr.prev.Segment)
		}
		return sc.finish(nil, used)
	}
	inChain := make(map[*diskSegment]bool)
	at := used[first]
	sc.head, sc.chainCRC = at.hdr.firstOrdinal-1, at.hdr.chain
	sc.end = Position{at.hdr.sequence, segmentHeaderBytes}
	sc.proven = sc.end
	for {
		inChain[at] = true
		sc.chain = append(sc.chain, at)
		var succ *diskSegment
		if i, ok := next[at.hdr.sequence]; ok {
			succ = used[i]
		}
		complete, err := sc.walk(at, succ)
		if err != nil {
			return err
		}
		if !complete {
			break
		}
		if succ.hdr.chain != sc.chainCRC || succ.hdr.firstOrdinal != sc.head+1 {
			return sc.corrupt(succ, 0, "does not continue segment %d in %s where it says it does", at.hdr.sequence, at.name)
		}
		at = succ
	}
	var behind []*diskSegment
	for _, s := range used {
		switch {
		case inChain[s]:
		case s.hdr.sequence > at.hdr.sequence:
			behind = append(behind, s)
		default:
			sc.rest = append(sc.rest, s)
		}
	}
	return sc.finish(at, behind)
}

// walk reads the records of s. It returns true if they reach the place where succ says it goes on.
func (sc *scanner) walk(s *diskSegment, succ *diskSegment) (bool, error) {
	if s.state == headerDamaged {
		return false, sc.corrupt(s, 0, "%v; its copy says sequence %d", s.problem, s.hdr.sequence)
	}
	if s.size != s.hdr.segmentBytes {
		return false, sc.corrupt(s, min(s.size, s.hdr.segmentBytes), "the file has %d bytes, its header says %d",
			s.size, s.hdr.segmentBytes)
	}
	limit := int64(-1)
	if succ != nil {
		limit = succ.hdr.prev.Offset
	}
	if sc.proven.Before(s.hdr.durableEnd) {
		sc.proven = s.hdr.durableEnd
	}
	sc.durable = max(sc.durable, s.hdr.durable)
	s.end, s.last = segmentHeaderBytes, sc.head
	sd := s.hdr.seed()
	w := s.window(sc.buf)
	defer func() { sc.buf = w.buf }()
	for s.end != limit {
		d, err := readRecord(w, sd, s.end)
		if err == nil {
			switch {
			case d.prevCRC != sc.chainCRC:
				err = errors.New("record does not continue the one before it")
			default:
				err = d.follows(sc.head)
			}
		}
		if err != nil {
			if !isBadRecord(err) {
				return false, fmt.Errorf("journal: reading %s at offset %d: %w", s.name, s.end, err)
			}
			sc.endFile, sc.endWhy, sc.bad = s.name, err.Error(), Position{s.hdr.sequence, s.end}
			return false, nil
		}
		if sc.visit != nil {
			if err := sc.visit(d, Location{s.hdr.sequence, s.end + recordHeaderBytes}); err != nil {
				return false, err
			}
		}
		if n := len(s.index); n == 0 || s.end-s.index[n-1].off >= indexEvery {
			s.index = append(s.index, indexEntry{s.end, sc.head})
		}
		if d.flags&flagAllDurable != 0 {
			sc.proven = Position{s.hdr.sequence, s.end}
		}
		sc.durable = max(sc.durable, d.DurableOrdinal)
		sc.head, sc.chainCRC = d.Ordinal, d.crc
		s.end += recordBytes(d.dataBytes())
		s.last = sc.head
		sc.end = Position{s.hdr.sequence, s.end}
		sc.marked = sc.marked || sc.end == sc.mark.End && d.crc == sc.mark.Chain
	}
	return true, nil
}

// ioError is an error of the file system, which says nothing about the record.
type ioError struct{ error }

func (e ioError) Unwrap() error { return e.error }

func isBadRecord(err error) bool {
	var e ioError
	return !errors.As(err, &e)
}

var errBadData = errors.New("data does not match its checksum")

// readRecord reads and verifies header and data of the record at off, but not its place in the stream.
func readRecord(w *window, sd uint32, off int64) (d diskHeader, err error) {
	b, err := w.bytes(off, recordHeaderBytes)
	if err == nil {
		if err := d.decode(b, sd, off); err != nil {
			return d, err
		}
		if n := d.dataBytes(); n > 0 {
			if b, err = w.bytes(off+recordHeaderBytes, int(n)); err == nil && DataCRC(b) != d.DataCRC {
				return d, errBadData
			}
		}
	}
	switch {
	case err == io.EOF:
		return d, errors.New("the segment ends")
	case err != nil:
		return d, ioError{err}
	}
	return d, nil
}

// finish decides whether the place where the walk ended is the torn tail of a crash or corruption. behind are segments
// that the chain did not reach.
func (sc *scanner) finish(last *diskSegment, behind []*diskSegment) error {
	bad := sc.head + 1
	place := last
	if last == nil && len(behind) > 0 {
		place = behind[0]
	}
	if place != nil {
		off := int64(0)
		if last != nil {
			off = sc.bad.Offset
		}
		if sc.durable >= bad {
			return sc.corrupt(place, off, "%s, but a record before it says that ordinal %d was durable", sc.endWhy, sc.durable)
		}
		if sc.bad.Before(sc.proven) {
			return sc.corrupt(place, off, "%s, but the journal was durable up to %v", sc.endWhy, sc.proven)
		}
		if last != nil {
			if why, err := sc.evidence(last, off, bad); why != "" || err != nil {
				if err == nil {
					err = sc.corrupt(place, off, "%s, but %s", sc.endWhy, why)
				}
				return err
			}
		}
		for _, s := range behind {
			why := ""
			var err error
			switch {
			case s.hdr.durable >= bad:
				why = fmt.Sprintf("segment %s says that ordinal %d was durable when it was created", s.name, s.hdr.durable)
			case sc.bad.Before(s.hdr.durableEnd) && !sc.continuesEmpty(s):
				why = fmt.Sprintf("segment %s says that the journal was durable up to %v when it was created", s.name,
					s.hdr.durableEnd)
			default:
				why, err = sc.evidence(s, segmentHeaderBytes, bad)
			}
			if err == nil && why != "" {
				err = sc.corrupt(place, off, "%s, but %s", sc.endWhy, why)
			}
			if err != nil {
				return err
			}
		}
	}
	if sc.head < sc.minDurable || sc.mustMark() && !sc.marked {
		return sc.lost()
	}
	sc.rest = append(sc.rest, behind...)
	return nil
}

// lost is the error for a stream that ends before what the checkpoint names. A segment whose header is beyond
// recognition may be free or may be where the stream went on, so it is what the error points at; without one it is the
// place where the walk ended.
func (sc *scanner) lost() error {
	e := &CorruptionError{File: sc.endFile, Offset: sc.bad.Offset, Ordinal: sc.head + 1,
		Reason: fmt.Sprintf("the stream ends, but the checkpoint says that ordinal %d was durable", sc.minDurable)}
	if sc.head >= sc.minDurable {
		e.Reason = fmt.Sprintf(
			"the checkpoint says that the record with ordinal %d which ends at %v was durable, and it is not there: "+
				"the file is an older copy, or another journal's", sc.mark.Ordinal, sc.mark.End)
		if n := len(sc.chain); e.File == "" && n > 0 {
			e.File = sc.chain[n-1].name
		}
	}
	if sc.endWhy != "" {
		e.Reason = sc.endWhy + ": " + e.Reason
	}
	for _, s := range sc.rest {
		if s.state == headerDamaged && !s.copied {
			e.Reason = fmt.Sprintf("%v, and without it the stream ends at %v: %s", s.problem, sc.bad, e.Reason)
			e.File, e.Offset = s.name, 0
			break
		}
	}
	return e
}

// continuesEmpty reports whether s was created when the journal was as empty as it was found, so that the durable end
// it names holds nothing.
func (sc *scanner) continuesEmpty(s *diskSegment) bool {
	return len(sc.chain) == 0 && s.hdr.durableEnd.Offset == segmentHeaderBytes
}

// evidence looks in s, from off on, for a record which says that the stream was durable up to the ordinal bad, or up to
// a place behind sc.bad. A header that verifies was written by this use of the segment at exactly this place, so what
// it says is true even if its data, or what lies between, is torn.
func (sc *scanner) evidence(s *diskSegment, off int64, bad uint64) (string, error) {
	sd := s.hdr.seed()
	w := s.window(sc.buf)
	defer func() { sc.buf = w.buf }()
	for ; off+recordHeaderBytes <= w.size; off += recordAlign {
		b, err := w.bytes(off, recordHeaderBytes)
		if err != nil {
			return "", fmt.Errorf("journal: reading %s at offset %d: %w", s.name, off, err)
		}
		if !hasRecordMagic(b) {
			continue
		}
		var d diskHeader
		if d.decode(b, sd, off) != nil {
			continue
		}
		if d.DurableOrdinal >= bad {
			return fmt.Sprintf("record %d in %s at offset %d says that ordinal %d was durable", d.Ordinal, s.name, off,
				d.DurableOrdinal), nil
		}
		if d.flags&flagAllDurable != 0 && sc.bad.Before(Position{s.hdr.sequence, off}) {
			return fmt.Sprintf("record %d in %s at offset %d says that all before it was durable", d.Ordinal, s.name, off), nil
		}
	}
	return "", nil
}
