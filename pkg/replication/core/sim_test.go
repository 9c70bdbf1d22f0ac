package core

import (
	"fmt"
	"slices"
	"strings"
)

// side is one site of a conversation: a core, and the local facts that its caller would know.
type side struct {
	name string
	core *Group
	// durable equals head here: what is not durable does not exist for the core.
	durable, retained, releasedAcked uint64
	// place counts what the journal took, extents too; it never goes back. horizon is the one that the peer sent last.
	place, horizon uint64
	// tail is what comparing the last record of the peer with this side's gives.
	tail     Match
	attached int
	// dirty: the change map holds something.
	dirty bool
	// markedAll: the last step marked everything in it.
	markedAll bool
}

// conversation is two sides and the streams that they opened to each other. It carries out actions as package
// replication does, with ordinals in place of records.
type conversation struct {
	sides map[string]*side
	// answers are what the called side said to Hello and the caller, by its name, has not heard yet.
	answers map[string]Decision
	log     strings.Builder
	// drawn counts identifiers.
	drawn int
	// preserves, if set, is called with a side whose copy is whole and about to become part of a sync. What it returns is
	// the last record there.
	preserves func(*side) *Tail
	// observe, if set, is told of every event, with the state before and after it.
	observe func(e Event, before, after *Meta, err error)
	// loses, if set, says whether the stream breaks before the called side hears of the session.
	loses func() bool
}

func newConversation() *conversation {
	c := &conversation{sides: map[string]*side{}, answers: map[string]Decision{}}
	for _, name := range []string{"a", "b"} {
		c.sides[name] = &side{name: name, retained: 1, tail: MatchSame, core: New(freshMeta(name))}
	}
	return c
}

// freshMeta is a group just created at a, or made at b by a's first Hello.
func freshMeta(name string) Meta {
	m := Meta{
		Version: MetaVersion, GroupID: "g", Name: "shop", Site: name,
		Settings: Settings{Peer: otherName(name), JournalSizeBytes: 1 << 20, JournalFull: PolicyTrack}, Role: RolePrimary,
		Timelines: []Timeline{{ID: "T1"}}, Sync: SyncNever,
		Instance: "i" + name, Copy: CopyWhole,
	}
	if name == "b" {
		m.Role, m.Copy = RoleSecondary, CopyPartial
	}
	return m
}

func otherName(name string) string {
	if name == "a" {
		return "b"
	}
	return "a"
}

func (c *conversation) other(s *side) *side { return c.sides[otherName(s.name)] }

func (c *conversation) printf(format string, args ...any) { fmt.Fprintf(&c.log, format, args...) }

// step feeds a side and logs its effects and its decision; MarkAll is carried out.
func (c *conversation) step(s *side, e Event) (Decision, error) {
	before := s.core.Clone()
	decision, effects, err := s.core.Step(e)
	if c.observe != nil {
		c.observe(e, &before.Meta, &s.core.Meta, err)
	}
	if err != nil {
		c.printf("%s: error: %v\n", s.name, err)
		return nil, err
	}
	s.markedAll = false
	for _, effect := range effects {
		c.printf("%s: %s\n", s.name, typeText(effect))
		if _, ok := effect.(MarkAll); ok {
			s.dirty, s.markedAll = true, true
		}
	}
	if decision != nil {
		c.printf("%s: %s\n", s.name, typeText(decision))
	}
	return decision, nil
}

func typeText(v any) string {
	text := strings.TrimPrefix(fmt.Sprintf("%T%+v", v, v), "core.")
	if w, ok := v.(SendWelcome); ok { // a pointer
		text = text[:strings.Index(text, " Yield:")] + "}"
		if w.Yield != nil {
			text = strings.TrimSuffix(text, "}") + fmt.Sprintf(" Yield:%+v}", *w.Yield)
		}
	}
	return text
}

// call opens a stream from a side and takes Hello to the other. The answer waits for deliver.
func (c *conversation) call(s *side, change func(*HelloReceived)) {
	delete(c.answers, s.name)
	decision, _ := c.step(s, Connected{Durable: s.durable})
	hello, ok := decision.(SendHello)
	if !ok {
		return
	}
	o := c.other(s)
	e := HelloReceived{
		Peer: s.name, GroupID: s.core.Meta.GroupID, Timelines: append([]Timeline(nil), s.core.Meta.Timelines...),
		Term:        s.core.Meta.Term,
		PeerDurable: hello.Durable, Durable: o.durable, Attached: o.attached, Yielding: s.core.Meta.Yielding() != nil,
	}
	if change != nil {
		change(&e)
	}
	c.answers[s.name], _ = c.step(o, e)
}

// deliver takes the answer to the caller, and what an old primary counts back.
func (c *conversation) deliver(s *side) {
	o, answer := c.other(s), c.answers[s.name]
	switch d := answer.(type) {
	case SendWelcome:
		c.welcome(s, d, Delivery{})
	case SendRefusal:
		decision, _ := c.step(s, Refused{
			Reason: d.Reason, Message: d.Message, Fork: d.Fork,
			PeerTimelines: append([]Timeline(nil), o.core.Meta.Timelines...), Durable: s.durable,
			PeerPrimary: o.core.Meta.Role.Ships() && o.core.Meta.Yielding() == nil,
			NewTimeline: c.draw("F"),
		})
		if y := s.core.Meta.Yielding(); y != nil {
			c.tail(s, y.Fork)
		} else if count, ok := decision.(CountTail); ok {
			c.tail(s, count.Fork)
		}
	}
	delete(c.answers, s.name)
}

