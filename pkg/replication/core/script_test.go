package core

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
)

// TestScripts runs testdata/*.txt, the executable specification of the group core. Commands (site, from: a or b):
//
//	sites [peer-has=N]                          a is primary, b its secondary; with peer-has both are in sync up to N
//	facts site=a [durable=N] [retained=N] [released-acked=N] [attached=N] [place=N] [horizon=N] [timelines=(T@F,...)]
//	      [tail=same|different|unknown] [session=N/ID]   tail: the peer's last record compared with this side's
//	connect from=a [as=PEER] [group=ID] [hold]  Hello, answer, and the count of a tail; hold keeps the answer back
//	stale-hello from=a durable=N [term=N] [timelines=(T@F,...)]
//	                                            a Hello of a stream that was cut, which a knows nothing of any more
//	deliver to=a                                the answer that was kept back
//	ack to=a upto=N                             b has everything up to N durable and says so
//	disconnect from=a                           the stream that a opened ends
//	sync-begin | sync-end | sync-acked site=X   a copy that is whole is preserved before a sync begins
//	images-restored | rolled-back site=X        steps of a promotion in the middle of a sync
//	relied site=X place=N                       X is about to forget extents that its peer has, up to a place of this
//	                                            session
//	folded | cursor-lost retained=N | map-dirty at=N   at site=X
//	heartbeat from=a [proves=SECONDS] [head=N] [lag-bytes=N]   proves: by b's clocks, a's head was not read before
//	promote site=X [force] [timeline=ID] [now=SECONDS] [boot=ID]
//	promote-at site=X point=N [timeline=ID] [now=SECONDS]   the images of the point and of what is held are preserved
//	commit | trial-back | held-lost site=X       a promotion to a point is decided; its images are lost
//	demote site=X
//	take-back site=X                            its peer agrees that X is primary again
//	bookmark site=X label=L ordinal=N           its record is durable
//	set site=X [peer=P] [address=A] [journal=N] [stall] [rpo=MILLIS] [rate=N] [from-peer] [close]
//	                                            close ends the stream before
//	lagging site=X millis=N [unknown]
//	restart site=X [remembers]                  the process; what is durable stays, and what it remembers of its peer
//	reinstall site=b                            the copy is gone, an empty one was made
//	trim site=X applied=N [pressure] [stall] last=(N,...)|empty
//	relate mine=(T@F,...) last=N theirs=(T@F,...) their-last=N
//	loss site=X
//	show
//
// Each prints the actions in order and, unless it is a question, both sides' states.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		runScript(t, path, nil)
	})
}

// runScript runs one file. observe, if set, is told of every event in it.
func runScript(t *testing.T, path string, observe func(e Event, before, after *Meta, err error)) {
	c := newConversation()
	datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
		if d.Cmd == "sites" {
			c = newConversation()
		}
		c.observe = observe
		c.log.Reset()
		if c.run(t, d) {
			c.printf("%s%s", c.sides["a"].state(), c.sides["b"].state())
		}
		return c.log.String()
	})
}

type arguments struct {
	t *testing.T
	d *datadriven.TestData
}

func (a arguments) num(key string, def uint64) uint64 {
	a.d.MaybeScanArgs(a.t, key, &def)
	return def
}

func (a arguments) text(key, def string) string {
	a.d.MaybeScanArgs(a.t, key, &def)
	return def
}

// instant is a time on a site's clocks in seconds, of the boot that the argument boot names.
func (a arguments) instant(key string) clocks.Instant {
	if !a.d.HasArg(key) {
		return clocks.Instant{}
	}
	n := int64(a.num(key, 0)) * 1e9
	return clocks.Instant{BootID: a.text("boot", "boot1"), BootNanos: n, RawNanos: n, WallNanos: n}
}

func lossText(l *Loss) string {
	number := func(p *uint64) string {
		if p == nil {
			return "unknown"
		}
		return fmt.Sprint(*p)
	}
	seconds := "unknown"
	if l.LostSeconds != nil {
		seconds = fmt.Sprintf("%.3f", *l.LostSeconds)
	}
	return fmt.Sprintf("loss exact=%v partial=%v recovered=%d ordinals=%s writes=%s bytes=%s seconds=%s: %s",
		l.Exact, l.Partial, l.RecoveredOrdinal, number(l.LostOrdinals), number(l.LostWrites), number(l.LostBytes), seconds,
		l.Text)
}

