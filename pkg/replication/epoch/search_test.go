package epoch

import (
	"cmp"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"
)

var searchDeep = flag.Bool("epoch.deep", false, "search larger state spaces: minutes")

// model is a state of a small world. Its successors are all that can happen next.
type model interface {
	// key is the same for states that cannot be told apart.
	key() []byte
	// next calls yield with a clone after each thing that can happen.
	next(yield func(what string, m model))
	// broken says what is wrong in this state.
	broken() error
}

// reached is a state with the way to it.
type reached struct {
	m    model
	what string
	from *reached
}

// search visits every reachable state. It fails the test at one that is broken, with the steps that lead to it.
func search(t *testing.T, name string, start model) {
	t.Helper()
	begun, seed := time.Now(), maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Bytes(seed, start.key()): {}}
	stack := []*reached{{m: start}}
	for len(stack) > 0 {
		r := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		r.m.next(func(what string, m model) {
			h := maphash.Bytes(seed, m.key())
			if _, ok := seen[h]; ok || t.Failed() {
				return
			}
			seen[h] = struct{}{}
			n := &reached{m: m, what: what, from: r}
			if err := m.broken(); err != nil {
				t.Errorf("%s, state %d: %v\n%s", name, len(seen), err, n.path())
				return
			}
			stack = append(stack, n)
		})
		r.m = nil
		if t.Failed() {
			return
		}
	}
	t.Logf("%s: %d states in %s", name, len(seen), time.Since(begun).Round(time.Millisecond))
}

