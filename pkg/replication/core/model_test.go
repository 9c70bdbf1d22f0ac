package core

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// copyOf is what a side really holds: of each ordinal the write that took it, or hole where a sync has still to bring
// it.
type copyOf struct {
	*side
	writes []int
	// unshipped are ordinals in the change map; sent are those on their way, which count as in the map until the end.
	unshipped, sent map[uint64]bool
	// everything: the change map has every extent, also those that no ordinal here is about; everythingSent: these are on
	// their way.
	everything, everythingSent bool
	// shown is what the primary had when it sent an extent last: the extents here may show any of it.
	shown []int
	// base is what was here when the sync began that made the copy one that is not whole.
	base []int
	// wasWhole: as a secondary, it had a whole copy since.
	wasWhole bool
}

const hole = 0

// world is a naive model: two cores, what their sites really hold, and at most one stream that carries data.
type world struct {
	t    *rapid.T
	c    *conversation
	data map[string]*copyOf
	// histories is, for each timeline, what its primary had after each write on it. Without rollbacks each of them
	// continues the one before.
	histories map[string][][]int
	// saved are states of sites that a rollback goes back to; rolledBack says that one did.
	saved      []*saved
	rolledBack bool
	// yielded: a site gave way, so what it counts of its tail is not there any more.
	yielded   bool
	lastWrite int
	timelines int

	// hellos are all that were ever sent: an old one may arrive when its stream is gone.
	hellos []HelloReceived

	// The stream that ships, opened by caller; nil without one.
	caller  *copyOf
	at      uint64
	syncing bool
	// syncAt is where its sync began last.
	syncAt uint64
}

const segmentOrdinals = 3

func newWorld(t *rapid.T) *world {
	w := &world{t: t, c: newConversation(), data: map[string]*copyOf{}, histories: map[string][][]int{"T1": {nil}},
		timelines: 1}
	w.c.preserves = func(s *side) *Tail {
		d := w.data[s.name]
		d.base = slices.Clone(d.writes)
		return d.last()
	}
	for name, s := range w.c.sides {
		w.data[name] = &copyOf{side: s, unshipped: map[uint64]bool{}, sent: map[uint64]bool{}}
	}
	return w
}

func (w *world) pick() *copyOf {
	return w.data[rapid.SampledFrom([]string{"a", "b"}).Draw(w.t, "site")]
}

func (w *world) peerOf(d *copyOf) *copyOf { return w.data[otherName(d.name)] }

func (d *copyOf) put(id int) {
	d.writes = append(d.writes, id)
	d.place++
	d.durable = uint64(len(d.writes))
}

func (w *world) write() {
	d := w.pick()
	if !d.core.Writable() {
		w.t.Skip()
	}
	w.lastWrite++
	d.put(w.lastWrite)
	w.remember(d)
}

// remember adds what a primary has to the histories of its timeline.
func (w *world) remember(d *copyOf) {
	t := d.core.Meta.Timeline()
	w.histories[t] = append(w.histories[t], slices.Clone(d.writes))
}

// last is what identifies the last record of a copy; nil where nothing does.
func (d *copyOf) last() *Tail {
	if d.durable == 0 || d.writes[d.durable-1] == hole {
		return nil
	}
	return d.recordAt(d.durable)
}

func (d *copyOf) recordAt(ordinal uint64) *Tail {
	if ordinal >= d.retained && ordinal <= d.durable {
		return &Tail{Ordinal: ordinal, Fingerprint: uint64(d.writes[ordinal-1])}
	}
	return d.core.Meta.Tail // of another ordinal, mostly
}

