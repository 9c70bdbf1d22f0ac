package replication

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// hostileWait bounds how long a site may take to deal with one message.
const hostileWait = 5 * time.Second

// toSecondary are messages that a primary may send out of place or with absurd content.
func toSecondary() []*linkpb.ToSecondary {
	const most = math.MaxUint64
	verify := func(q *linkpb.VerifyRequest) *linkpb.ToSecondary {
		return &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Verify{Verify: q}}
	}
	compare := func(member uint32, first uint64, count uint32, want linkpb.VerifyCompare_Want) *linkpb.ToSecondary {
		return verify(&linkpb.VerifyRequest{Step: 1, Request: &linkpb.VerifyRequest_Compare{
			Compare: &linkpb.VerifyCompare{Member: member, First: first, Count: count, Want: want}}})
	}
	role := func(kind linkpb.RoleRequest_Kind) *linkpb.ToSecondary {
		return &linkpb.ToSecondary{Message: &linkpb.ToSecondary_RoleRequest{
			RoleRequest: &linkpb.RoleRequest{Id: most, Kind: kind}}}
	}
	extents := []*linkpb.MemberExtent{{Member: math.MaxUint32, Extent: most}, {Extent: most}, {}}
	return []*linkpb.ToSecondary{
		{},
		{Message: &linkpb.ToSecondary_Hello{}}, {Message: &linkpb.ToSecondary_Hello{Hello: goodHello()}},
		{Message: &linkpb.ToSecondary_BeginSession{BeginSession: &linkpb.BeginSession{Number: most, Id: "x"}}},
		{Message: &linkpb.ToSecondary_DivergentTail{DivergentTail: &linkpb.DivergentTail{
			TimelineId: strings.Repeat("\x1b", 1<<16), ForkOrdinal: most, LastOrdinal: 1, Writes: most, Bytes: most,
			FirstUnixNanos: math.MaxInt64, LastUnixNanos: math.MinInt64}}},
		{Message: &linkpb.ToSecondary_Heartbeat{}},
		{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: &linkpb.Heartbeat{HeadOrdinal: most, DurableOrdinal: most,
			LagBytes: most, Demoted: true, FinalOrdinal: most,
			Timing: &linkpb.Timing{Stamp: most, UnixNanos: math.MinInt64, Echo: most, HeldNanos: math.MinInt64}}}},
		{Message: &linkpb.ToSecondary_RoleRequest{}}, role(0), role(linkpb.RoleRequest_KIND_TAKE_OVER),
		role(linkpb.RoleRequest_KIND_TAKE_BACK), role(math.MaxInt32),
		{Message: &linkpb.ToSecondary_Verify{}}, verify(&linkpb.VerifyRequest{}),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_At{}}),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_At{At: &linkpb.VerifyAt{Ordinal: most,
			TimelineId: strings.Repeat("x", 1<<16)}}}),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_Hold{}}),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_Compare{}}),
		compare(0, 0, math.MaxUint32, linkpb.VerifyCompare_HASHES), compare(0, most, 1, linkpb.VerifyCompare_DIGEST),
		compare(math.MaxUint32, 0, 1, linkpb.VerifyCompare_CONTENT), compare(0, 1, 2, math.MaxInt32),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_End{}}),
		verify(&linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_End{End: &linkpb.VerifyEnd{Complete: true,
			Ordinal: most, DifferenceCount: most, Extents: extents, Scope: extents}}}),
	}
}