func (r *reached) path() string {
	var steps []string
	for ; r.from != nil; r = r.from {
		steps = append(steps, r.what)
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n")
}

// packet is a message on its way.
type packet struct {
	from, to int
	m        Message
	text     string
	number   uint32 // of this text
}

// mail gives equal packets one number.
type mail struct{ packets map[string]packet }

func (l *mail) packet(from, to int, m Message) packet {
	text := fmt.Sprintf("%d to %d: %T%+v", from, to, m, m)
	if r, ok := m.(Report); ok && r.Decision != nil { // a pointer
		decision := *r.Decision
		r.Decision = nil
		text = fmt.Sprintf("%d to %d: %+v %+v", from, to, r, decision)
	}
	p, ok := l.packets[text]
	if !ok {
		p = packet{from, to, m, text, uint32(len(l.packets))}
		l.packets[text] = p
	}
	return p
}

func comparePackets(a, b packet) int { return cmp.Compare(a.number, b.number) }

// appendNumbers adds packets to a key.
func appendNumbers(b []byte, list []packet) []byte {
	for _, p := range list {
		b = binary.LittleEndian.AppendUint32(b, p.number)
	}
	return append(b, '|')
}

// TestSearchCuts visits all states of one coordinator with two and three shards, while writes that each know of
// everything acknowledged so far come in anywhere. The network keeps every message as long as it can matter: each may
// arrive never, once or often, at any time, in any order. A shard crashes once, with and without power.
func TestSearchCuts(t *testing.T) {
	// Timers count what may run out: epochs that are begun or given up, rounds of questions.
	search(t, "two shards, 2 writes, 1 timer, no crash", newCutModel(2, 2, 1, 0))
	search(t, "two shards, 2 writes, no timer, 1 crash", newCutModel(2, 2, 0, 1))
	search(t, "three shards, 2 writes, no timer, no crash", newCutModel(3, 2, 0, 0))
	if *searchDeep {
		search(t, "two shards, 2 writes, 1 timer, 1 crash", newCutModel(2, 2, 1, 1))
		search(t, "three shards, 2 writes, no timer, 1 crash", newCutModel(3, 2, 0, 1))
	}
}

type cutShard struct {
	core   *Shard
	writes [][3]int // causes of each write and all before: acknowledged writes of each shard
	marks  []Mark
	acked  int
	limit  int // the boundary while it holds; -1 else
}

type cutModel struct {
	shards                  []cutShard
	coord                   *Coordinator
	net                     []packet // sorted, each once
	mail                    *mail
	writes, timers, crashes int
	lives                   Life
}

func newCutModel(shards, writes, timers, crashes int) *cutModel {
	m := &cutModel{mail: &mail{map[string]packet{}}, writes: writes, timers: timers, crashes: crashes, lives: 1}
	config := Found(0)
	for i := range shards - 1 {
		config.Shards = append(config.Shards, ShardID(i+1))
	}
	for i := range shards {
		m.lives++
		m.shards = append(m.shards, cutShard{core: NewShard(ShardID(i), m.lives, config, ID{}), limit: -1})
	}
	m.coord = NewCoordinator(0, 1, DefaultTiming())
	m.coordinate(Configured{config})
	for len(m.net) > 0 { // the first questions and answers
		p := m.net[0]
		m.net = m.net[1:]
		if m.coord.State() != CoordinatorAsking {
			m.net = slices.Insert(m.net, 0, p)
			break
		}
		m.deliver(p)
	}
	return m
}

func (m *cutModel) clone() *cutModel {
	c := *m
	c.coord, c.net, c.shards = m.coord.Clone(), slices.Clone(m.net), slices.Clone(m.shards)
	for i := range c.shards {
		s := &c.shards[i]
		s.core, s.writes, s.marks = s.core.Clone(), slices.Clone(s.writes), slices.Clone(s.marks)
	}
	return &c
}

func (m *cutModel) key() []byte {
	b := appendNumbers(make([]byte, 0, 1024), m.net)
	b = fmt.Appendf(b, "%v %d %d %d %d", *m.coord, m.writes, m.timers, m.crashes, m.lives)
	for _, s := range m.shards {
		b = fmt.Appendf(b, "|%v %v %v %d %d", *s.core, s.writes, s.marks, s.acked, s.limit)
	}
	return b
}

func (m *cutModel) put(p packet) {
	if i, ok := slices.BinarySearchFunc(m.net, p, comparePackets); !ok {
		m.net = slices.Insert(m.net, i, p)
	}
}

// coordinate gives an event to the coordinator. Time does not pass: a timer runs out when the model says so.
func (m *cutModel) coordinate(e CoordinatorEvent) {
	for _, effect := range m.coord.Step(0, e) {
		if send, ok := effect.(Send); ok {
			m.put(m.mail.packet(-1, int(send.To), send.Message))
		}
	}
	m.coord.begun, m.coord.next, m.coord.resend = 0, 0, 0
}

func (m *cutModel) shard(i int, e ShardEvent) {
	s := &m.shards[i]
	for _, effect := range s.core.Step(e) {
		switch effect := effect.(type) {
		case Hold:
			s.limit = int(effect.Boundary)
		case Release:
			s.limit, s.acked = -1, len(s.writes)
		case AppendMark:
			s.marks = append(s.marks, effect.Mark)
		case Reply:
			m.put(m.mail.packet(i, -1, effect.Message))
		}
	}
}

func (m *cutModel) deliver(p packet) {
	if p.to < 0 {
		from := ShardID(p.from)
		switch a := p.m.(type) {
		case Answer:
			m.coordinate(AnswerReceived{from, a})
		case Ready:
			m.coordinate(ReadyReceived{from, a})
		case Committed:
			m.coordinate(CommittedReceived{from, a})
		case Refused:
			m.coordinate(RefusedReceived{from, a})
		}
		return
	}
	switch a := p.m.(type) {
	case Ask:
		m.shard(p.to, AskReceived{a})
	case Prepare:
		m.shard(p.to, PrepareReceived{Prepare: a, Head: uint64(len(m.shards[p.to].writes))})
	case Commit:
		m.shard(p.to, CommitReceived{a})
	case Abort:
		m.shard(p.to, AbortReceived{a})
	}
}

func (m *cutModel) next(yield func(string, model)) {
	do := func(what string, change func(c *cutModel)) {
		c := m.clone()
		change(c)
		c.net = slices.DeleteFunc(c.net, c.stale)
		yield(what, c)
	}
	for _, p := range m.net {
		do(p.text, func(c *cutModel) { c.deliver(p) })
	}
	if m.timers > 0 {
		do("the coordinator's timer runs out", func(c *cutModel) { c.timers--; c.coordinate(Tick{}) })
	}
	for i := range m.shards {
		if state, epoch := m.shards[i].core.State(); state == ShardHolding {
			do(fmt.Sprintf("the hold of shard %d expires", i), func(c *cutModel) { c.shard(i, HoldExpired{epoch}) })
		}
		if m.writes > 0 {
			do(fmt.Sprintf("write on shard %d", i), func(c *cutModel) { c.writes--; c.write(i) })
		}
		if m.crashes > 0 {
			do(fmt.Sprintf("shard %d crashes", i), func(c *cutModel) { c.crashes--; c.crash(i, false) })
			do(fmt.Sprintf("shard %d loses power", i), func(c *cutModel) { c.crashes--; c.crash(i, true) })
		}
	}
}

// stale reports whether a packet is about an epoch, or a round of questions, that the coordinator will never return to.
// Without those the states are fewer by far.
func (m *cutModel) stale(p packet) bool {
	c := m.coord
	switch a := p.m.(type) {
	case Ask:
		return a.Round != c.round || c.state != CoordinatorAsking
	case Answer:
		return a.Round != c.round || c.state != CoordinatorAsking
	case Ready:
		return a.Epoch != c.epoch || c.state != CoordinatorPreparing
	case Committed:
		return a.Epoch != c.epoch || c.state != CoordinatorCommitting
	case Refused:
		return a.Epoch != c.epoch || !c.cutting()
	}
	return false
}

// write appends a write that knows of everything that is acknowledged. It is acknowledged as soon as that is allowed:
// what is acknowledged later causes less.
func (m *cutModel) write(i int) {
	s := &m.shards[i]
	var causes [3]int
	for j := range m.shards {
		causes[j] = m.shards[j].acked
	}
	if n := len(s.writes); n > 0 {
		for j, v := range s.writes[n-1] {
			causes[j] = max(causes[j], v)
		}
	}
	s.writes = append(s.writes, causes)
	if s.limit < 0 {
		s.acked = len(s.writes)
	}
}

// crash restarts a shard's process, the coordinator's too if it is there. Without power what is behind the last
// acknowledged write is gone, the mark too.
func (m *cutModel) crash(i int, power bool) {
	s := &m.shards[i]
	if power {
		s.writes = s.writes[:s.acked]
		if n := len(s.marks); n > 0 && s.marks[n-1].Boundary >= uint64(s.acked) {
			s.marks = s.marks[:n-1]
		}
	}
	s.limit, s.acked = -1, len(s.writes)
	var last ID
	if n := len(s.marks); n > 0 {
		last = s.marks[n-1].Epoch
	}
	m.lives++
	config := s.core.Config()
	s.core = NewShard(ShardID(i), m.lives, config, last)
	if i == 0 {
		m.lives++
		m.coord = NewCoordinator(0, m.lives, DefaultTiming())
		m.coordinate(Configured{config})
	}
}

// broken: an epoch whose mark every shard has, and that is not one instant.
func (m *cutModel) broken() error {
	for _, first := range m.shards[0].marks {
		at := []int{int(first.Boundary)}
		for _, s := range m.shards[1:] {
			i := slices.IndexFunc(s.marks, func(x Mark) bool { return x.Epoch == first.Epoch })
			if i < 0 {
				break
			}
			at = append(at, int(s.marks[i].Boundary))
		}
		if len(at) < len(m.shards) {
			continue
		}
		for i, s := range m.shards {
			if at[i] == 0 {
				continue
			}
			for j, cause := range s.writes[at[i]-1] {
				if j < len(at) && cause > at[j] {
					return fmt.Errorf("epoch %s at %v: write %d of shard %d is there, its cause, write %d of shard %d, is not",
						first.Epoch, at, at[i], i, cause, j)
				}
			}
		}
	}
	return nil
}