// ship obeys a Ship action, after checking that the peer will get everything: what it lacks up to After is in the map.
func (w *world) ship(d *copyOf, a Ship) {
	p := w.peerOf(d)
	if n := len(p.shown); !d.everything && (n > len(d.writes) || !slices.Equal(p.shown, d.writes[:n])) {
		w.t.Fatalf("%s goes on with extents that show %v, it has %v", d.name, p.shown, d.writes)
	}
	if a.After > d.durable {
		w.t.Fatalf("%s ships from %d, it has only %d", d.name, a.After, d.durable)
	}
	if !a.Begin {
		if a.After != p.durable || slices.Contains(p.writes, hole) {
			w.t.Fatalf("%s streams from %d to a peer at %d with holes in %v", d.name, a.After, p.durable, p.writes)
		}
		if a.After+1 < d.retained {
			w.t.Fatalf("%s streams from %d, its journal begins at %d", d.name, a.After, d.retained)
		}
		if !slices.Equal(p.writes, d.writes[:a.After]) {
			w.t.Fatalf("%s streams %v behind %v", d.name, d.writes, p.writes)
		}
	} else {
		w.c.step(p.side, SyncBeginReceived{Base: w.c.base(p.side, false, true)})
		p.horizon = d.durable
		for uint64(len(p.writes)) < a.After {
			p.put(hole)
		}
		for o := range d.unshipped {
			if o <= p.durable {
				p.writes[o-1] = hole // its content there is not known to be right
			}
		}
		for i, id := range p.writes {
			if id == hole && !d.unshipped[uint64(i+1)] {
				w.t.Fatalf("%s begins a sync at %d; ordinal %d is neither at the peer nor in the change map", d.name, a.After, i+1)
			}
			if id != hole && id != d.writes[i] {
				w.t.Fatalf("%s begins a sync at %d; ordinal %d is another write at the peer", d.name, a.After, i+1)
			}
		}
		w.syncing = true
	}
	w.caller, w.at, w.syncing = d, a.After, a.Begin
	if a.Begin {
		w.syncAt = a.After
	}
}

func (w *world) obey(d *copyOf, decision Decision) {
	if d.markedAll {
		d.everything = true
		d.unshipped = map[uint64]bool{}
		for o := uint64(1); o <= d.durable; o++ {
			d.unshipped[o] = true
		}
	}
	if ship, ok := decision.(Ship); ok {
		w.ship(d, ship)
	}
}

func (w *world) hangUp() {
	if w.caller == nil {
		return
	}
	d := w.caller
	w.caller = nil
	for o := range d.sent {
		d.unshipped[o] = true
	}
	clear(d.sent)
	d.everything, d.everythingSent = d.everything || d.everythingSent, false
	w.c.hangUp(d.side)
}

func (w *world) connect() {
	d := w.pick()
	if w.caller != nil {
		w.hangUp()
	}
	p := w.peerOf(d)
	if d.core.Meta.Role.Ships() && !d.core.Meta.Calls() {
		w.t.Skip()
	}
	w.c.call(d.side, func(e *HelloReceived) { w.hellos = append(w.hellos, *e) })
	welcome, ok := w.c.answers[d.name].(SendWelcome)
	if ok && !w.rolledBack {
		// G6: what the called side holds and keeps is the caller's.
		if len(p.writes) > len(d.writes) && welcome.Yield == nil {
			w.t.Fatalf("%s follows %s, which has less: %v, %v", p.name, d.name, p.writes, d.writes)
		}
		for i, id := range p.writes[:min(welcome.Durable, uint64(len(p.writes)))] {
			if id != d.writes[i] && id != hole && (welcome.Yield == nil || !welcome.Yield.All) {
				w.t.Fatalf("%s follows %s although ordinal %d differs", p.name, d.name, i+1)
			}
		}
		if slices.Contains(p.writes, hole) && !welcome.NeedsSync {
			w.t.Fatalf("%s has holes and does not say so", p.name)
		}
	}
	if rapid.IntRange(0, 4).Draw(w.t, "answer lost") == 0 {
		w.c.hangUp(d.side)
		return
	}
	if !ok {
		w.c.deliver(d.side)
		w.remember(d) // on another timeline, perhaps
		w.checkLoss(p, d)
		w.c.hangUp(d.side)
		return
	}
	d.tail = MatchUnknown
	if last := p.identity(welcome.Durable); last != nil {
		d.tail = last.Compare(d.recordAt(last.Ordinal))
	}
	decision := w.c.welcome(d.side, welcome, Delivery{})
	if uint64(len(p.writes)) > p.durable { // it gave way, and its journal was rewound
		p.writes = p.writes[:p.durable]
		p.unshipped, p.shown, p.everything, p.everythingSent = map[uint64]bool{}, nil, false, false
	}
	w.yielded = w.yielded || welcome.Yield != nil
	w.obey(d, decision)
	w.remember(d)
}

