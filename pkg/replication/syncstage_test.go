package replication

import (
	"strings"
	"testing"
)

// TestStreamSync tries every step of a stream's sync in every stage: it is made or refused, and a refused one changes
// nothing.
func TestStreamSync(t *testing.T) {
	const none, extents, records = syncStageNone, syncStageExtents, syncStageRecords
	steps := []struct {
		name     string
		from, to syncStage
		do       func(*streamSync) error
	}{
		{"begin", none, extents, (*streamSync).begin},
		{"extents read", extents, records, func(s *streamSync) error { return s.extentsRead(7) }},
		{"more extents", records, extents, (*streamSync).moreExtents},
		{"end", records, none, (*streamSync).end},
	}
	for _, step := range steps {
		for _, from := range []syncStage{none, extents, records} {
			s := streamSync{stage: from}
			err := step.do(&s)
			switch {
			case from == step.from && (err != nil || s.stage != step.to):
				t.Errorf("%s in stage %v: stage %v, %v", step.name, from, s.stage, err)
			case from != step.from && (err == nil || s.stage != from || !strings.Contains(err.Error(), from.String())):
				t.Errorf("%s in stage %v: stage %v, %v", step.name, from, s.stage, err)
			}
			if s.active() != (s.stage != none) {
				t.Errorf("stage %v: active is %t", s.stage, s.active())
			}
			if want := s.stage == records; s.reachedTarget(7) != want {
				t.Errorf("stage %v: the target is reached: %t", s.stage, !want)
			}
			s.reset()
			if s != (streamSync{}) {
				t.Errorf("after a reset: %+v", s)
			}
		}
	}
	s := streamSync{stage: records, target: 7}
	if s.reachedTarget(6) || !s.reachedTarget(8) {
		t.Error("the target is an ordinal that has to be reached")
	}
}
