package lograte

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/time/rate"
)

func TestLogIsBounded(t *testing.T) {
	var lines [][]any
	l := &Log{sink: func(_ error, _ string, keysAndValues ...any) { lines = append(lines, keysAndValues) }}
	l.sometimes.Store(&rate.Sometimes{First: first, Interval: time.Hour})
	for range 1000 {
		l.Error(errors.New("refused"), "Refused", "remoteAddress", "x")
	}
	if len(lines) != first {
		t.Fatalf("%d lines of 1000 calls", len(lines))
	}
	l.sometimes.Store(&rate.Sometimes{}) // as when the time has come: the next call is logged
	l.Error(errors.New("refused"), "Refused", "remoteAddress", "x")
	if last := lines[len(lines)-1]; len(lines) != first+1 || len(last) != 4 || last[3] != int64(1000-first) {
		t.Errorf("%d lines, the last one %v", len(lines), last)
	}
}