// staleHello lets an old Hello arrive. Its stream ends at once: its sender is gone.
func (w *world) staleHello() {
	if len(w.hellos) == 0 {
		w.t.Skip()
	}
	e := rapid.SampledFrom(w.hellos).Draw(w.t, "hello")
	p := w.data[otherName(e.Peer)]
	if w.caller != p {
		w.hangUp() // a new stream replaces the old one
	}
	e.Durable = p.durable
	w.c.step(p.side, e)
	w.c.step(p.side, Disconnected{})
}

// checkLoss: an exact loss is what the old primary holds past what the new one recovered.
func (w *world) checkLoss(now, old *copyOf) {
	l := now.core.Meta.Loss
	if w.rolledBack || w.yielded || now.core.Meta.Yielding() != nil || l == nil || !l.Exact || *l.LostWrites == 0 {
		return
	}
	common := 0
	for common < min(len(now.writes), len(old.writes)) && now.writes[common] == old.writes[common] {
		common++
	}
	if old.core.Meta.Timeline() == "T1" && *l.LostOrdinals != uint64(len(old.writes)-common) {
		w.t.Fatalf("%s says that %d ordinals were lost; %s holds %v, it has %v", now.name, *l.LostOrdinals, old.name,
			old.writes, now.writes)
	}
}

func (w *world) carry() {
	d := w.caller
	if d == nil || !d.core.Meta.Role.Ships() {
		w.t.Skip()
	}
	p := w.peerOf(d)
	var decision Decision
	d.markedAll = false
	switch {
	case !w.syncing && (len(d.unshipped) > 0 || d.everything):
		decision, _ = w.c.step(d.side, MapDirty{At: w.at})
	case w.at+1 < d.retained:
		decision, _ = w.c.step(d.side, CursorLost{Retained: d.retained})
	case w.syncing && (len(d.unshipped) > 0 || d.everything) && rapid.Bool().Draw(w.t, "extent"):
		d.everything, d.everythingSent = false, d.everything || d.everythingSent
		p.place++
		p.horizon, p.shown = d.durable, slices.Clone(d.writes)
		for o := range d.unshipped {
			delete(d.unshipped, o)
			d.sent[o] = true
			if o <= p.durable {
				p.writes[o-1] = d.writes[o-1]
			}
		}
	case w.at < d.durable:
		p.put(d.writes[w.at])
		w.at++
	case w.syncing && len(d.unshipped) == 0 && !d.everything:
		w.c.step(p.side, SyncEndDurable{})
		if rapid.IntRange(0, 3).Draw(w.t, "end lost") == 0 {
			w.hangUp()
			return
		}
		w.syncing = false
		w.ack()
		w.c.step(d.side, SyncAcked{})
	}
	w.obey(d, decision)
}

func (w *world) ack() {
	if w.caller == nil {
		w.t.Skip()
	}
	d := w.caller
	p := w.peerOf(d)
	w.c.step(d.side, Acked{Ordinal: p.durable})
	if len(d.sent) > 0 || d.everythingSent { // they are forgotten
		w.c.step(d.side, Relied{
			Delivery: Delivery{Session: d.core.Meta.Session.Number, Offset: int64(p.place)}, Through: w.syncAt,
		})
		clear(d.sent)
		d.everythingSent = false
	}
}

func (w *world) heartbeat() {
	if w.caller == nil {
		w.t.Skip()
	}
	m := &w.caller.core.Meta
	w.c.step(w.peerOf(w.caller).side, HeartbeatReceived{
		Head: w.caller.durable, Durable: w.caller.durable, Demoted: m.Role == RoleDemoted, FinalOrdinal: m.FinalOrdinal,
	})
}

