package replication

import (
	"errors"
	"testing"
)

// TestKeepOutcome tries every change in every state: it is made or refused, and a refused one changes nothing.
func TestKeepOutcome(t *testing.T) {
	boom := errors.New("boom")
	changes := []struct {
		name     string
		from, to keepState
		do       func(*keepOutcome) bool
	}{
		{"complete", keepRunning, keepComplete, (*keepOutcome).complete},
		{"fail", keepRunning, keepFailing, func(o *keepOutcome) bool { return o.fail(boom) }},
		{"failure stored", keepFailing, keepFailed, (*keepOutcome).failureStored},
	}
	for _, change := range changes {
		for _, from := range []keepState{keepRunning, keepComplete, keepFailing, keepFailed} {
			o, want := keepOutcome{state: from}, from
			if from == change.from {
				want = change.to
			}
			if made := change.do(&o); made != (from == change.from) || o.state != want {
				t.Errorf("%s in state %v: made %t, state %v", change.name, from, made, o.state)
			}
			if gaveReason := o.reason != nil; gaveReason != (from == keepRunning && want == keepFailing) {
				t.Errorf("%s in state %v: the reason is %v", change.name, from, o.reason)
			}
		}
	}
}

// TestCutsFileState: a file that is not known stays so until it is written.
func TestCutsFileState(t *testing.T) {
	var s cutsFileState
	for i, step := range []struct {
		do   func()
		want cutsFileState
	}{
		{func() { s.writeFailed(true) }, cutsFileSaved},
		{s.changed, cutsFileBehind},
		{func() { s.writeFailed(true) }, cutsFileBehind},
		{s.written, cutsFileSaved},
		{func() { s.writeFailed(false) }, cutsFileUnknown},
		{s.changed, cutsFileUnknown},
		{func() { s.writeFailed(true) }, cutsFileUnknown},
		{s.written, cutsFileSaved},
	} {
		if step.do(); s != step.want {
			t.Errorf("after step %d: %v, want %v", i, s, step.want)
		}
	}
}
