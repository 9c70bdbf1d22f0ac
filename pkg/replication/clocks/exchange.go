package clocks

import (
	"sync"
	"time"
)

// maxStamps bounds what an exchange remembers. Where a peer echoes nothing for long, every second stamp goes.
const maxStamps = 1024

// readingErrors is for the four instants of a measurement.
const readingErrors = 4 * int64(ReadingError)

// Timing is what a message says of clocks.
type Timing struct {
	// Stamp numbers the sender's messages with a Timing on one stream from 1. 0: the sender says nothing.
	Stamp uint64
	// WallNanos is the sender's wall clock.
	WallNanos int64
	// Echo is the last stamp that the sender had received, 0 for none, and HeldNanos how long ago that was.
	Echo      uint64
	HeldNanos int64
}

// Sample is one measurement of the peer's wall clock minus this site's, right to within Error in either direction.
type Sample struct{ Nanos, ErrorNanos int64 }

// Received is what a message proves.
type Received struct {
	// After is an instant of this machine before which the sender had not composed the message; unknown without an echo.
	After Instant
	// Clock is a measurement of the difference of wall clocks, where Measured is set.
	Clock    Sample
	Measured bool
}

// Exchange is one end of a stream whose messages carry stamps and their echoes. The zero value is ready.
type Exchange struct {
	mu   sync.Mutex
	last uint64
	// sent are stamps of this end that the peer may still echo, ascending.
	sent []sentStamp
	// peer is the last stamp that came from the other end, and when.
	peer   uint64
	peerAt Instant
}

type sentStamp struct {
	stamp uint64
	at    Instant
}

// Send returns what the next message says. What else the message says must be read after this call: its echo proves to
// the peer that it was.
func (e *Exchange) Send(now Instant) Timing {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	e.sent = append(e.sent, sentStamp{e.last, now})
	if len(e.sent) > maxStamps {
		e.sent = everySecond(e.sent)
	}
	t := Timing{Stamp: e.last, WallNanos: now.WallNanos, Echo: e.peer}
	if e.peer != 0 {
		t.HeldNanos = now.BootNanos - e.peerAt.BootNanos
	}
	return t
}

// everySecond drops every second item of a list and keeps the last.
func everySecond[T any](list []T) []T {
	n := 0
	for i := (len(list) - 1) % 2; i < len(list); i += 2 {
		list[n] = list[i]
		n++
	}
	return list[:n]
}

// Receive takes what a message says that arrived before now. It believes nothing that would make After too late except
// that the peer has echoed what it had received; a message that contradicts what was sent proves nothing.
func (e *Exchange) Receive(now Instant, t Timing) Received {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t.Stamp != 0 {
		e.peer, e.peerAt = t.Stamp, now
	}
	var r Received
	if t.Echo == 0 || t.Echo > e.last {
		return r
	}
	i := 0
	for i+1 < len(e.sent) && e.sent[i+1].stamp <= t.Echo {
		i++
	}
	s := e.sent[i]
	if s.stamp > t.Echo {
		return r // an echo older than one that was here before
	}
	e.sent = append(e.sent[:0], e.sent[i:]...) // the peer may echo it again
	r.After = s.at
	trip := now.BootNanos - s.at.BootNanos
	delay := trip - t.HeldNanos
	if s.stamp != t.Echo || !now.Known() || t.Stamp == 0 || t.HeldNanos < 0 || delay < -int64(time.Millisecond) {
		return r
	}
	delay = max(delay, 0)
	// The message took between nothing and all of the delay to come here.
	r.Clock = Sample{
		Nanos:      t.WallNanos + delay/2 - now.WallNanos,
		ErrorNanos: delay/2 + int64(Stretched(time.Duration(trip))) - trip + readingErrors,
	}
	r.Measured = true
	return r
}