func (w *world) trim() {
	d := w.pick()
	in := TrimInput{Applied: d.durable, Pressure: rapid.Bool().Draw(w.t, "pressure")}
	for last := uint64(segmentOrdinals); last < d.durable; last += segmentOrdinals {
		if last >= d.retained {
			in.LastOrdinals = append(in.LastOrdinals, last)
		}
	}
	plan := d.core.PlanTrim(in)
	if plan.Release+plan.Fold > len(in.LastOrdinals) {
		w.t.Fatalf("plan %+v of %d segments", plan, len(in.LastOrdinals))
	}
	if plan.Release > 0 {
		last := in.LastOrdinals[plan.Release-1]
		p := w.peerOf(d)
		if d.core.Meta.Role.Ships() && d.core.Meta.Sync != SyncNever && d.core.Meta.Divergence == nil &&
			last > p.durable && !w.rolledBack && p.core.Meta.Timeline() == d.core.Meta.Timeline() {
			w.t.Fatalf("%s released ordinal %d, the peer has %d", d.name, last, p.durable)
		}
		d.releasedAcked, d.retained = max(d.releasedAcked, last), last+1
	}
	if plan.Fold > 0 {
		last := in.LastOrdinals[0]
		for o := d.retained; o <= last; o++ {
			d.unshipped[o] = true
		}
		w.c.step(d.side, Folded{})
		d.retained = last + 1
	}
}

func (w *world) promote() {
	d := w.pick()
	w.timelines++
	id := fmt.Sprintf("T%d", w.timelines)
	force := rapid.Bool().Draw(w.t, "force")
	was, tail := d.core.Meta.Role, w.peerOf(d).durable > d.durable
	if _, err := w.c.step(d.side, Promote{Force: force, Durable: d.durable, Tail: d.last(), NewTimeline: id}); err != nil {
		return
	}
	if was == RoleSecondary {
		// A stream to a side that was promoted is closed.
		w.hangUp()
		if d.core.Meta.Copy == CopyRollingBack {
			w.rolling(d)
		}
		if slices.Contains(d.writes, hole) {
			w.t.Fatalf("%s was promoted with holes: %v", d.name, d.writes)
		}
		// A demotion that was taken back by force on the other side, unheard, is a split; it shows at the next contact.
		if p := w.peerOf(d); !w.rolledBack && !force && tail && p.core.Meta.Role.Ships() &&
			p.core.Meta.Timeline() == d.core.Meta.Timeline() {
			w.t.Fatalf("%s was promoted as planned at %d, %s holds %d", d.name, d.durable, p.name, p.durable)
		}
	}
	if w.caller == d {
		w.hangUp() // a changed timeline ends the stream
	}
	if d.core.Meta.Timeline() == id {
		w.remember(d)
	}
}

// rolling puts a side back to its base, in the steps of a caller; restarts may come between them.
func (w *world) rolling(d *copyOf) {
	if rapid.Bool().Draw(w.t, "restart while rolling back") {
		d.core = New(d.core.Meta)
	}
	w.c.step(d.side, ImagesRestored{})
	d.writes, d.shown, d.horizon = slices.Clone(d.base), nil, d.core.Meta.Base.Horizon
	d.durable = uint64(len(d.writes))
	d.retained, d.releasedAcked = d.durable+1, d.durable
	d.place++
	w.c.step(d.side, RolledBack{})
	clear(d.unshipped)
	clear(d.sent)
	d.everything, d.everythingSent = false, false
}

// identity is the record at an ordinal that a side reports; nil if it is not known.
func (d *copyOf) identity(ordinal uint64) *Tail {
	if ordinal == d.durable {
		return d.last()
	}
	if y := d.core.Meta.Yielding(); y != nil && y.Tail != nil && y.Tail.Ordinal == ordinal {
		return y.Tail
	}
	return nil
}

