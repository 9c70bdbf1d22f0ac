// Package lograte bounds how many lines an untrusted caller can make a program log. It knows nothing of what the
// lines say.
//
// All methods may be called concurrently.
package lograte

import (
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/klog/v2"
)

const (
	first    = 5
	interval = 10 * time.Second
)

// Log logs the first 5 lines, and one every 10 s from then on, which says how many were left out since the one before.
// The zero Log is ready.
type Log struct {
	sometimes atomic.Pointer[rate.Sometimes]
	pending   atomic.Int64
	sink      func(err error, message string, keysAndValues ...any) // nil: klog's
}

// Error is klog.ErrorS at a bounded rate.
func (l *Log) Error(err error, message string, keysAndValues ...any) {
	if l.sometimes.Load() == nil {
		l.sometimes.CompareAndSwap(nil, &rate.Sometimes{First: first, Interval: interval})
	}
	l.pending.Add(1)
	l.sometimes.Load().Do(func() {
		if leftOut := l.pending.Swap(0) - 1; leftOut > 0 {
			keysAndValues = append(keysAndValues, "leftOut", leftOut)
		}
		sink := l.sink
		if sink == nil {
			sink = klog.ErrorS
		}
		sink(err, message, keysAndValues...)
	})
}
