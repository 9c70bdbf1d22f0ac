package replication

import (
	"math"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

func timelinesToWire(list []core.Timeline) []*linkpb.Timeline {
	wire := make([]*linkpb.Timeline, len(list))
	for i, t := range list {
		wire[i] = &linkpb.Timeline{Id: t.ID, ForkOrdinal: t.ForkOrdinal, ForkedUnixNanos: t.ForkedUnixNanos}
	}
	return wire
}

func timelinesFromWire(wire []*linkpb.Timeline) []core.Timeline {
	list := make([]core.Timeline, len(wire))
	for i, t := range wire {
		list[i] = core.Timeline{ID: t.GetId(), ForkOrdinal: t.GetForkOrdinal(), ForkedUnixNanos: t.GetForkedUnixNanos()}
	}
	return list
}

// settingsFromWire are the settings that a copy takes over from its primary.
func settingsFromWire(hello *linkpb.Hello) core.Settings {
	return core.Settings{
		JournalSizeBytes: hello.JournalSizeBytes, RPOTargetMillis: hello.RpoTargetMillis,
		HistoryMillis: hello.HistoryMillis, HistoryBytes: hello.HistoryBytes, Shard: shardFromWire(hello.Shard),
	}
}

func sessionToWire(s core.Session) *linkpb.Session {
	return &linkpb.Session{Number: s.Number, Id: s.ID, Primary: s.Primary}
}

func sessionFromWire(s *linkpb.Session) core.Session {
	return core.Session{Number: s.GetNumber(), ID: s.GetId(), Primary: s.GetPrimary()}
}

// shardToWire is nil for a group that is no shard.
func shardToWire(s core.Shard) *linkpb.Shard {
	if s.Group == "" {
		return nil
	}
	return &linkpb.Shard{Group: s.Group, Id: uint32(s.ID), EpochMillis: s.EpochMillis}
}

// shardFromWire is the zero value for nil. The caller checks it: see core.Settings.Check.
func shardFromWire(s *linkpb.Shard) core.Shard {
	if s == nil {
		return core.Shard{}
	}
	id := epoch.ShardID(min(s.GetId(), math.MaxUint16))
	return core.Shard{Group: s.GetGroup(), ID: id, EpochMillis: s.GetEpochMillis()}
}

func placeToWire(p journal.Position) *linkpb.Place {
	return &linkpb.Place{Segment: p.Segment, Offset: p.Offset}
}

// deliveryFromWire is a place in a session of this site.
func deliveryFromWire(session uint64, p *linkpb.Place) core.Delivery {
	return core.Delivery{Session: session, Segment: p.GetSegment(), Offset: p.GetOffset()}
}

func tailToWire(t *core.Tail) *linkpb.Tail {
	if t == nil {
		return nil
	}
	return &linkpb.Tail{Ordinal: t.Ordinal, Fingerprint: t.Fingerprint}
}

func tailFromWire(t *linkpb.Tail) *core.Tail {
	if t == nil {
		return nil
	}
	return &core.Tail{Ordinal: t.GetOrdinal(), Fingerprint: t.GetFingerprint()}
}

func countToWire(c *tailCount) *linkpb.DivergentTail {
	return &linkpb.DivergentTail{
		TimelineId: c.Timeline, ForkOrdinal: c.Fork, LastOrdinal: c.Last, Writes: c.Writes, Bytes: c.Bytes,
		FirstUnixNanos: c.FirstUnixNanos, LastUnixNanos: c.LastUnixNanos, Partial: c.Partial,
	}
}

func yieldToWire(y *core.YieldOffer) *linkpb.Yield {
	if y == nil {
		return nil
	}
	return &linkpb.Yield{Id: y.ID, All: y.All, Reason: y.Reason}
}

func yieldFromWire(y *linkpb.Yield) *core.YieldOffer {
	if y == nil {
		return nil
	}
	return &core.YieldOffer{ID: y.GetId(), All: y.GetAll(), Reason: untrusted.Reason(y.GetReason())}
}

var wishToWire = map[roleWish]linkpb.RoleRequest_Kind{
	wishTakeOver: linkpb.RoleRequest_KIND_TAKE_OVER,
	wishTakeBack: linkpb.RoleRequest_KIND_TAKE_BACK,
}

var refusalReasons = map[core.RefusalReason]linkpb.Refusal_Reason{
	core.RefuseForeign:      linkpb.Refusal_REASON_FOREIGN_GROUP,
	core.RefuseStale:        linkpb.Refusal_REASON_STALE_TIMELINE,
	core.RefuseDiverged:     linkpb.Refusal_REASON_DIVERGED,
	core.RefuseNotSecondary: linkpb.Refusal_REASON_NOT_SECONDARY,
}

func refusalToWire(r core.RefusalReason) linkpb.Refusal_Reason { return refusalReasons[r] }

func refusalFromWire(wire linkpb.Refusal_Reason) core.RefusalReason {
	for reason, w := range refusalReasons {
		if w == wire {
			return reason
		}
	}
	return core.RefuseOther
}

func timingToWire(t clocks.Timing) *linkpb.Timing {
	return &linkpb.Timing{Stamp: t.Stamp, UnixNanos: t.WallNanos, Echo: t.Echo, HeldNanos: t.HeldNanos}
}

// timed takes what a message of the peer says of clocks, and returns the instant of this site that it was made after.
func (g *Group) timed(exchange *clocks.Exchange, t *linkpb.Timing) clocks.Instant {
	now := g.cfg.Clock()
	r := exchange.Receive(now, clocks.Timing{Stamp: t.GetStamp(), WallNanos: t.GetUnixNanos(), Echo: t.GetEcho(),
		HeldNanos: t.GetHeldNanos()})
	if r.Measured {
		g.difference.Add(now, r.Clock)
	}
	return r.After
}

func extentsToWire(list []MemberExtent) []*linkpb.MemberExtent {
	wire := make([]*linkpb.MemberExtent, len(list))
	for i, e := range list {
		wire[i] = &linkpb.MemberExtent{Member: e.Member, Extent: e.Extent}
	}
	return wire
}