// yield has a site give way, or go on with it.
func (w *world) yield() {
	d := w.pick()
	was := d.core.Meta.Role
	_, err := w.c.step(d.side, YieldRequest{ID: w.c.draw("Y"), Durable: d.durable, Tail: d.last()})
	y := d.core.Meta.Yielding()
	if err != nil || y == nil || y.Stage != YieldKeeping {
		return
	}
	if d.core.Meta.Role == RoleDemoted && was == RolePrimary && w.caller == d {
		w.hangUp() // it calls no more
	}
	if rapid.IntRange(0, 3).Draw(w.t, "interrupted") == 0 {
		return
	}
	kept := YieldKept{TailBytes: 1}
	if t := d.recordAt(y.Fork); t != nil && t.Ordinal == y.Fork && y.Fork > 0 {
		kept.Tail = t
	}
	if d.retained > y.Fork+1 && (d.releasedAcked > y.Fork || d.core.Meta.Forgotten > y.Fork) {
		kept.All, kept.Reason = true, "not in the journal"
	}
	if slices.Contains(d.writes, hole) && !d.core.Promotable() {
		kept.All, kept.Reason = true, "not one instant"
	}
	w.c.step(d.side, kept)
}

// takeBack has a demoted site be primary again, if its peer agrees on the stream.
func (w *world) takeBack() {
	d := w.caller
	if d == nil || d.core.Meta.Role != RoleDemoted {
		w.t.Skip()
	}
	w.c.step(w.peerOf(d).side, TakeBackReceived{})
	if rapid.IntRange(0, 2).Draw(w.t, "answer lost") == 0 {
		w.hangUp()
		return
	}
	_, _ = w.c.step(d.side, TakenBack{})
}

func (w *world) demote() {
	d := w.pick()
	_, _ = w.c.step(d.side, Demote{Durable: d.durable, Tail: d.last()})
}

func (w *world) restart() {
	d := w.pick()
	w.hangUp()
	d.core = New(d.core.Meta)
	w.c.step(d.side, Opened{Durable: d.durable})
}

// saved is what a site's disk held once.
type saved struct {
	of   *copyOf
	side side
	meta []byte

	writes, shown, base []int
	unshipped           map[uint64]bool
	everything          bool
}

// save keeps what a site's disk holds now.
func (w *world) save() {
	d := w.pick()
	meta, err := json.Marshal(d.core.Meta)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &saved{of: d, side: *d.side, meta: meta, writes: slices.Clone(d.writes), shown: d.shown,
		base:      d.base,
		unshipped: maps.Clone(d.unshipped), everything: d.everything || d.everythingSent}
	maps.Copy(s.unshipped, d.sent)
	w.saved = append(w.saved, s)
}

// rollBack puts a site's disk back to an earlier state.
func (w *world) rollBack() {
	if len(w.saved) == 0 {
		w.t.Skip()
	}
	s := rapid.SampledFrom(w.saved).Draw(w.t, "state")
	w.hangUp()
	w.rolledBack = true
	d := s.of
	var meta Meta
	if err := json.Unmarshal(s.meta, &meta); err != nil {
		w.t.Fatal(err)
	}
	*d.side = s.side
	d.core = New(meta)
	d.shown, d.base, d.wasWhole = s.shown, s.base, false
	d.everything, d.everythingSent = s.everything, false
	w.c.step(d.side, Opened{Durable: d.durable})
	d.writes, d.unshipped, d.sent = slices.Clone(s.writes), maps.Clone(s.unshipped), map[uint64]bool{}
}