// welcome takes a Welcome to the caller, and the session that it begins to the other side, before anything is shipped.
func (c *conversation) welcome(s *side, w SendWelcome, relied Delivery) Decision {
	o := c.other(s)
	decision, _ := c.step(s, Welcomed{
		PeerDurable: w.Durable, NeedsSync: w.NeedsSync, Instance: w.Instance,
		PeerSession: o.core.Meta.Session, PeerPlace: Delivery{Offset: int64(o.place)}, PeerTail: s.tail,
		PeerHorizon: o.horizon, Yield: w.Yield,
		Durable: s.durable, Retained: s.retained, ReleasedAcked: s.releasedAcked, Relied: relied,
		NewSession: c.draw("S"), NewTimeline: c.draw("F"),
	})
	if ship, ok := decision.(Ship); ok {
		if c.loses != nil && c.loses() {
			marked := s.markedAll
			c.hangUp(s)
			s.markedAll = marked
			return nil
		}
		c.step(o, SessionReceived{Session: s.core.Meta.Session, Sync: ship.Begin, Base: c.base(o, true, ship.Begin)})
		c.rewind(o)
	}
	return decision
}

// base preserves a side's copy, if the next event needs it.
func (c *conversation) base(s *side, session, sync bool) *Base {
	if !s.core.NeedsBase(session, sync) {
		return nil
	}
	b := &Base{Set: "set", Ordinal: s.durable, Timelines: slices.Clone(s.core.Meta.Timelines), Horizon: s.horizon,
		Members: slices.Clone(s.core.Meta.Members)}
	if c.preserves != nil {
		b.Tail = c.preserves(s)
	}
	return b
}

// rewind empties the journal of a side that has begun to follow the one that it gives way to.
func (c *conversation) rewind(s *side) {
	if y := s.core.Meta.Yield; y != nil && y.Stage == YieldRewinding {
		s.durable, s.retained, s.releasedAcked = y.Fork, y.Fork+1, y.Fork
		s.place++
		c.step(s, Rewound{})
	}
}

// draw returns an identifier that was not used.
func (c *conversation) draw(prefix string) string {
	c.drawn++
	return fmt.Sprintf("%s%d", prefix, c.drawn)
}

// tail counts what a side has past the fork, each ordinal a write of 4096 bytes, one a second, and tells the peer.
func (c *conversation) tail(s *side, fork uint64) {
	timeline := s.core.Meta.Timeline()
	last := max(s.durable, fork)
	n := last - fork
	c.step(s, TailCounted{Fork: fork, Last: last, Writes: n, Bytes: n * 4096})
	c.step(c.other(s), TailReceived{
		Peer: s.name, Timeline: timeline, Fork: fork, Last: last, Writes: n, Bytes: n * 4096,
		FirstUnixNanos: 1e9, LastUnixNanos: int64(n) * 1e9,
	})
}

// hangUp ends the stream that s opened.
func (c *conversation) hangUp(s *side) {
	delete(c.answers, s.name)
	c.step(s, Disconnected{Caller: true})
	c.step(c.other(s), Disconnected{})
}

// inUse names the volumes of the side that are in use.
func (s *side) inUse() (list []string) {
	for i := range s.attached {
		list = append(list, fmt.Sprintf("v%d", i))
	}
	return list
}

// state is one line about a side.
func (s *side) state() string {
	m := &s.core.Meta
	word, reason := s.core.State()
	var timelines []string
	for _, t := range m.Timelines {
		timelines = append(timelines, fmt.Sprintf("%s@%d", t.ID, t.ForkOrdinal))
	}
	line := fmt.Sprintf("%s: %s %s, durable %d, %s", s.name, m.Role.Side(), word, s.durable, strings.Join(timelines, " "))
	if m.Role.Ships() {
		line += fmt.Sprintf(", acked %d, sync %s", s.core.Acked(), m.Sync)
	}
	switch {
	case !s.core.Promotable():
		line += ", NOT PROMOTABLE"
	case m.Base != nil:
		line += fmt.Sprintf(", opens as of %d", m.Base.Ordinal)
	}
	if m.Copy == CopyAwaiting {
		line += ", awaits sync"
	}
	if m.Copy == CopyRollingBack {
		line += fmt.Sprintf(", rolling back, restored %v", m.Base.RollBack.Restored)
	}
	if y := m.Yield; y != nil {
		line += fmt.Sprintf(", yield %s %s of %d to %d", y.ID, y.Stage, y.Fork+1, y.Head)
		if y.All {
			line += fmt.Sprintf(", copies all: %s", y.Reason)
		}
	}
	if y := m.PeerYield; y != nil {
		line += fmt.Sprintf(", peer yield %s done %v", y.ID, y.Done)
	}
	if reason != "" {
		line += "\n     " + reason
	}
	return line + "\n"
}
