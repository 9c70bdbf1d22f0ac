package core

import (
	"encoding/json"
	"flag"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
)

// machine has clocks that are wrong: they run too fast or too slow, steered by NTP far more than the raw one is, are
// set, and begin anew at each boot.
type machine struct {
	boot             string
	booted           int64 // real time
	bootPPM, rawPPM  int64
	wallPPM, wallOff int64
}

func rate(real, ppm int64) int64 { return real + real*ppm/1e6 }

func (m *machine) now(real int64) clocks.Instant {
	up := real - m.booted
	return clocks.Instant{BootID: m.boot, BootNanos: rate(up, m.bootPPM), RawNanos: rate(up, m.rawPPM),
		WallNanos: rate(real, m.wallPPM) + m.wallOff}
}

// inTransit is a message of one direction. Its stream is the one that it belongs to: others' messages are lost with
// them.
type inTransit struct {
	at, stream int64
	timing     clocks.Timing
	heartbeat  bool
	head       uint64
	durable    uint64
	records    uint64 // up to this ordinal; 0 for none
	syncEnds   bool
}

// twoSites is a primary that writes, a secondary with a core, and a link that delays everything as it likes. Times are
// real ones, which neither site knows.
type twoSites struct {
	real   int64
	a, b   machine
	stream int64
	open   bool
	toB    []inTransit
	toA    []inTransit

	writes  []int64 // real time by ordinal
	durable uint64  // of the primary
	shipped uint64
	atA     *clocks.Exchange

	core *Group
	// received and stored are the secondary's: in its journal, and durable there. has is what it has of the group, which
	// in a sync is less.
	received, stored, has uint64
	atB                   *clocks.Exchange
	difference            clocks.Difference
	measured              bool
}

func newTwoSites() *twoSites {
	m := freshMeta("b")
	m.Copy = CopyWhole
	return &twoSites{
		real: int64(time.Hour), a: machine{boot: "a1"}, b: machine{boot: "b1"}, core: New(m),
		atA: &clocks.Exchange{}, atB: &clocks.Exchange{},
	}
}

func (w *twoSites) write()       { w.writes = append(w.writes, w.real) }
func (w *twoSites) head() uint64 { return uint64(len(w.writes)) }

func (w *twoSites) connect() {
	w.hangUp()
	w.stream++
	w.open = true
	w.atA, w.atB = &clocks.Exchange{}, &clocks.Exchange{}
	w.shipped = w.received
	if !w.core.Whole() {
		w.shipped = max(w.shipped, w.durable)
	}
}

func (w *twoSites) hangUp() {
	w.open = false
	w.toA, w.toB = nil, nil
	w.stored = w.received
}

// send puts a message on its way; messages of one direction do not overtake each other.
func send(queue []inTransit, m inTransit) []inTransit {
	if n := len(queue); n > 0 {
		m.at = max(m.at, queue[n-1].at)
	}
	return append(queue, m)
}

func (w *twoSites) beat(delay int64) {
	if w.open {
		m := inTransit{at: w.real + delay, stream: w.stream, heartbeat: true, timing: w.atA.Send(w.a.now(w.real))}
		m.head, m.durable = w.head(), w.durable
		w.toB = send(w.toB, m)
	}
}

func (w *twoSites) ship(upTo uint64, delay int64) {
	if w.open && upTo > w.shipped {
		w.shipped = upTo
		w.toB = send(w.toB, inTransit{at: w.real + delay, stream: w.stream, records: upTo})
	}
}

func (w *twoSites) ack(delay int64) {
	if w.open {
		w.stored = w.received
		w.toA = send(w.toA, inTransit{at: w.real + delay, stream: w.stream, timing: w.atB.Send(w.b.now(w.real))})
	}
}

// pass lets time pass, and what arrives meanwhile arrive.
func (w *twoSites) pass(d int64) {
	end := w.real + d
	for {
		a, b := len(w.toA) > 0 && w.toA[0].at <= end, len(w.toB) > 0 && w.toB[0].at <= end
		switch {
		case b && (!a || w.toB[0].at <= w.toA[0].at):
			m := w.toB[0]
			w.toB = w.toB[1:]
			w.real = max(w.real, m.at)
			w.arrivesAtB(m)
		case a:
			m := w.toA[0]
			w.toA = w.toA[1:]
			w.real = max(w.real, m.at)
			w.compare(w.atA, w.a.now(w.real), m.timing, nil)
		default:
			w.real = end
			return
		}
	}
}

