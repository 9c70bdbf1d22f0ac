package core

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// copyOf is what a side really holds: of each ordinal the write that took it, or hole where a sync has still to bring it.
type copyOf struct {
	*side
	writes []int
	// unshipped are ordinals in the change map; sent are those on their way, which count as in the map until the end.
	unshipped, sent map[uint64]bool
}

const hole = 0

// world is a naive model: two cores, what their sites really hold, and at most one stream that carries data.
type world struct {
	t    *rapid.T
	c    *conversation
	data map[string]*copyOf
	// histories is, for each timeline, everything that its primary ever wrote on it.
	histories map[string][]int
	lastWrite int
	timelines int

	// hellos are all that were ever sent: an old one may arrive when its stream is gone.
	hellos []HelloReceived

	// The stream that ships, opened by caller; nil without one.
	caller  *copyOf
	at      uint64
	syncing bool
}

const segmentOrdinals = 3

func newWorld(t *rapid.T) *world {
	w := &world{t: t, c: newConversation(), data: map[string]*copyOf{}, histories: map[string][]int{"T1": nil}, timelines: 1}
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
	d.durable = uint64(len(d.writes))
}

func (w *world) write() {
	d := w.pick()
	if !d.core.Writable() {
		w.t.Skip()
	}
	w.lastWrite++
	d.put(w.lastWrite)
	w.histories[d.core.Meta.Timeline()] = slices.Clone(d.writes)
}

// ship obeys a Ship action, after checking that the peer will get everything: what it lacks up to After is in the map.
func (w *world) ship(d *copyOf, a Ship) {
	p := w.peerOf(d)
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
	} else {
		w.c.step(p.side, SyncBeginReceived{})
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
		}
		w.syncing = true
	}
	w.caller, w.at, w.syncing = d, a.After, a.Begin
}