// toPrimary are messages that a secondary may send out of place or with absurd content.
func toPrimary() []*linkpb.ToPrimary {
	const most = math.MaxUint64
	extents := []*linkpb.MemberExtent{{Member: math.MaxUint32, Extent: most}, {Extent: most}, {}}
	ranges := func(b []byte, last bool) *linkpb.ToPrimary {
		return &linkpb.ToPrimary{Message: &linkpb.ToPrimary_TailRanges{
			TailRanges: &linkpb.TailRanges{Ranges: b, Last: last}}}
	}
	return []*linkpb.ToPrimary{
		{},
		{Message: &linkpb.ToPrimary_Welcome{}},
		{Message: &linkpb.ToPrimary_Welcome{Welcome: &linkpb.Welcome{DurableOrdinal: most, Instance: "x",
			Session: &linkpb.Session{Number: most, Id: "x", Primary: "site-a"}, Place: &linkpb.Place{Segment: most,
				Offset: math.MaxInt64}, Tail: &linkpb.Tail{Ordinal: most}, Horizon: most}}},
		{Message: &linkpb.ToPrimary_Welcome{Welcome: &linkpb.Welcome{Instance: "x", Yield: &linkpb.Yield{
			Id: strings.Repeat("x", 1<<16)}}}},
		{Message: &linkpb.ToPrimary_Welcome{Welcome: &linkpb.Welcome{Instance: "x", Yield: &linkpb.Yield{Id: "y"}}}},
		{Message: &linkpb.ToPrimary_Refusal{}},
		{Message: &linkpb.ToPrimary_Refusal{Refusal: &linkpb.Refusal{Reason: linkpb.Refusal_REASON_STALE_TIMELINE,
			ForkOrdinal: most, Primary: true}}},
		{Message: &linkpb.ToPrimary_Ack{}},
		{Message: &linkpb.ToPrimary_Ack{Ack: &linkpb.Ack{DurableOrdinal: most, AppliedOrdinal: most,
			BatchSequence: most, Place: &linkpb.Place{Segment: most, Offset: math.MinInt64}}}},
		ranges(nil, true), ranges([]byte{0xff}, true), ranges([]byte{0, 0, 0}, false),
		ranges([]byte(strings.Repeat("\xff", 1<<16)), false), ranges([]byte{0, 1, 1, 0, 0, 1}, true),
		{Message: &linkpb.ToPrimary_RoleAnswer{}},
		{Message: &linkpb.ToPrimary_RoleAnswer{RoleAnswer: &linkpb.RoleAnswer{Id: most, Agreed: true,
			Message: strings.Repeat("\x1b]0;", 1<<14)}}},
		{Message: &linkpb.ToPrimary_RoleAnswer{RoleAnswer: &linkpb.RoleAnswer{Id: 1, Agreed: true}}},
		{Message: &linkpb.ToPrimary_Verify{}},
		{Message: &linkpb.ToPrimary_Verify{Verify: &linkpb.VerifyAnswer{Step: most, AppliedOrdinal: most,
			Members: []*linkpb.VerifyMember{{Index: math.MaxUint32, SizeBytes: math.MinInt64}}}}},
		{Message: &linkpb.ToPrimary_Verify{Verify: &linkpb.VerifyAnswer{Step: 1, Data: []byte{1},
			Error: strings.Repeat("\x00", 1<<16)}}},
		{Message: &linkpb.ToPrimary_Repair{}},
		{Message: &linkpb.ToPrimary_Repair{Repair: &linkpb.RepairRequest{Extents: extents}}},
	}
}

// received is a message as it is at the other end of a connection.
func received[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	data, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	back := m.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(data, back); err != nil {
		t.Fatal(err)
	}
	return back
}

// hostilePrimary has a peer open a stream to a secondary, before or after the beginning of a session, and say
// something. The secondary deals with it in time, and is whole afterwards.
func hostilePrimary(t *testing.T, messages []*linkpb.ToSecondary, begins bool) {
	t.Helper()
	s, _ := secondaryWithVolume(t)
	before := content(t, volumeOf(t, s.group("shop"), "v0"))
	stream := sayHello(t, s.net, "site-a", "site-b", goodHello())
	if answer, err := stream.Recv(); err != nil || answer.GetWelcome() == nil {
		t.Fatalf("the secondary answers %v, %v", answer, err)
	}
	if begins {
		messages = append([]*linkpb.ToSecondary{{Message: &linkpb.ToSecondary_BeginSession{
			BeginSession: &linkpb.BeginSession{Number: 1, Id: "session"}}}}, messages...)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for _, m := range messages {
			if stream.Send(m) != nil {
				break
			}
		}
		// The end of the stream, or an answer to what came last, says that all was dealt with.
		_ = stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: goodHello()}})
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(hostileWait):
		t.Errorf("a second Hello on the stream does not end it")
	}
	stream.Close()
	<-ended
	if g := s.group("shop"); role(g) == core.RoleSecondary && string(content(t, volumeOf(t, g, "v0"))) != string(before) {
		t.Fatal("the copy has changed")
	}
	stillWhole(t, s)
}

