package epoch

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs testdata/*.txt, the executable specification of the four types. Each line of a command is an event
// of one of them, by name; each prints its effects and its state. Names: shard N, coordinator N, copy N, collector.
//
//	new shard N [life=L] [config=(V,S...)] [marked=E]     (V is the version; its issuer is the first shard)
//	new coordinator N [run=R]
//	new copy N [life=L] [base] [marks=(E@B...)] [shards=(S...)] [applied=B] [syncing] [whole-from=B] [decision=E]
//	new collector [life=L]
//	shard N ask [round=N] [config=(V,S...)] | prepare epoch=E head=N [life=L] [version=V] | commit epoch=E [life=L] |
//	        abort epoch=E [life=L] | expired epoch=E | acknowledged epoch=E | adopt config=(V,S...) | force lost=(S...)
//	coordinator N configured config=(V,S...) | tick | cut | answer from=N [life=L] [round=N] [last=E] [acked=E]
//	        [config=(V,S...)] | ready from=N [life=L] [epoch=E] [boundary=B] |
//	        committed from=N [life=L] [epoch=E] [acked=E] | refused from=N [life=L] [epoch=E] |
//	        propose [add=(S...)] [remove=(S...)] [alone] | acked
//	copy N gather [attempt=A] [after=E] | grant epoch=E [attempt=A] [life=L] |
//	       decide epoch=E shards=(S...) [without=(S...)]
//	        [attempt=A] [life=L] | settled epoch=E seq=N [attempt=A] [life=L] | mark epoch=E boundary=B [shards=(S...)] |
//	        sync-wanted | sync-cancelled | sync-ended ordinal=N
//	collector collect copies=(S...) [undecided=(S...)] | resign | cancel |
//	        promote [copies=(S...)] [without=(S...)] [found] [at-least=(S@B...)] | missing copy=S |
//	        report from=N [seq=N] [shown=E] [floor=E] [marks=(E@B...)] [shards=(S...)] [more] [settling]
//	        [decision=E] [attempt=A] [life=L] | outdated from=N attempt=A |
//	        decided from=N epoch=E [attempt=A] [life=L] | tick
//
// An epoch is number.run, an attempt number.life, none is 0. Times are milliseconds, at=N, and stay for later lines.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		s := &script{shards: map[ShardID]*Shard{}, coordinators: map[ShardID]*Coordinator{}, copies: map[ShardID]*Copy{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.log.Reset()
			for _, line := range strings.Split(d.Cmd+" "+argText(d)+"\n"+d.Input, "\n") {
				if line = strings.TrimSpace(line); line != "" && line != "run" {
					s.run(t, d, line)
				}
			}
			return s.log.String()
		})
	})
}

func argText(d *datadriven.TestData) string {
	var list []string
	for _, a := range d.CmdArgs {
		list = append(list, a.String())
	}
	return strings.Join(list, " ")
}

type script struct {
	shards       map[ShardID]*Shard
	coordinators map[ShardID]*Coordinator
	copies       map[ShardID]*Copy
	collector    *Collector
	now          time.Duration
	log          strings.Builder
}

// words are the arguments of a line.
type words struct {
	t    *testing.T
	d    *datadriven.TestData
	line string
	key  map[string]string
}

func (w words) has(key string) bool { _, ok := w.key[key]; return ok }

func (w words) num(key string, def uint64) uint64 {
	if text, ok := w.key[key]; ok {
		if _, err := fmt.Sscan(text, &def); err != nil {
			w.d.Fatalf(w.t, "%s: %s is not a number", w.line, key)
		}
	}
	return def
}

// pair is a number and a run, as of an epoch or an attempt.
func (w words) pair(key, def string) (number, run uint64) {
	text, ok := w.key[key]
	if !ok {
		text = def
	}
	if text == "0" {
		return 0, 0
	}
	if _, err := fmt.Sscanf(text, "%d.%d", &number, &run); err != nil {
		w.d.Fatalf(w.t, "%s: %s=%q: %v", w.line, key, text, err)
	}
	return number, run
}

func (w words) epoch(key, def string) ID {
	if def == "" {
		def = "0"
	}
	n, r := w.pair(key, def)
	return ID{n, Life(r)}
}

func (w words) attempt(def string) Attempt {
	n, r := w.pair("attempt", def)
	return Attempt{n, Life(r)}
}

func (w words) list(key string) (list []string) {
	if text := strings.Trim(w.key[key], "()"); text != "" {
		return strings.Split(text, ",")
	}
	return nil
}

func (w words) ids(key string) (list []ShardID) {
	for _, text := range w.list(key) {
		var s ShardID
		if _, err := fmt.Sscan(text, &s); err != nil {
			w.d.Fatalf(w.t, "%s: %s: %v", w.line, key, err)
		}
		list = append(list, s)
	}
	return list
}

func (w words) config(key string) Config {
	list := w.ids(key)
	if len(list) < 2 {
		return Config{}
	}
	return Config{Version: Version{Number: uint64(list[0]), By: list[1]}, Shards: list[1:]}
}

func (w words) marks(shard ShardID) (list []Mark) {
	for _, text := range w.list("marks") {
		epoch, boundary, _ := strings.Cut(text, "@")
		w.key["mark"] = epoch
		m := Mark{Epoch: w.epoch("mark", ""), Shard: shard, Config: Config{Version{1, 0}, w.ids("shards")}}
		if _, err := fmt.Sscan(boundary, &m.Boundary); err != nil {
			w.d.Fatalf(w.t, "%s: %v", w.line, err)
		}
		list = append(list, m)
	}
	return list
}

func (w words) decision() *Decision {
	if !w.has("decision") {
		return nil
	}
	return &Decision{Epoch: w.epoch("decision", "0"), Config: Config{Version{1, 0}, w.ids("shards")}}
}

func (s *script) run(t *testing.T, d *datadriven.TestData, line string) {
	fields := strings.Fields(line)
	w := words{t: t, d: d, line: line, key: map[string]string{}}
	var plain []string
	for _, f := range fields {
		if key, value, ok := strings.Cut(f, "="); ok {
			w.key[key] = value
		} else {
			plain = append(plain, f)
			w.key[f] = ""
		}
	}
	if plain[0] == "new" {
		s.create(w, plain[1:])
		return
	}
	s.now = time.Duration(w.num("at", uint64(s.now/time.Millisecond))) * time.Millisecond
	var id ShardID
	if plain[0] != "collector" {
		if _, err := fmt.Sscan(plain[1], &id); err != nil {
			d.Fatalf(t, "%s: %v", line, err)
		}
		plain = plain[1:]
	}
	switch fields[0] {
	case "shard":
		s.shard(w, s.shards[id], plain[1])
	case "coordinator":
		s.coordinate(w, s.coordinators[id], plain[1])
	case "copy":
		s.copy(w, s.copies[id], plain[1])
	case "collector":
		s.collect(w, plain[1])
	default:
		d.Fatalf(t, "%s: unknown", line)
	}
}

func (s *script) create(w words, plain []string) {
	var id ShardID
	if len(plain) > 1 {
		_, _ = fmt.Sscan(plain[1], &id)
	}
	switch plain[0] {
	case "shard":
		s.shards[id] = NewShard(id, Life(w.num("life", 1)), w.config("config"), w.epoch("marked", "0"))
		s.shardState(s.shards[id])
	case "coordinator":
		s.coordinators[id] = NewCoordinator(id, Life(w.num("run", 1)), DefaultTiming())
	case "copy":
		start := CopyStart{Marks: w.marks(id), Applied: w.num("applied", 0), Syncing: w.has("syncing"),
			WholeFrom: w.num("whole-from", 0), Decision: w.decision()}
		if w.has("base") { // the first mark
			start.Base, start.Marks = &start.Marks[0], start.Marks[1:]
		}
		s.copies[id] = NewCopy(id, Life(w.num("life", 1)), start)
		s.copyState(s.copies[id])
	case "collector":
		s.collector = NewCollector(Life(w.num("life", 1)), DefaultTiming())
	default:
		w.d.Fatalf(w.t, "%s: unknown", w.line)
	}
}

func (s *script) effects(effects []Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case Send:
			fmt.Fprintf(&s.log, "  to %d: %s\n", e.To, typed(e.Message))
		case Reply:
			fmt.Fprintf(&s.log, "  reply %s\n", typed(e.Message))
		default:
			fmt.Fprintf(&s.log, "  %s\n", typed(e))
		}
	}
}

func typed(v any) string {
	if r, ok := v.(Report); ok {
		decision := "none"
		if r.Decision != nil {
			decision = r.Decision.Epoch.String()
		}
		r.Decision = nil
		return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T%+v", r, r), "epoch."), "<nil>}") + decision + "}"
	}
	return strings.TrimPrefix(fmt.Sprintf("%T%+v", v, v), "epoch.")
}

func (s *script) shardState(x *Shard) {
	state, epoch := x.State()
	fmt.Fprintf(&s.log, "shard %d: %s %s, last marked %s, config %s %v\n", x.ID(), state, epoch, x.Marked(),
		x.Config().Version, x.Config().Shards)
}

func (s *script) shard(w words, x *Shard, what string) {
	life, epoch := Life(w.num("life", 1)), w.epoch("epoch", "0")
	var e ShardEvent
	switch what {
	case "ask":
		e = AskReceived{Ask{Round: w.num("round", 1), Config: w.config("config")}}
	case "prepare":
		e = PrepareReceived{Prepare: Prepare{epoch, life, Version{w.num("version", 1), 0}}, Head: w.num("head", 0)}
	case "commit":
		e = CommitReceived{Commit{epoch, life}}
	case "abort":
		e = AbortReceived{Abort{epoch, life}}
	case "expired":
		e = HoldExpired{epoch}
	case "acknowledged":
		e = MarkAcknowledged{epoch}
	case "adopt":
		e = Adopt{w.config("config")}
	case "force":
		fmt.Fprintf(&s.log, "%+v\n", x.Force(w.ids("lost")))
		return
	default:
		w.d.Fatalf(w.t, "%s: unknown", w.line)
	}
	s.effects(x.Step(e))
	s.shardState(x)
}

func (s *script) coordinate(w words, c *Coordinator, what string) {
	from, life, epoch := ShardID(w.num("from", 0)), Life(w.num("life", 1)), c.epoch
	if w.has("epoch") {
		epoch = w.epoch("epoch", "0")
	}
	var e CoordinatorEvent
	switch what {
	case "configured":
		e = Configured{w.config("config")}
	case "tick":
		e = Tick{}
	case "cut":
		e = CutNow{}
	case "answer":
		config := c.config
		if w.has("config") {
			config = w.config("config")
		}
		e = AnswerReceived{from, Answer{Round: w.num("round", c.round), Life: life, Last: w.epoch("last", "0"),
			Config: config, Acked: w.epoch("acked", "0")}}
	case "ready":
		e = ReadyReceived{from, Ready{epoch, life, w.num("boundary", 0)}}
	case "committed":
		e = CommittedReceived{from, Committed{epoch, life, w.epoch("acked", "0")}}
	case "refused":
		e = RefusedReceived{from, Refused{epoch, life, RefusedOld}}
	case "propose":
		config, err := c.Propose(w.ids("add"), w.ids("remove"), w.has("alone"))
		fmt.Fprintf(&s.log, "%+v %v\n", config, err)
		return
	case "acked":
		slowest, acked, ok := c.Acked()
		fmt.Fprintf(&s.log, "slowest shard %d, epoch %s, known %v\n", slowest, acked, ok)
		return
	default:
		w.d.Fatalf(w.t, "%s: unknown", w.line)
	}
	s.effects(c.Step(s.now, e))
	fmt.Fprintf(&s.log, "coordinator %d: %s", c.self, c.State())
	if at, ok := c.Wake(); ok {
		fmt.Fprintf(&s.log, ", wakes at %d ms", at.Milliseconds())
	}
	s.log.WriteString("\n")
}

func (s *script) copyState(c *Copy) {
	newest, _ := c.Newest()
	fmt.Fprintf(&s.log, "copy %d: %s, shows %s, floor %s, newest %s\n", c.id, c.State(), c.shown, c.floor, newest.Epoch)
}

func (s *script) copy(w words, c *Copy, what string) {
	life, epoch := Life(w.num("life", uint64(c.life))), w.epoch("epoch", "0")
	attempt := c.promised
	if w.has("attempt") {
		attempt = w.attempt("0")
	}
	var e CopyEvent
	switch what {
	case "gather":
		e = GatherReceived{Gather{Attempt: attempt, After: w.epoch("after", "0")}}
	case "grant":
		e = GrantReceived{Grant{attempt, life, epoch}}
	case "decide":
		e = DecideReceived{Decide{attempt, life, Decision{epoch, Config{Version{1, 0}, w.ids("shards")},
			w.ids("without")}}}
	case "settled":
		e = SettledReceived{Settled{attempt, life, w.num("seq", 0), epoch}}
	case "mark":
		e = MarkDurable{Mark{epoch, c.id, Config{Version{1, 0}, w.ids("shards")}, w.num("boundary", 0)}}
	case "sync-wanted":
		e = SyncWanted{}
	case "sync-cancelled":
		e = SyncCancelled{}
	case "sync-ended":
		e = SyncEnded{w.num("ordinal", 0)}
	default:
		w.d.Fatalf(w.t, "%s: unknown", w.line)
	}
	s.effects(c.Step(e))
	s.copyState(c)
}

func (s *script) collect(w words, what string) {
	c := s.collector
	from, life, attempt := ShardID(w.num("from", 0)), Life(w.num("life", 1)), c.attempt
	if w.has("attempt") {
		attempt = w.attempt("0")
	}
	var e CollectorEvent
	switch what {
	case "collect":
		e = Collect{w.ids("copies"), w.ids("undecided")}
	case "resign":
		e = Resign{}
	case "cancel":
		e = PromoteCancelled{}
	case "tick":
		e = Tick{}
	case "promote":
		p := PromoteWanted{Copies: w.ids("copies"), Without: w.ids("without"), Found: w.has("found")}
		for _, text := range w.list("at-least") {
			var s ShardID
			var ordinal uint64
			if _, err := fmt.Sscanf(text, "%d@%d", &s, &ordinal); err != nil {
				w.d.Fatalf(w.t, "%s: %v", w.line, err)
			}
			if p.AtLeast == nil {
				p.AtLeast = map[ShardID]uint64{}
			}
			p.AtLeast[s] = ordinal
		}
		e = p
	case "missing":
		e = CopyMissing{ShardID(w.num("copy", 0))}
	case "report":
		e = ReportReceived{from, Report{Attempt: attempt, Life: life, Seq: w.num("seq", 1), After: w.epoch("after", "0"),
			Shown: w.epoch("shown", "0"),
			Floor: w.epoch("floor", w.key["shown"]), Marks: w.marks(from), More: w.has("more"),
			Settling: w.has("settling"), Decision: w.decision()}}
	case "outdated":
		e = OutdatedReceived{from, Outdated{attempt}}
	case "decided":
		e = DecidedReceived{from, Decided{attempt, life, w.epoch("epoch", "0")}}
	default:
		w.d.Fatalf(w.t, "%s: unknown", w.line)
	}
	s.effects(c.Step(s.now, e))
	fmt.Fprintf(&s.log, "collector: %s, attempt %d.%d, granted %s, waits for %v", c.State(), c.attempt.Number,
		c.attempt.Run, c.granted, c.Missing())
	if c.decision != nil {
		fmt.Fprintf(&s.log, ", decision %s", c.decision.Epoch)
	} else if c.MayPromote() {
		s.log.WriteString(", may have decided")
	}
	s.log.WriteString("\n")
}
