package journal

import (
	"errors"
	"fmt"
)

// Record is a record as a Cursor returns it.
type Record struct {
	Header Header
	Data   []byte   // valid until the cursor's next call
	Loc    Location // of the data
	End    Position // behind the record: where a later cursor goes on
}

// Cursor reads durable records in stream order. It does not keep segments from being released. A Cursor is used by one
// goroutine at a time; any number of cursors may be open.
type Cursor struct {
	j       *Journal
	at      Position
	chain   uint32
	chained bool // chain is the CRC of the record before at
	buf     []byte
	recs    []Record
	held    []*slab // of the journal's memory, with the data of recs
}

// NewCursor returns a cursor at a position: one that PositionOf, End, DurableEnd, Segments or Record.End returned.
func (j *Journal) NewCursor(at Position) *Cursor { return &Cursor{j: j, at: at} }

// Position returns where the next record will be read.
func (c *Cursor) Position() Position { return c.at }

// Close frees the cursor's buffer, and with it the Data of the records it returned.
func (c *Cursor) Close() {
	c.unpin()
	c.buf, c.recs, c.held = nil, nil, nil
}

// unpin gives up what the last call returned from memory.
func (c *Cursor) unpin() {
	c.j.recent.unpin(c.held)
	c.held = c.held[:0]
}

// Next returns the next durable records of one segment, verified, as many as fit in about maxBytes of journal and at
// least one, from memory or read with one call. It returns nothing, and no error, at the durable end; waiting for more
// is the caller's. After ErrReleased the records have left the journal. After a *CorruptionError the cursor stays
// before the bad record.
func (c *Cursor) Next(maxBytes int) ([]Record, error) {
	c.unpin()
	s, limit, err := c.pin()
	if s == nil {
		return nil, err
	}
	defer c.j.unpin(s)
	if c.recall(Position{s.hdr.sequence, limit}, int64(maxBytes)) {
		return c.recs, nil
	}
	n := min(int64(max(maxBytes, recordHeaderBytes)), limit-c.at.Offset)
	if err := c.read(s, n); err != nil {
		return nil, err
	}
	c.recs = c.recs[:0]
	sd := s.hdr.seed()
	for pos := int64(0); pos+recordHeaderBytes <= n; {
		var d diskHeader
		b := c.buf[pos:n]
		err := d.decode(b, sd, c.at.Offset)
		size := int64(0)
		if err == nil {
			size = recordBytes(d.dataBytes())
			switch {
			case c.chained && d.prevCRC != c.chain:
				err = errors.New("record does not continue the one before it")
			case c.at.Offset+size > limit:
				err = errors.New("record reaches beyond the end of its segment")
			}
		}
		if err == nil && pos+size > n {
			if pos > 0 {
				break
			}
			// The first record is larger than maxBytes.
			n = size
			if err := c.read(s, n); err != nil {
				return nil, err
			}
			continue
		}
		var data []byte
		if err == nil {
			data = b[recordHeaderBytes:][:d.dataBytes():d.dataBytes()]
			if DataCRC(data) != d.DataCRC {
				err = errBadData
			}
		}
		if err != nil {
			if len(c.recs) > 0 {
				break // hand out what is good; the next call reports it
			}
			return nil, &CorruptionError{File: s.name, Offset: c.at.Offset, Ordinal: d.Ordinal, Reason: err.Error()}
		}
		loc := Location{s.hdr.sequence, c.at.Offset + recordHeaderBytes}
		pos += size
		c.at.Offset += size
		c.chain, c.chained = d.crc, true
		c.recs = append(c.recs, Record{Header: d.Header, Data: data, Loc: loc, End: c.at})
	}
	if m := c.j.o.Memory; m != nil {
		m.fromFiles.Add(uint64(len(c.recs)))
	}
	return c.recs, nil
}

// recall takes the next records up to limit from memory, and reports whether it could. Their checksums were computed
// from the same memory when they were appended.
func (c *Cursor) recall(limit Position, maxBytes int64) bool {
	recs, held, crc := c.j.recent.read(c.at, limit, maxBytes, c.recs, c.held)
	if recs == nil {
		return false
	}
	c.recs, c.held = recs, held
	c.at, c.chain, c.chained = recs[len(recs)-1].End, crc, true
	return true
}

func (c *Cursor) read(s *segment, n int64) error {
	if int64(cap(c.buf)) < n {
		c.buf = make([]byte, n)
	}
	c.buf = c.buf[:n]
	return readFull(s, c.buf, c.at.Offset)
}

// pin finds the segment with the next record, and how far it may be read. It returns nil at the durable end.
func (c *Cursor) pin() (*segment, int64, error) {
	j := c.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, 0, ErrClosed
	}
	for c.at.Before(j.durableEnd) {
		i := j.findLocked(c.at.Segment)
		if i == len(j.live) {
			return nil, 0, fmt.Errorf("%w: looking for %v of a journal without segments behind it that ends at %v",
				ErrReleased, c.at, j.durableEnd)
		}
		s := j.live[i]
		if s.hdr.sequence != c.at.Segment {
			// Released; but nothing was missed if it was read to its end, or if it is a number that an empty journal's end
			// named and that was not used then.
			p := s.hdr.prev
			if p != c.at && !(c.at.Offset == segmentHeaderBytes && p.Segment < c.at.Segment) {
				return nil, 0, fmt.Errorf("%w: looking for %v, the oldest behind it is %d and continues %v", ErrReleased, c.at,
					s.hdr.sequence, p)
			}
			c.at = Position{s.hdr.sequence, segmentHeaderBytes}
			continue
		}
		limit := s.end
		if s.hdr.sequence == j.durableEnd.Segment {
			limit = j.durableEnd.Offset
		}
		switch {
		case c.at.Offset < segmentHeaderBytes || c.at.Offset > limit:
			return nil, 0, fmt.Errorf("journal: cursor at %v, but segment %s ends at %d", c.at, s.name, limit)
		case c.at.Offset < limit:
			j.pinLocked(s)
			return s, limit, nil
		case i+1 == len(j.live):
			return nil, 0, nil
		}
		c.at = Position{j.live[i+1].hdr.sequence, segmentHeaderBytes}
	}
	return nil, 0, nil
}