// hostileSecondary has a primary's peer answer its calls with something. The primary takes writes all the same, keeps
// them, and is whole afterwards.
func hostileSecondary(t *testing.T, messages []*linkpb.ToPrimary, welcomes bool) {
	t.Helper()
	net := link.NewNetwork(nil)
	s := newTestSite(t, net, "site-a", func(c *Config) { c.RedialInterval = time.Millisecond })
	served := make(chan struct{}, 1)
	net.Attach("site-b", link.HandlerFunc(func(stream link.PeerStream) error {
		defer func() {
			select {
			case served <- struct{}{}:
			default:
			}
		}()
		if _, err := stream.Recv(); err != nil {
			return err
		}
		if welcomes {
			w := &linkpb.Welcome{Instance: "b", NeedsSync: true, Verifies: true}
			if err := stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Welcome{Welcome: w}}); err != nil {
				return err
			}
		}
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(stream.Context(), 20*time.Millisecond)
		defer cancel()
		<-ctx.Done()
		return nil
	}))
	g := s.createGroup("shop", "site-b", 1, 1<<20, nil)
	v := volumeOf(t, g, "v0")
	mustWrite(t, v, 0, block('a', 4096))
	mustFlush(t, v)
	for range 3 {
		select {
		case <-served:
		case <-time.After(hostileWait):
			t.Fatal("the primary does not call again")
		}
	}
	mustWrite(t, v, 4096, block('b', 4096))
	mustFlush(t, v)
	want := content(t, v)
	net.Detach("site-b")
	stillWhole(t, s)
	if g := s.group("shop"); string(content(t, volumeOf(t, g, "v0"))) != string(want) || role(g) != core.RolePrimary {
		t.Fatalf("the primary became %v", g.Status())
	}
}

// No message of a peer, in or out of its place, stops a group or changes what it holds.
func TestHostileMessages(t *testing.T) {
	for _, begins := range []bool{false, true} {
		for _, m := range toSecondary() {
			hostilePrimary(t, []*linkpb.ToSecondary{received(t, m)}, begins)
		}
		for _, m := range toPrimary() {
			hostileSecondary(t, []*linkpb.ToPrimary{received(t, m)}, begins)
		}
	}
}

// FuzzToSecondary: whatever a peer sends to a secondary, its copy is what it was.
func FuzzToSecondary(f *testing.F) {
	for _, m := range toSecondary() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, begins bool) {
		m := &linkpb.ToSecondary{}
		if proto.Unmarshal(data, m) != nil || m.GetBatch() != nil { // FuzzReceivedRecord has records
			return
		}
		hostilePrimary(t, []*linkpb.ToSecondary{m, m}, begins)
	})
}

// FuzzToPrimary: whatever a peer answers to a primary, that takes writes and keeps them.
func FuzzToPrimary(f *testing.F) {
	for _, m := range toPrimary() {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Fuzz(func(t *testing.T, data []byte, welcomes bool) {
		m := &linkpb.ToPrimary{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		hostileSecondary(t, []*linkpb.ToPrimary{m, m}, welcomes)
	})
}

// FuzzRanges: a list of ranges that is taken is ascending, within bounds, and the same when it is sent again.
func FuzzRanges(f *testing.F) {
	f.Add([]byte{}, []byte{0, 0, 1})
	f.Add([]byte{0, 0, 1, 0, 1, 1}, []byte{1, 0, 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, []byte{})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		const limit = 100
		list, err := decodeRanges(nil, first, limit)
		if err == nil {
			list, err = decodeRanges(list, second, limit)
		}
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for i, r := range list {
			if r.n <= 0 || r.off < 0 || r.off+r.n > core.MaxVolumeBytes || i > 0 && (r.volume < list[i-1].volume ||
				r.volume == list[i-1].volume && r.off <= list[i-1].off+list[i-1].n) {
				t.Fatalf("range %d of %+v", i, list)
			}
		}
		again, err := decodeRanges(nil, encodeRanges(list, byteRange{}), limit)
		if err != nil || len(again) != len(list) {
			t.Fatalf("%+v became %+v: %v", list, again, err)
		}
	})
}
