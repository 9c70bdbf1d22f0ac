package journal

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// ReadData fills p from the data of the record at loc, starting skip bytes into it. It reads what was written, durable
// or not, and does not verify it: a part of a record has no checksum. ErrReleased means that the segment is gone, so
// that the caller's view of where its data lies is out of date.
func (j *Journal) ReadData(loc Location, skip int64, p []byte) error {
	s, err := j.pinData(loc, skip, len(p))
	if err != nil {
		return err
	}
	defer j.unpin(s)
	if j.recent.copyData(loc, skip, p) {
		return nil
	}
	return readFull(s, p, loc.Offset+skip)
}

// ReadDataReady does what ReadData does if that needs no disk, and reports whether it did. If not, p has undefined
// content.
func (j *Journal) ReadDataReady(loc Location, skip int64, p []byte) bool {
	s, err := j.pinData(loc, skip, len(p))
	if err != nil {
		return false
	}
	defer j.unpin(s)
	if j.recent.copyData(loc, skip, p) {
		return true
	}
	f, ok := s.f.(vfs.ReadyReader)
	return ok && f.ReadReadyAt(p, loc.Offset+skip)
}

// pinData finds the segment that has n bytes of a record's data, and keeps it until unpin.
func (j *Journal) pinData(loc Location, skip int64, n int) (*segment, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, ErrClosed
	}
	i := j.findLocked(loc.Segment)
	if i == len(j.live) || j.live[i].hdr.sequence != loc.Segment {
		return nil, ErrReleased
	}
	s := j.live[i]
	off := loc.Offset + skip
	if skip < 0 || loc.Offset < segmentHeaderBytes || off < 0 || off > s.end || int64(n) > s.end-off {
		return nil, fmt.Errorf("journal: reading %d bytes at offset %d of %s, which ends at %d", n, off, s.name, s.end)
	}
	j.pinLocked(s)
	return s, nil
}

func readFull(s *segment, p []byte, off int64) error {
	if n, err := s.f.ReadAt(p, off); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("journal: reading %s at offset %d: %w", s.name, off, err)
	}
	return nil
}

// positionBuffers are what PositionOf reads into: a status asks for a position each time that it is looked at.
var positionBuffers = sync.Pool{New: func() any { return new([]byte) }}

// PositionOf returns the position just before the first record whose ordinal is above the given one; if that is the
// head, the end. It returns false if that record was released. An ordinal above the head is ErrOutOfOrder. It reads no
// file if the record and the one before it are in the journal's memory.
func (j *Journal) PositionOf(ordinal uint64) (Position, bool, error) {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return Position{}, false, ErrClosed
	}
	switch {
	case ordinal == j.head:
		defer j.mu.Unlock()
		return j.end, true, nil
	case ordinal > j.head:
		head := j.head
		j.mu.Unlock()
		return Position{}, false, fmt.Errorf("%w: looking for what follows ordinal %d, the head is %d", ErrOutOfOrder,
			ordinal, head)
	}
	i := 0
	for i < len(j.live) && j.live[i].last <= ordinal {
		i++
	}
	if i == len(j.live) || j.live[i].hdr.firstOrdinal-1 > ordinal {
		j.mu.Unlock()
		return Position{}, false, nil
	}
	s := j.live[i]
	off := int64(segmentHeaderBytes)
	for _, e := range s.index {
		if e.before > ordinal {
			break
		}
		off = e.off
	}
	end := s.end
	j.pinLocked(s)
	j.mu.Unlock()
	defer j.unpin(s)

	if pos, ok := j.recent.positionAfter(s.hdr.sequence, ordinal); ok {
		return pos, true, nil
	}
	buf := positionBuffers.Get().(*[]byte)
	w := &window{r: s.f, size: end, chunk: indexEvery, buf: (*buf)[:0]}
	defer func() {
		*buf = w.buf
		positionBuffers.Put(buf)
	}()
	for off < end {
		b, err := w.bytes(off, recordHeaderBytes)
		if err != nil {
			return Position{}, false, fmt.Errorf("journal: reading %s at offset %d: %w", s.name, off, err)
		}
		var d diskHeader
		if err := d.decode(b, s.hdr.seed(), off); err != nil {
			return Position{}, false, &CorruptionError{File: s.name, Offset: off, Ordinal: ordinal + 1, Reason: err.Error()}
		}
		if d.Ordinal > ordinal {
			break
		}
		off += recordBytes(d.dataBytes())
	}
	return Position{s.hdr.sequence, off}, true, nil
}

// HeaderOf returns the header of the record with an ordinal. It returns false if the journal has no such record: it was
// released, or the stream skipped the ordinal, or it is not durable.
func (j *Journal) HeaderOf(ordinal uint64) (Header, bool, error) {
	if ordinal == 0 || ordinal > j.Durable() {
		return Header{}, false, nil
	}
	pos, ok, err := j.PositionOf(ordinal - 1)
	if err != nil || !ok {
		return Header{}, false, err
	}
	c := j.NewCursor(pos)
	defer c.Close()
	for {
		records, err := c.Next(64 << 10)
		if errors.Is(err, ErrReleased) {
			return Header{}, false, nil
		}
		if err != nil || len(records) == 0 {
			return Header{}, false, err
		}
		for i := range records {
			h := records[i].Header
			switch {
			case h.Ordinal > ordinal:
				return Header{}, false, nil
			case h.Ordinal == ordinal && h.Kind.TakesOrdinal():
				return h, true, nil
			}
		}
	}
}
