package main

import (
	"slices"
	"sync/atomic"
	"testing"
)

// happened counts the events that a search has to have had, by what is said of one. A search that meets one in a few
// rounds of a hundred goes on until it has met it: a fixed number of rounds is too few once in so many runs, or takes
// too long in all of them.
type happened map[string]*atomic.Int64

// missing are the events that did not happen yet.
func (h happened) missing() (list []string) {
	for what, n := range h {
		if n.Load() == 0 {
			list = append(list, what)
		}
	}
	slices.Sort(list)
	return list
}

// extraRounds bounds what a search goes on for because something is missing, in rounds for each that it has to run.
const extraRounds = 4

// goOn says whether a search that has to have some rounds, and has run n, runs another one.
func (h happened) goOn(n, least int64) bool {
	return n < least || n < extraRounds*least && len(h.missing()) > 0
}

// check fails the test for what did not happen.
func (h happened) check(t *testing.T, rounds int64) {
	t.Helper()
	for _, what := range h.missing() {
		t.Errorf("of %d rounds, in none %s: the search tests nothing of it", rounds, what)
	}
}

func TestHappened(t *testing.T) {
	var often, rare atomic.Int64
	h := happened{"it is often": &often, "it is rare": &rare}
	often.Add(3)
	for _, tt := range []struct {
		rounds, rare int64
		want         bool
	}{
		{rounds: 9, want: true}, {rounds: 10, want: true}, {rounds: 10*extraRounds - 1, want: true},
		{rounds: 10 * extraRounds}, {rounds: 9, rare: 1, want: true}, {rounds: 10, rare: 1},
	} {
		rare.Store(tt.rare)
		if got := h.goOn(tt.rounds, 10); got != tt.want {
			t.Errorf("%d rounds, %d of the rare: goes on %v", tt.rounds, tt.rare, got)
		}
	}
	rare.Store(0)
	if got := h.missing(); !slices.Equal(got, []string{"it is rare"}) {
		t.Errorf("missing: %q", got)
	}
}
