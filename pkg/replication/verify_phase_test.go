package replication

import "testing"

// TestVerifyPhase tries every change in every phase: it is made or refused, and a refused one changes nothing.
func TestVerifyPhase(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*verifyPhase) bool
		// to is the next phase from idle, wanted and running; the same one where the change is refused.
		to [3]verifyPhase
	}{
		{"want", (*verifyPhase).want, [3]verifyPhase{verifyWanted, verifyWanted, verifyRunning}},
		{"begin", (*verifyPhase).begin, [3]verifyPhase{verifyRunning, verifyRunning, verifyRunning}},
		{"end", (*verifyPhase).end, [3]verifyPhase{verifyIdle, verifyWanted, verifyIdle}},
	} {
		for from, want := range tc.to {
			p := verifyPhase(from)
			if made := tc.do(&p); p != want || made != (want != verifyPhase(from)) {
				t.Errorf("%s in phase %v: made %t, phase %v, want %v", tc.name, verifyPhase(from), made, p, want)
			}
		}
	}
}