func (w *world) obey(d *copyOf, actions []Action) {
	if _, ok := find[MarkAll](actions); ok {
		d.unshipped = map[uint64]bool{}
		for o := uint64(1); o <= d.durable; o++ {
			d.unshipped[o] = true
		}
	}
	if ship, ok := find[Ship](actions); ok {
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
	w.c.hangUp(d.side)
}

func (w *world) connect() {
	d := w.pick()
	if w.caller != nil {
		w.hangUp()
	}
	p := w.peerOf(d)
	w.c.call(d.side, func(e *HelloReceived) { w.hellos = append(w.hellos, *e) })
	welcome, ok := find[SendWelcome](w.c.answers[d.name])
	if ok {
		// G6: what the called side holds and keeps is the caller's.
		if len(p.writes) > len(d.writes) {
			w.t.Fatalf("%s follows %s, which has less: %v, %v", p.name, d.name, p.writes, d.writes)
		}
		for i, id := range p.writes {
			if id != d.writes[i] && id != hole {
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
		w.checkLoss(p, d)
		w.c.hangUp(d.side)
		return
	}
	actions, _ := w.c.step(d.side, Welcomed{
		PeerDurable: welcome.Durable, NeedsSync: welcome.NeedsSync, Instance: welcome.Instance,
		Durable: d.durable, Retained: d.retained, ReleasedAcked: d.releasedAcked,
	})
	w.obey(d, actions)
}

// staleHello lets an old Hello arrive. Its stream ends at once: whoever sent it is gone.
func (w *world) staleHello() {
	if len(w.hellos) == 0 {
		w.t.Skip()
	}
	w.hangUp() // a new stream replaces the old one
	e := rapid.SampledFrom(w.hellos).Draw(w.t, "hello")
	p := w.data[otherName(e.Peer)]
	e.Durable = p.durable
	w.c.step(p.side, e)
	w.c.step(p.side, Disconnected{})
}

// checkLoss: an exact loss is what the old primary holds past what the new one recovered.
func (w *world) checkLoss(now, old *copyOf) {
	l := now.core.Meta.Loss
	if l == nil || !l.Exact || *l.LostWrites == 0 {
		return
	}
	common := 0
	for common < min(len(now.writes), len(old.writes)) && now.writes[common] == old.writes[common] {
		common++
	}
	if old.core.Meta.Timeline() == "T1" && *l.LostOrdinals != uint64(len(old.writes)-common) {
		w.t.Fatalf("%s says that %d ordinals were lost; %s holds %v, it has %v", now.name, *l.LostOrdinals, old.name, old.writes, now.writes)
	}
}

func (w *world) carry() {
	d := w.caller
	if d == nil || d.core.Meta.Role != RolePrimary {
		w.t.Skip()
	}
	p := w.peerOf(d)
	var actions []Action
	switch {
	case !w.syncing && len(d.unshipped) > 0:
		actions, _ = w.c.step(d.side, MapDirty{At: w.at})
	case w.at+1 < d.retained:
		actions, _ = w.c.step(d.side, CursorLost{Retained: d.retained})
	case w.syncing && len(d.unshipped) > 0 && rapid.Bool().Draw(w.t, "extent"):
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
	case w.syncing && len(d.unshipped) == 0:
		w.c.step(p.side, SyncEndDurable{})
		if rapid.IntRange(0, 3).Draw(w.t, "end lost") == 0 {
			w.hangUp()
			return
		}
		w.syncing = false
		w.c.step(d.side, Acked{Ordinal: p.durable})
		clear(d.sent)
		w.c.step(d.side, SyncAcked{})
	}
	w.obey(d, actions)
}

func (w *world) ack() {
	if w.caller == nil {
		w.t.Skip()
	}
	w.c.step(w.caller.side, Acked{Ordinal: w.peerOf(w.caller).durable})
}

func (w *world) heartbeat() {
	if w.caller == nil {
		w.t.Skip()
	}
	m := &w.caller.core.Meta
	w.c.step(w.peerOf(w.caller).side, HeartbeatReceived{
		Head: w.caller.durable, Durable: w.caller.durable, Demoted: m.Demoted, FinalOrdinal: m.FinalOrdinal,
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
		if d.core.Meta.Role == RolePrimary && d.core.Meta.Sync != SyncNever && d.core.Meta.Divergence == nil && last > p.durable {
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
	if _, err := w.c.step(d.side, Promote{Force: force, Durable: d.durable, NewTimeline: id}); err != nil {
		return
	}
	if was == RoleSecondary {
		// A stream to a side that was promoted is closed.
		w.hangUp()
		if slices.Contains(d.writes, hole) {
			w.t.Fatalf("%s was promoted with holes: %v", d.name, d.writes)
		}
		// A demotion that was taken back by force on the other side, unheard, is a split; it shows at the next contact.
		if p := w.peerOf(d); !force && tail && p.core.Meta.Role == RolePrimary && p.core.Meta.Timeline() == d.core.Meta.Timeline() {
			w.t.Fatalf("%s was promoted as planned at %d, %s holds %d", d.name, d.durable, p.name, p.durable)
		}
	}
	if w.caller == d {
		w.hangUp() // a changed timeline ends the stream
	}
	if d.core.Meta.Timeline() == id {
		w.histories[id] = slices.Clone(d.writes)
	}
}

func (w *world) demote() {
	d := w.pick()
	_, _ = w.c.step(d.side, Demote{Durable: d.durable, Attached: 0})
}

func (w *world) restart() {
	d := w.pick()
	w.hangUp()
	d.core = New(d.core.Meta)
}

// check is doc.go's invariants.
func (w *world) check() {
	// Two secondaries would wait for each other's call for ever.
	if a, b := w.data["a"].core.Meta.Role, w.data["b"].core.Meta.Role; a == RoleSecondary && b == RoleSecondary {
		w.t.Fatalf("the group has no primary")
	}
	for _, d := range w.data {
		p, m := w.peerOf(d), &d.core.Meta
		if err := m.Validate(); err != nil {
			w.t.Fatalf("%s: %v", d.name, err)
		}
		if d.core.Promotable() {
			h := w.histories[m.Timeline()]
			if len(d.writes) > len(h) || !slices.Equal(d.writes, h[:len(d.writes)]) {
				w.t.Fatalf("%s is promotable with %v, which is no prefix of %s's %v", d.name, d.writes, m.Timeline(), h)
			}
		}
		if d.core.Acked() > d.durable {
			w.t.Fatalf("%s: acked %d, durable %d", d.name, d.core.Acked(), d.durable)
		}
		if m.Role == RolePrimary && m.Divergence == nil && d.core.Link() != LinkDown && d.core.Acked() > p.durable {
			w.t.Fatalf("%s: acked %d, the peer has %d", d.name, d.core.Acked(), p.durable)
		}
		if d.core.Writable() && p.core.Writable() && m.Timeline() == p.core.Meta.Timeline() {
			w.t.Fatalf("both sides write on timeline %s", m.Timeline())
		}
	}
}

// TestInterleavings drives two cores through random interleavings of writes, streams, losses of the link, restarts,
// promotions and demotions, and compares with the model after each.
func TestInterleavings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		with := func(f func(*world)) func(*rapid.T) {
			return func(t *rapid.T) { w.t = t; f(w) }
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": with((*world).write), "write2": with((*world).write), "connect": with((*world).connect),
			"carry": with((*world).carry), "carry2": with((*world).carry), "carry3": with((*world).carry), "carry4": with((*world).carry),
			"ack": with((*world).ack), "heartbeat": with((*world).heartbeat), "trim": with((*world).trim),
			"promote": with((*world).promote), "demote": with((*world).demote), "restart": with((*world).restart),
			"stale hello": with((*world).staleHello),
			"cut":         with(func(w *world) { w.hangUp() }),
			"":            with((*world).check),
		})
	})
}
