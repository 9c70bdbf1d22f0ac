package replication

import "fmt"

// syncStage is how far the sync is that a stream carries.
//
//	none -> extents             sync-begin was sent
//	extents -> records          no extent is left to send
//	records -> extents          records were folded into the change map meanwhile, or a volume was added
//	records -> none             sync-end was sent
//	extents, records -> none    the stream begins anew at another ordinal
type syncStage int

const (
	// syncStageNone: only records are sent.
	syncStageNone syncStage = iota
	// syncStageExtents: extents of the change map are sent, and records between them.
	syncStageExtents
	// syncStageRecords: every extent was read, and the records follow that were written until then.
	syncStageRecords
)

func (s syncStage) String() string {
	switch s {
	case syncStageNone:
		return "none"
	case syncStageExtents:
		return "extents"
	case syncStageRecords:
		return "records"
	}
	return fmt.Sprintf("syncStage(%d)", int(s))
}

// streamSync is the sync that a stream carries. The zero value is none.
type streamSync struct {
	stage syncStage
	// target is the journal's head when the last extent was read; in stage records.
	target uint64
}

func (s *streamSync) change(from, to syncStage, target uint64) error {
	if s.stage != from {
		return fmt.Errorf("the sync of a stream cannot go from stage %v to %v: it is in stage %v", from, to, s.stage)
	}
	s.stage, s.target = to, target
	return nil
}

// active reports whether a sync was begun and not ended.
func (s *streamSync) active() bool { return s.stage != syncStageNone }

// begin is for a sync-begin.
func (s *streamSync) begin() error { return s.change(syncStageNone, syncStageExtents, 0) }

// extentsRead notes that no extent is left to send, and that the head of the journal is target since.
func (s *streamSync) extentsRead(target uint64) error {
	return s.change(syncStageExtents, syncStageRecords, target)
}

// moreExtents goes back to the extents, since there are new ones.
func (s *streamSync) moreExtents() error { return s.change(syncStageRecords, syncStageExtents, 0) }

// end is for a sync-end.
func (s *streamSync) end() error { return s.change(syncStageRecords, syncStageNone, 0) }

// reachedTarget reports whether the peer has all records up to the target once it has those up to at.
func (s *streamSync) reachedTarget(at uint64) bool {
	return s.stage == syncStageRecords && at >= s.target
}

// reset forgets the sync: the stream begins anew.
func (s *streamSync) reset() { *s = streamSync{} }