// compare takes a message's timing as package replication does.
func (w *twoSites) compare(e *clocks.Exchange, now clocks.Instant, t clocks.Timing,
	d *clocks.Difference) clocks.Instant {
	r := e.Receive(now, t)
	if d != nil && r.Measured {
		d.Add(now, r.Clock)
		w.measured = true
	}
	return r.After
}

func (w *twoSites) arrivesAtB(m inTransit) {
	switch {
	case m.heartbeat:
		after := w.compare(w.atB, w.b.now(w.real), m.timing, &w.difference)
		w.core.Step(HeartbeatReceived{Head: m.head, Durable: m.durable, NotBefore: after, Local: w.stored})
	case m.syncEnds:
		w.stored, w.has = w.received, w.received
		w.core.Step(SyncEndDurable{})
	default:
		w.received = max(w.received, m.records)
		if w.core.Whole() {
			w.has = w.received
		}
	}
}

// restart is of the secondary's process, which remembers what its file has; reboot is of its machine.
func (w *twoSites) restart(file []byte, reboot bool) error {
	w.hangUp()
	if reboot {
		w.b.boot, w.b.booted = w.b.boot+"+", w.real
	}
	w.core = New(w.core.Meta)
	w.difference, w.measured = clocks.Difference{}, false
	var r Recollection
	if file == nil {
		return nil
	}
	err := json.Unmarshal(file, &r)
	w.core.Recall(r)
	return err
}

func (w *twoSites) file() []byte {
	text, err := json.Marshal(w.core.Remember(w.stored))
	if err != nil {
		panic(err)
	}
	return text
}

// bound is the loss that a promotion now would report.
func (w *twoSites) bound() *Loss {
	trial := *w.core
	trial.current.marks = slices.Clone(trial.current.marks)
	return trial.boundLoss(Promote{Durable: w.received, Now: w.b.now(w.real)})
}

// missing is the age of the oldest write that the secondary lacks.
func (w *twoSites) missing() int64 {
	if w.has >= w.head() {
		return 0
	}
	return w.real - w.writes[w.has]
}

