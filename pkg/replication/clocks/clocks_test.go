package clocks

import (
	"math"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func at(n int64) Instant { return Instant{BootID: "b", BootNanos: n, RawNanos: n, WallNanos: n} }

func TestSystem(t *testing.T) {
	first := Read(time.Now)
	second := Read(time.Now)
	if d, ok := second.SinceAtMost(first); !first.Known() || !ok || d < 0 {
		t.Fatalf("%+v, then %+v: %v, %v", first, second, d, ok)
	}
}

func TestSinceAtMost(t *testing.T) {
	other, slow, set := at(5e9), at(5e9), at(5e9)
	other.BootID, slow.BootNanos, set.WallNanos = "c", 1e9, 9e9
	for _, test := range []struct {
		name    string
		now     Instant
		earlier Instant
		want    time.Duration // at least; negative for unknown
	}{
		{"the same", at(1), at(1), 0},
		{"later", at(5e9), at(1e9), 4 * time.Second},
		{"steered slow", slow, at(1e9), 4 * time.Second},
		{"wall clock set", set, at(1e9), 8 * time.Second},
		{"went back", at(1e9), at(5e9), -1},
		{"another boot", other, at(1e9), -1},
		{"unknown", at(5e9), Instant{}, -1},
		{"both unknown", Instant{}, Instant{}, -1},
	} {
		d, ok := test.now.SinceAtMost(test.earlier)
		if ok != (test.want >= 0) || ok && (d < test.want || d > test.want+test.want/100) {
			t.Errorf("%s: %v, %v", test.name, d, ok)
		}
	}
}

func TestSinceAtLeast(t *testing.T) {
	other, slept, set := at(5e9), at(5e9), at(5e9)
	other.BootID, slept.RawNanos, set.WallNanos = "c", 2e9, 900e9
	for _, test := range []struct {
		name    string
		now     Instant
		earlier Instant
		want    time.Duration // at most; negative for unknown
	}{
		{"the same", at(1), at(1), 0},
		{"later", at(5e9), at(1e9), 4 * time.Second},
		{"slept", slept, at(1e9), time.Second},
		{"wall clock set", set, at(1e9), 4 * time.Second},
		{"went back", at(1e9), at(5e9), -1},
		{"another boot", other, at(1e9), -1},
		{"unknown", at(5e9), Instant{}, -1},
	} {
		d, ok := test.now.SinceAtLeast(test.earlier)
		if ok != (test.want >= 0) || ok && (d > test.want || d < test.want-test.want/100) {
			t.Errorf("%s: %v, %v", test.name, d, ok)
		}
	}
}

// What a peer says wrong proves nothing, and does no harm.
func TestExchangeWithALiar(t *testing.T) {
	var e Exchange
	for n := range int64(3) {
		e.Send(at(n * 1e9))
	}
	for _, test := range []struct {
		t        Timing
		after    Instant
		measured bool
	}{
		{Timing{}, Instant{}, false},
		{Timing{Stamp: 1}, Instant{}, false},
		{Timing{Stamp: 2, Echo: 4}, Instant{}, false},
		{Timing{Stamp: 3, Echo: math.MaxUint64, HeldNanos: math.MinInt64}, Instant{}, false},
		{Timing{Stamp: 4, Echo: 2, HeldNanos: math.MaxInt64}, at(1e9), false},
		{Timing{Stamp: 5, Echo: 2, HeldNanos: -1}, at(1e9), false},
		{Timing{Stamp: 6, Echo: 2, HeldNanos: 1}, at(1e9), true},
		{Timing{Stamp: 7, Echo: 1}, Instant{}, false}, // older than what was echoed before
	} {
		if r := e.Receive(at(4e9), test.t); r.After != test.after || r.Measured != test.measured {
			t.Errorf("%+v: %+v", test.t, r)
		}
	}
}

// A peer that echoes nothing for long costs a bounded memory, and a late echo still proves something.
func TestExchangeForgets(t *testing.T) {
	var e Exchange
	const sent = 100_000
	for n := range int64(sent) {
		e.Send(at(n + 1))
	}
	if len(e.sent) > maxStamps {
		t.Fatalf("%d stamps", len(e.sent))
	}
	r := e.Receive(at(sent+1), Timing{Stamp: 1, Echo: sent / 2})
	if !r.After.Known() || r.After.BootNanos > sent/2 {
		t.Fatalf("%+v", r)
	}
}
