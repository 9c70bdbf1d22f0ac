package replication

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
)

// The clock forgets most of what it is told. It must never say that the oldest write that the peer lacks is younger
// than it is, whatever the wall clock does, what an earlier process left, and while a sync lets the peer's ordinals run
// ahead of what it has; it must stay small, and know what it can know.
func TestWriteClock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newWriteClock()
		start := time.Now()
		var times []int64 // real time by ordinal, nanoseconds
		now, wall := int64(0), int64(0)
		boot, copied, heard, has := "boot1", false, false, uint64(0)
		// sure is the ordinal from which on the clock has seen everything; before, it has to have been told.
		sure, told := uint64(0), false
		instant := func() clocks.Instant {
			return clocks.Instant{BootID: boot, BootNanos: now, RawNanos: now, WallNanos: wall}
		}
		head := func() uint64 { return uint64(len(times)) }
		clock := func() time.Time { return start.Add(time.Duration(now)) }
		pass := func(d int64) { now, wall = now+d, wall+d }
		write := func() {
			c.claim(head()+1, clock())
			times = append(times, now)
			c.wrote(head())
		}
		ask := func() clocks.Instant { return c.oldest(head, clock(), instant()) }
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				gap := rapid.Int64Range(0, int64(3*time.Millisecond)).Draw(t, "gap")
				for range rapid.IntRange(1, 3000).Draw(t, "writes") {
					pass(gap)
					write()
				}
			},
			"pause":    func(t *rapid.T) { pass(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "pause")) },
			"set wall": func(t *rapid.T) { wall += rapid.Int64Range(-int64(time.Hour), int64(time.Hour)).Draw(t, "by") },
			"ack": func(t *rapid.T) {
				copied, heard = true, true
				has = rapid.Uint64Range(has, head()).Draw(t, "acked")
				c.has(has)
			},
			"peer loses": func(t *rapid.T) {
				if copied {
					has, heard = rapid.Uint64Range(0, has).Draw(t, "has"), true
					sure, told = head(), false
					c.has(has)
				}
			},
			"restart": func(t *rapid.T) {
				left := ask()
				c = newWriteClock()
				if told = rapid.Bool().Draw(t, "left"); !told {
					left = clocks.Instant{}
				}
				if rapid.Bool().Draw(t, "reboot") {
					boot, told = boot+"x", false
				}
				c.begin(head(), has, left)
				sure, heard = head(), false
				told = told && left.Known()
			},
			"": func(t *rapid.T) {
				if len(c.samples) > maxWriteSamples {
					t.Fatalf("%d samples", len(c.samples))
				}
				at := ask()
				age, ok := instant().SinceAtMost(at)
				if !ok {
					if heard && has >= sure {
						t.Fatalf("nothing is known of a peer that has %d of %d, all of it written since %d", has, head(), sure)
					}
					return
				}
				if has < head() && copied {
					if want := now - times[has]; int64(age) < want {
						t.Fatalf("the peer lacks a write of %v ago, told %v", time.Duration(want), age)
					}
				}
				if !told && !copied {
					t.Fatalf("an age of %v out of nothing", age)
				}
			},
		})
	})
}