// TestLossBoundHolds lets two sites with wrong clocks replicate over a link that delays and breaks, with restarts and
// reboots at any moment. What a promotion would say is lost at most, or at least, has to be so at every moment.
func TestLossBoundHolds(t *testing.T) {
	if bug.Enabled(bug.UnderstateLoss) {
		// It is meant to fail, and leaves nothing in testdata for TestScripts to read.
		if err := flag.Set("rapid.nofailfile", "true"); err != nil {
			t.Fatal(err)
		}
	}
	known := 0
	rapid.Check(t, func(t *rapid.T) {
		w := newTwoSites()
		ppm := rapid.Int64Range(-80_000, 80_000) // as far as chrony steers by default
		crystal := rapid.Int64Range(-clocks.DriftPPM*9/10, clocks.DriftPPM*9/10)
		off := rapid.Int64Range(-int64(time.Hour), int64(time.Hour))
		for _, m := range []*machine{&w.a, &w.b} {
			m.bootPPM, m.wallPPM, m.rawPPM = ppm.Draw(t, "steered"), ppm.Draw(t, "wall"), crystal.Draw(t, "crystal")
			m.wallOff = off.Draw(t, "off")
		}
		delay := rapid.Map(rapid.SampledFrom([]time.Duration{0, time.Millisecond, 30 * time.Millisecond,
			400 * time.Millisecond, 20 * time.Second}),
			func(d time.Duration) int64 { return int64(d) })
		w.connect()
		file := w.file()
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				for range rapid.IntRange(1, 5).Draw(t, "writes") {
					w.write()
					w.pass(rapid.Int64Range(0, int64(20*time.Millisecond)).Draw(t, "then"))
				}
			},
			"work": func(t *rapid.T) { // what goes by itself, in any order and number
				d := delay.Draw(t, "delay")
				for range rapid.IntRange(1, 8).Draw(t, "rounds") {
					w.durable = w.head()
					w.ship(w.durable, d)
					w.ack(d)
					w.pass(delay.Draw(t, "passes"))
					w.beat(d)
					w.write() // while that is on its way
					w.pass(d)
				}
			},
			"flush": func(*rapid.T) { w.durable = w.head() },
			"ship":  func(t *rapid.T) { w.ship(rapid.Uint64Range(0, w.durable).Draw(t, "upto"), delay.Draw(t, "delay")) },
			"ack":   func(t *rapid.T) { w.ack(delay.Draw(t, "delay")) },
			"beat":  func(t *rapid.T) { w.beat(delay.Draw(t, "delay")) },
			"wait":  func(t *rapid.T) { w.pass(delay.Draw(t, "for")) },
			"save":  func(*rapid.T) { file = w.file() },
			"connect": func(*rapid.T) {
				w.connect()
			},
			"cut": func(*rapid.T) { w.hangUp() },
			"set a clock": func(t *rapid.T) {
				m := []*machine{&w.a, &w.b}[rapid.IntRange(0, 1).Draw(t, "whose")]
				m.wallOff += off.Draw(t, "by")
			},
			"the primary loses power": func(*rapid.T) {
				w.hangUp()
				w.writes = w.writes[:w.durable]
			},
			"restart": func(t *rapid.T) {
				left := file
				if rapid.Bool().Draw(t, "nothing left") {
					left = nil
				}
				if err := w.restart(left, rapid.Bool().Draw(t, "reboot")); err != nil {
					t.Fatal(err)
				}
			},
			"sync": func(*rapid.T) { // records were folded: ordinals run ahead of what the copy has, until the sync ends
				w.connect()
				w.core.Step(SyncBeginReceived{})
				w.received, w.stored = max(w.received, w.durable), max(w.stored, w.durable)
				w.shipped = w.received
			},
			"sync ends": func(t *rapid.T) {
				if w.open && !w.core.Whole() {
					w.ship(w.durable, 0)
					w.toB = send(w.toB, inTransit{at: w.real + delay.Draw(t, "delay"), syncEnds: true})
				}
			},
			"": func(t *rapid.T) {
				if d, ok := w.difference.Estimate(w.b.now(w.real)); ok != w.measured {
					t.Fatalf("the difference of clocks is %+v, %v", d, ok)
				}
				proven := w.core.CaughtUp(w.stored).At
				if lag, ok := w.b.now(w.real).SinceAtMost(proven); ok && int64(lag) < w.missing() {
					t.Fatalf("a lag of %v, but a write of %v ago is missing", lag, time.Duration(w.missing()))
				}
				if !w.core.Whole() {
					return // and not promoted
				}
				l := w.bound()
				if l.LostSeconds != nil {
					known++
					if at := int64(*l.LostSeconds * 1e9); at < w.missing() {
						t.Fatalf("at most %v is lost, but a write of %v ago is missing", time.Duration(at), time.Duration(w.missing()))
					}
				}
				if l.LostOrdinals != nil && *l.LostOrdinals > w.head()-min(w.head(), w.received) {
					t.Fatalf("at least %d ordinals are lost, but %d were written and %d received", *l.LostOrdinals, w.head(),
						w.received)
				}
			},
		})
	})
	if known == 0 {
		t.Fatal("no bound was ever known")
	}
}

// A bound is of use only if it is near: on a link that works it is wider than the loss by a round trip, a heartbeat and
// what clocks drift.
func TestLossBoundIsNear(t *testing.T) {
	w := newTwoSites()
	w.a.wallOff = int64(-time.Hour)
	w.connect()
	const trip = int64(100 * time.Millisecond)
	for range 20 {
		w.write()
		w.durable = w.head()
		w.ship(w.durable, trip/2)
		w.beat(trip / 2)
		w.ack(trip / 2)
		w.pass(trip)
	}
	d, ok := w.difference.Estimate(w.b.now(w.real))
	if off := d.Nanos + int64(time.Hour); !ok || max(off, -off) > d.ErrorNanos || d.ErrorNanos > trip {
		t.Fatalf("the clocks are an hour apart, measured %+v, %v", d, ok)
	}
	w.hangUp()
	cut := w.real
	for range 10 {
		w.pass(int64(time.Second))
		w.write()
	}
	if err := w.restart(w.file(), false); err != nil {
		t.Fatal(err)
	}
	l := w.bound()
	if l.LostSeconds == nil {
		t.Fatal("unknown")
	}
	if at, truth := int64(*l.LostSeconds*1e9), w.real-cut; at < w.missing() || at > truth+4*trip+truth/100 {
		t.Fatalf("at most %v, the link was cut %v ago", time.Duration(at), time.Duration(truth))
	}
	if err := w.restart(w.file(), true); err != nil {
		t.Fatal(err)
	}
	if l := w.bound(); l.LostSeconds != nil {
		t.Fatalf("after a reboot at most %v s", *l.LostSeconds)
	}
}

// The test of the bound can fail: with a deliberate fault built in, it does.
func TestFaultsOfTheBoundAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the core with a deliberate fault")
	}
	testenv.Catches(t, bug.UnderstateLoss, "TestLossBoundHolds")
}