func (c *conversation) run(t *testing.T, d *datadriven.TestData) (states bool) {
	args := arguments{t, d}
	var s *side
	for _, key := range []string{"site", "from", "to"} {
		if d.HasArg(key) {
			if s = c.sides[args.text(key, "")]; s == nil {
				d.Fatalf(t, "no such site")
			}
		}
	}
	switch d.Cmd {
	case "sites":
		if n := args.num("peer-has", 0); n > 0 {
			for _, s := range c.sides {
				s.durable = n
				s.core.Meta.Sync, s.core.Meta.Copy = SyncDone, CopyWhole
			}
			c.sides["a"].core.Meta.PeerInstance = "ib"
			c.sides["b"].core.Meta.Sync = SyncNever
		}
	case "facts":
		s.durable = args.num("durable", s.durable)
		s.retained = args.num("retained", s.retained)
		s.releasedAcked = args.num("released-acked", s.releasedAcked)
		if list := parseTimelines(d, "timelines"); list != nil {
			s.core.Meta.Timelines = list
		}
		s.attached = int(args.num("attached", uint64(s.attached)))
		s.place, s.horizon = args.num("place", s.place), args.num("horizon", s.horizon)
		for _, m := range []Match{MatchUnknown, MatchSame, MatchDifferent} {
			if args.text("tail", "") == m.String() {
				s.tail = m
			}
		}
		if text := args.text("session", ""); text != "" {
			number, id, _ := strings.Cut(text, "/")
			s.core.Meta.Session = Session{ID: id, Primary: "a"}
			fmt.Sscan(number, &s.core.Meta.Session.Number)
		}
	case "connect":
		c.call(s, func(e *HelloReceived) {
			e.Peer, e.GroupID = args.text("as", e.Peer), args.text("group", e.GroupID)
		})
		if !d.HasArg("hold") {
			c.deliver(s)
		}
	case "stale-hello":
		o := c.other(s)
		timelines := parseTimelines(d, "timelines")
		if timelines == nil {
			timelines = s.core.Meta.Timelines
		}
		c.step(o, HelloReceived{
			Peer: s.name, GroupID: s.core.Meta.GroupID, Timelines: timelines,
			Term:        args.num("term", s.core.Meta.Term),
			PeerDurable: args.num("durable", 0), Durable: o.durable, Attached: o.attached,
		})
	case "deliver":
		c.deliver(s)
	case "ack":
		upTo := args.num("upto", 0)
		c.other(s).durable = upTo
		c.step(s, Acked{Ordinal: upTo})
	case "disconnect":
		c.hangUp(s)
	case "sync-begin":
		c.step(s, SyncBeginReceived{Base: c.base(s, false, true)})
	case "images-restored":
		c.step(s, ImagesRestored{})
	case "rolled-back":
		c.step(s, RolledBack{})
	case "sync-begun":
		c.step(s, SyncBeginDurable{})
	case "sync-end":
		c.step(s, SyncEndDurable{})
	case "sync-acked":
		s.dirty = false
		c.step(s, SyncAcked{})
	case "relied":
		c.step(s, Relied{Delivery: Delivery{Session: s.core.Meta.Session.Number, Offset: int64(args.num("place", 0))}})
	case "folded":
		s.dirty = true
		c.step(s, Folded{})
	case "cursor-lost":
		c.step(s, CursorLost{Retained: args.num("retained", 1)})
	case "map-dirty":
		c.step(s, MapDirty{At: args.num("at", 0)})
	case "heartbeat":
		c.step(c.other(s), HeartbeatReceived{
			Head: args.num("head", s.durable), Durable: s.durable, NotBefore: args.instant("proves"), Local: c.other(s).durable,
			LagBytes: args.num("lag-bytes", 0), Demoted: s.core.Meta.Role == RoleDemoted, FinalOrdinal: s.core.Meta.FinalOrdinal,
		})
	case "promote":
		_, err := c.step(s, Promote{
			Force: d.HasArg("force"), Durable: s.durable, Now: args.instant("now"), NewTimeline: args.text("timeline", "T2"),
		})
		if l := s.core.Meta.Loss; l != nil && err == nil {
			c.printf("%s: %s\n", s.name, lossText(l))
		}
	case "promote-at":
		m := &s.core.Meta
		point := &Base{Set: "point", Ordinal: args.num("point", 0), Timelines: m.Timelines, Members: m.Members}
		held := &Base{Set: "held", Ordinal: s.durable, Timelines: m.Timelines, Members: m.Members}
		_, err := c.step(s, Promote{Durable: s.durable, Now: args.instant("now"), NewTimeline: args.text("timeline", "T2"),
			Point: &AtPoint{Point: point, Held: held, Undone: Undone{Writes: s.durable - point.Ordinal}}})
		if err == nil {
			c.printf("%s: %s\n", s.name, lossText(s.core.Meta.Loss))
		}
	case "commit":
		c.step(s, TrialCommitted{})
	case "trial-back":
		c.step(s, TakeTrialBack{Attached: s.inUse()})
	case "held-lost":
		c.step(s, HeldLost{})
	case "loss":
		c.printf("%s\n", lossText(s.core.Meta.Loss))
		return false
	case "suspend":
		if d.HasArg("close") {
			c.hangUp(s)
		}
		c.step(s, Suspend{Now: int64(args.num("now", 0))})
	case "resume":
		c.step(s, Resume{})
	case "demote":
		c.step(s, Demote{Durable: s.durable, Attached: s.inUse()})
	case "yield":
		c.step(s, YieldRequest{ID: args.text("id", "Y1"), Durable: s.durable, Attached: s.inUse()})
	case "yield-kept":
		kept := YieldKept{All: d.HasArg("all"), Reason: args.text("reason", ""), TailBytes: args.num("bytes", 0)}
		if y := s.core.Meta.Yield; y != nil && !d.HasArg("no-tail") {
			kept.Tail = &Tail{Ordinal: y.Fork, Fingerprint: 1}
		}
		c.step(s, kept)
	case "take-back":
		c.step(c.other(s), TakeBackReceived{})
		c.step(s, TakenBack{})
	case "bookmark":
		c.step(s, Bookmarked{Bookmark{Label: args.text("label", ""), Ordinal: args.num("ordinal", 0)}})
		c.printf("%s: bookmarks %v\n", s.name, s.core.Meta.Bookmarks)
	case "ranges-lost":
		c.step(s, RangesLost{Reason: "lost"})
	case "received":
		c.step(s, Received{Bytes: args.num("bytes", 0)})
	case "set":
		if d.HasArg("close") {
			c.hangUp(s)
		}
		next := s.core.Meta.Settings
		next.Peer, next.PeerAddress = args.text("peer", next.Peer), args.text("address", next.PeerAddress)
		if next.Peer == "none" {
			next.Peer = ""
		}
		next.JournalSizeBytes = int64(args.num("journal", uint64(next.JournalSizeBytes)))
		next.RPOTargetMillis = int64(args.num("rpo", uint64(next.RPOTargetMillis)))
		next.ShipBytesPerSecond = int64(args.num("rate", uint64(next.ShipBytesPerSecond)))
		if d.HasArg("stall") {
			next.JournalFull = PolicyStall
		}
		c.step(s, Configured{Settings: next, FromPeer: d.HasArg("from-peer")})
		c.printf("%s: %+v\n", s.name, s.core.Meta.Settings)
	case "lagging":
		lag := float64(args.num("millis", 0)) / 1e3
		known := &lag
		if d.HasArg("unknown") {
			known = nil
		}
		c.printf("%v\n", s.core.Lagging(known))
		return false
	case "restart":
		remembered := s.core.Remember(s.durable)
		s.core = New(s.core.Meta)
		_, _, _ = s.core.Step(Opened{Durable: s.durable})
		if d.HasArg("remembers") {
			c.printf("%s: recalled %v\n", s.name, s.core.Recall(remembered))
		}
	case "reinstall":
		m := freshMeta("b")
		m.Timelines = append([]Timeline(nil), c.other(s).core.Meta.Timelines...)
		m.Site, m.Peer, m.Instance = s.name, otherName(s.name), "new-"+s.name
		*s = side{name: s.name, retained: 1, tail: MatchSame, core: New(m)}
	case "trim":
		in := TrimInput{Applied: args.num("applied", 0), Pressure: d.HasArg("pressure")}
		if !d.HasArg("empty") {
			d.ScanArgs(t, "last", &in.LastOrdinals)
		}
		g := *s.core
		if d.HasArg("stall") {
			g.Meta.JournalFull = PolicyStall
		}
		c.printf("%+v\n", g.PlanTrim(in))
		return false
	case "relate":
		mine, theirs := parseTimelines(d, "mine"), parseTimelines(d, "theirs")
		myLast, theirLast := args.num("last", 0), args.num("their-last", 0)
		r, common := Relate(mine, myLast, theirs, theirLast)
		mirror, mirrorCommon := Relate(theirs, theirLast, mine, myLast)
		c.printf("%s, common %d (they say: %s, common %d)\n", r, common, mirror, mirrorCommon)
		return false
	case "show":
	default:
		d.Fatalf(t, "unknown command")
	}
	return true
}

func parseTimelines(d *datadriven.TestData, key string) []Timeline {
	var list []Timeline
	for _, arg := range d.CmdArgs {
		if arg.Key != key {
			continue
		}
		for _, v := range arg.Vals {
			id, fork, _ := strings.Cut(v, "@")
			t := Timeline{ID: id}
			fmt.Sscan(fork, &t.ForkOrdinal)
			list = append(list, t)
		}
	}
	return list
}
