package replication

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The clock forgets most of what it is told. It must never say that the oldest unacknowledged write is younger than it
// is by more than its error, nor older than the writes around it, and must stay small.
func TestWriteClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newWriteClock()
		var times []int64 // by ordinal
		now, acked := int64(0), uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				gap := rapid.Int64Range(0, int64(3*time.Millisecond)).Draw(t, "gap")
				for range rapid.IntRange(1, 3000).Draw(t, "writes") {
					now += gap
					times = append(times, now)
					c.wrote(uint64(len(times)), now)
				}
			},
			"pause": func(t *rapid.T) { now += rapid.Int64Range(0, int64(time.Hour)).Draw(t, "pause") },
			"ack": func(t *rapid.T) {
				acked = rapid.Uint64Range(acked, uint64(len(times))).Draw(t, "acked")
			},
			"": func(t *rapid.T) {
				if len(c.samples) > maxWriteSamples {
					t.Fatalf("%d samples", len(c.samples))
				}
				got, ok := c.oldestAfter(acked)
				if len(times) == 0 {
					if ok {
						t.Fatal("a time without a write")
					}
					return
				}
				if uint64(len(times)) == acked {
					return // nothing is unacknowledged; the caller does not ask
				}
				want := times[acked]
				if !ok || got > want {
					t.Fatalf("the oldest write past %d is from %d, told %d (%v): younger than it is", acked, want, got, ok)
				}
			},
		})
	})
}
