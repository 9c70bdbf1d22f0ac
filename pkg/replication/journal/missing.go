package journal

import (
	"fmt"
	"path"
)

// mustMark reports whether the record that the checkpoint names is in a live segment.
func (sc *scanner) mustMark() bool {
	return sc.mark.End.Segment > 0 && sc.mark.End.Segment >= sc.oldest
}

// findMissing looks for every segment that has to be there: the one that the checkpoint names, the one that this
// continues, and so on to the oldest live one. Each is known by the name of its file, so a file that is gone, or holds
// something else, is told from one that never was. used are the segments that may be live.
func (sc *scanner) findMissing(used, all []*diskSegment) error {
	if !sc.mustMark() {
		return nil
	}
	bySequence := make(map[uint64]*diskSegment, len(used))
	for _, s := range used {
		bySequence[s.hdr.sequence] = s
	}
	sequence, file, witness := sc.mark.End.Segment, sc.mark.File, "the checkpoint"
	for {
		s := bySequence[sequence]
		if s == nil {
			return sc.missing(sequence, file, witness, all)
		}
		if s.hdr.prev.Segment == 0 || s.hdr.prev.Segment < sc.oldest {
			return nil
		}
		sequence, file, witness = s.hdr.prev.Segment, s.hdr.prevFile, s.name
	}
}

// missing is the error for a segment that is not there.
func (sc *scanner) missing(sequence, file uint64, witness string, all []*diskSegment) error {
	e := &CorruptionError{File: sc.dir, Ordinal: 0}
	if file > 0 {
		e.File = path.Join(sc.dir, fileName(file))
	}
	e.Reason = fmt.Sprintf(
		"segment %d is missing; %s says that it holds durable records. Put the file back, and where the checkpoint "+
			"was restored from a backup, the newest checkpoint", sequence, witness)
	for _, s := range all {
		switch {
		case s.state == headerDamaged && !s.copied && (file == 0 || s.name == e.File):
			// Nothing but its name says what it was.
			e.File, e.Reason = s.name, fmt.Sprintf("%v, and segment %d is missing, which %s names", s.problem, sequence, witness)
			return e
		case s.name != e.File:
		case s.known():
			e.Reason = fmt.Sprintf(
				"it holds segment %d in place of segment %d, which %s names: an older copy of the file, or of the checkpoint",
				s.hdr.sequence, sequence, witness)
		default:
			e.Reason = fmt.Sprintf("it holds nothing in place of segment %d, which %s names", sequence, witness)
		}
	}
	return e
}