// check is doc.go's invariants.
func (w *world) check() {
	// Two secondaries would wait for each other's call forever. A rollback of the primary to the time when it was the
	// secondary makes two, which a person has to resolve.
	if a, b := w.data["a"].core.Meta.Role, w.data["b"].core.Meta.Role; !w.rolledBack && a == RoleSecondary &&
		b == RoleSecondary {
		w.t.Fatalf("the group has no primary")
	}
	for _, d := range w.data {
		p, m := w.peerOf(d), &d.core.Meta
		if err := m.Validate(); err != nil {
			w.t.Fatalf("%s: %v", d.name, err)
		}
		if d.wasWhole = m.Role == RoleSecondary && (d.wasWhole || d.core.Whole()); d.wasWhole && !d.core.Promotable() {
			w.t.Fatalf("%s had a whole copy, and cannot be promoted any more", d.name) // G3
		}
		if d.core.Promotable() {
			opens, timeline := d.writes, m.Timeline()
			if m.Base != nil {
				opens, timeline = d.base, m.Base.Timelines[len(m.Base.Timelines)-1].ID
			}
			histories := w.histories[timeline]
			if !slices.ContainsFunc(histories, func(h []int) bool {
				return len(opens) <= len(h) && slices.Equal(opens, h[:len(opens)])
			}) {
				w.t.Fatalf("%s is promotable with %v, which is no prefix of any of %s's %v", d.name, opens, timeline, histories)
			}
		}
		if l := d.core.Link(); w.caller == d && (l == LinkStreaming || l == LinkSyncing) && m.Divergence != nil {
			w.t.Fatalf("%s ships, and says that the sites diverged: %+v", d.name, m.Divergence)
		}
		if d.core.Acked() > d.durable {
			w.t.Fatalf("%s: acked %d, durable %d", d.name, d.core.Acked(), d.durable)
		}
		if m.Role.Ships() && m.Divergence == nil && d.core.Link() != LinkDown && d.core.Acked() > p.durable &&
			!w.rolledBack {
			w.t.Fatalf("%s: acked %d, the peer has %d", d.name, d.core.Acked(), p.durable)
		}
		if !w.rolledBack && d.core.Writable() && p.core.Writable() && m.Timeline() == p.core.Meta.Timeline() {
			w.t.Fatalf("both sides write on timeline %s", m.Timeline())
		}
	}
}

// TestInterleavings drives two cores through random interleavings of writes, streams, losses of the link, restarts,
// promotions and demotions, and compares with the model after each.
func TestInterleavings(t *testing.T) {
	known, seen := collect(t), newTransitions()
	rapid.Check(t, func(t *rapid.T) { interleave(t, seen, nil) })
	for _, what := range seen.unknown(known) {
		t.Errorf("no script shows this: %s", what)
	}
}

var stepsFlag = flag.Int64("steps", 1e6, "how many steps TestSimulation takes at least")

// TestSimulation is TestInterleavings for many steps.
func TestSimulation(t *testing.T) {
	most := *stepsFlag
	if testing.Short() {
		most = min(most, 50_000)
	}
	known, seen := collect(t), newTransitions()
	began := time.Now()
	stepsTaken.Store(0)
	for stepsTaken.Load() < most && !t.Failed() {
		rapid.Check(t, func(t *rapid.T) { interleave(t, seen, nil) })
	}
	for _, what := range seen.unknown(known) {
		t.Errorf("no script shows this: %s", what)
	}
	t.Logf("%d steps in %v", stepsTaken.Load(), time.Since(began).Round(time.Second/10))
}

// stepsTaken counts what interleave did.
var stepsTaken atomic.Int64

// TestRollbacks is TestInterleavings with disks that are put back to earlier states, at either site and at any moment.
// What may be promoted is a prefix of what a primary wrote all the same, and nothing is shipped to a peer that it does
// not continue.
func TestRollbacks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		interleave(t, newTransitions(), map[string]func(*world){"save": (*world).save, "save2": (*world).save,
			"roll back": (*world).rollBack})
	})
}

func interleave(t *rapid.T, seen *transitions, more map[string]func(*world)) {
	w := newWorld(t)
	w.c.observe = seen.observe
	w.c.loses = func() bool { return rapid.IntRange(0, 4).Draw(w.t, "session lost") == 0 }
	steps := map[string]func(*world){
		"write": (*world).write, "write2": (*world).write, "connect": (*world).connect, "connect2": (*world).connect,
		"carry": (*world).carry, "carry2": (*world).carry, "carry3": (*world).carry, "carry4": (*world).carry,
		"ack": (*world).ack, "heartbeat": (*world).heartbeat, "trim": (*world).trim,
		"promote": (*world).promote, "demote": (*world).demote, "restart": (*world).restart,
		"yield": (*world).yield, "yield2": (*world).yield, "take back": (*world).takeBack,
		"stale hello": (*world).staleHello, "cut": (*world).hangUp, "": (*world).check,
	}
	maps.Copy(steps, more)
	actions := map[string]func(*rapid.T){}
	for name, f := range steps {
		actions[name] = func(t *rapid.T) {
			w.t = t
			f(w)
			if name != "" { // that is the check
				stepsTaken.Add(1)
			}
		}
	}
	t.Repeat(actions)
}
