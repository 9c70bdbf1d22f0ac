package replication

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// What a peer wrote past a fork, and gives up, is undone by this site's content of these ranges. The peer names
// them at each contact until a sync has ended, so they are kept nowhere here. They are sent in a sync like extents of
// the change map, but exactly: a database writes pages, and an extent has many.

// receiveRanges takes the ranges that follow a Welcome of a site that gives way.
func receiveRanges(peer string, stream link.Stream, y *linkpb.Yield) ([]byteRange, error) {
	if y == nil || y.GetAll() {
		return nil, nil
	}
	var list []byteRange
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		ranges := m.GetTailRanges()
		if ranges == nil {
			return nil, fmt.Errorf("%w: %s sent %T before all of its ranges", ErrInvalid, peer, m.Message)
		}
		if list, err = decodeRanges(list, ranges.GetRanges(), maxTailRanges); err != nil {
			return nil, fmt.Errorf("%s gives way: %w", peer, err)
		}
		if ranges.GetLast() {
			return list, nil
		}
		if len(ranges.GetRanges()) == 0 {
			return nil, fmt.Errorf("%w: %s sent a message without ranges before the last one", ErrInvalid, peer)
		}
	}
}

// sendRanges tells the primary what this site wrote past the fork.
func (r *receiver) sendRanges(yieldID string) error {
	const chunk = 1 << 16 // ranges; far below the limit of a message
	list, err := r.g.yields.loadRanges(yieldID)
	if err != nil {
		return err
	}
	var before byteRange
	for {
		n := min(chunk, len(list))
		m := &linkpb.TailRanges{Ranges: encodeRanges(list[:n], before), Last: n == len(list)}
		if err := r.stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_TailRanges{TailRanges: m}}); err != nil {
			return err
		}
		if m.Last {
			return nil
		}
		before, list = list[n-1], list[n:]
	}
}

// sendUndo sends content of the next ranges, as it is now, in one batch.
func (s *sender) sendUndo() error {
	g := s.g
	// What was shipped before has to be in the content, so it has to be in the index.
	_ = g.log.indexedEnd()
	var entries []journal.Entry
	var other uint64
	for size := 0; len(s.undo) > 0 && size < batchBytes/2; {
		r := &s.undo[0]
		v := g.members.at(r.volume)
		if v == nil { // no member here
			s.undo = s.undo[1:]
			continue
		}
		end := min(r.off+r.n, v.size.Load())
		if r.off >= end {
			s.undo = s.undo[1:]
			continue
		}
		e, err := s.undoEntry(v, r.off, end)
		if err != nil && g.members.at(r.volume) != v { // it left meanwhile
			continue
		}
		if err != nil {
			return fmt.Errorf("group %s: sync: %w", g.Name(), err)
		}
		n := int64(e.Header.Length)
		r.off, r.n = r.off+n, r.n-n
		if other += uint64(n); r.n <= 0 {
			s.undo = s.undo[1:]
		}
		size += len(e.Data) + undoRecordBytes
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return nil
	}
	if err := s.addHorizon(); err != nil {
		return err
	}
	for _, e := range entries {
		if err := s.add(e.Header, e.Data); err != nil {
			return err
		}
	}
	g.changes.sentOther(s.sequence+1, other)
	return s.sendBatch()
}

// undoRecordBytes is what a record costs besides its data.
const undoRecordBytes = 64

// undoEntry is a record with the content of a volume from off on, at most up to end.
func (s *sender) undoEntry(v *Volume, off, end int64) (journal.Entry, error) {
	hole, err := v.holeUntil(off, end)
	if err != nil {
		return journal.Entry{}, err
	}
	h := s.control(journal.KindHole, nil)
	h.Volume, h.Offset = v.index, off
	if hole > off { // what is written there from now on is shipped behind it
		h.Length = uint32(min(hole-off, maxRangeBytes))
		return journal.Entry{Header: h}, nil
	}
	n := min(end-off, syncRunExtents*64<<10, s.g.log.maxRecordBytes())
	data := make([]byte, n)
	if _, err := v.ReadAt(data, off); err != nil {
		return journal.Entry{}, err
	}
	h.Length = uint32(n)
	if vfs.AllZero(data) {
		return journal.Entry{Header: h}, nil
	}
	h.Kind, h.DataCRC = journal.KindExtent, journal.DataCRC(data)
	return journal.Entry{Header: h, Data: data}, nil
}

// addHorizon makes durable what was read for a sync, since it may hold writes that are not durable yet, and tells the
// secondary up to which ordinal that shows writes.
func (s *sender) addHorizon() error {
	if err := s.g.log.commit(); err != nil {
		return err
	}
	durable := s.g.journal.Durable()
	if durable <= s.horizon {
		return nil
	}
	s.horizon = durable
	ahead := s.control(journal.KindHorizon, nil)
	ahead.Offset = int64(durable)
	return s.add(ahead, nil)
}
