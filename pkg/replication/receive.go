package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// receiver is the secondary's end of one stream.
type receiver struct {
	g       *Group
	stream  link.PeerStream
	cancel  context.CancelFunc
	done    chan struct{}
	decoder link.Decoder
	// entries and volumes are what content collects, kept for the next batch.
	entries []journal.Entry
	volumes []*Volume

	// exchange is of stamps with the primary.
	exchange clocks.Exchange
	// appended is the last batch whose records are in the journal; the acknowledger makes it durable.
	appended atomic.Uint64
	ackWork  signal
	// answers is an answer to a RoleRequest that waits to be sent; nil for none.
	answers atomic.Pointer[linkpb.RoleAnswer]
	// verifyIn has requests of a comparison, outbox what others than the acknowledger want sent.
	verifyIn chan *linkpb.VerifyRequest
	outbox   chan *linkpb.ToPrimary
	// hello is what the primary said of itself; it counts once begun, when the primary agreed to the Welcome.
	hello *linkpb.Hello
	begun bool
	// copied is how many bytes of content came since core was told.
	copied uint64
}

// receive serves one stream from a primary until it ends. At most one runs: a new one replaces the old, whose
// connection may be dead without a sign of it.
func (g *Group) receive(stream link.PeerStream, hello *linkpb.Hello) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	r := &receiver{g: g, stream: stream, cancel: cancel, done: make(chan struct{}), ackWork: newSignal(), hello: hello,
		verifyIn: make(chan *linkpb.VerifyRequest, verifyRequests), outbox: make(chan *linkpb.ToPrimary)}
	if err := g.streams.accept(r, r.admit); err != nil {
		return err
	}
	defer r.leave()

	// What arrived on an earlier stream counts as arrived only once it is durable.
	if err := g.journal.Sync(); err != nil {
		g.fail(err)
		return err
	}
	ok, err := r.greet(hello)
	if err != nil {
		return err
	}
	messages := make(chan *linkpb.ToSecondary)
	failed := make(chan error, 2)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case messages <- m:
			case <-ctx.Done():
				return
			}
		}
	}()
	if !ok {
		return r.awaitTail(ctx, messages, failed)
	}
	ackDone := make(chan struct{})
	go func() {
		defer close(ackDone)
		if err := r.acknowledge(ctx); err != nil {
			failed <- err
		}
	}()
	verifyDone := make(chan struct{})
	go func() {
		defer close(verifyDone)
		r.serveVerify(ctx)
	}()
	defer func() { cancel(); <-ackDone; <-verifyDone }()
	for {
		select {
		case <-ctx.Done():
			return errReplaced
		case err := <-failed:
			return err
		case m := <-messages:
			if err := r.handle(ctx, m); err != nil {
				if errors.Is(err, ErrQuota) || vfs.NoSpace(err) {
					g.noRoom.Store(&err)
				}
				klog.ErrorS(err, "Stream from the primary ended", "group", g.Name(), "peer", stream.Peer())
				return err
			}
		}
	}
}

// admit returns why a stream of a site may not become the group's, nor end the one that there is: errForeign for
// one that is not the group's peer.
func (r *receiver) admit() error {
	g, site := r.g, r.stream.Peer()
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.core.Meta.Peer != site:
		return fmt.Errorf("%w: group %s does not replicate with %s", errForeign, g.Name(), site)
	case g.ctx.Err() != nil:
		return ErrClosed
	}
	return nil
}

// leave ends r. After it nothing of r is at work any more: a new stream is not taken for the one that
// ended, and nothing is written into the directory of a group that was closed.
func (r *receiver) leave() {
	g := r.g
	_ = r.noteCopied()                      // a number for people
	_, _ = g.step(core.Disconnected{}, nil) // fails only when the group has failed
	g.remembered.save(false)
	g.streams.left(r)
	g.applier.work.send()
}

// greet answers Hello. ok is false when the primary was turned away.
func (r *receiver) greet(hello *linkpb.Hello) (ok bool, err error) {
	g := r.g
	if hello.ProtocolVersion != protocolVersion {
		return false, r.sendRefusal(linkpb.Refusal_REASON_VERSION, 0,
			fmt.Sprintf("protocol version %d, this site speaks %d; upgrade the older one", hello.ProtocolVersion,
				protocolVersion))
	}
	event := core.HelloReceived{
		Peer: r.stream.Peer(), GroupID: hello.GroupId, Timelines: timelinesFromWire(hello.Timelines), Term: hello.Term,
		PeerDurable: hello.DurableOrdinal, Yielding: hello.Yielding, Durable: g.journal.Durable(),
		Attached: len(g.members.attached()),
	}
	if len(event.Timelines) == 0 {
		return false, r.sendRefusal(linkpb.Refusal_REASON_UNSPECIFIED, 0, "Hello without a timeline")
	}
	decision, err := g.step(event, nil)
	if err != nil {
		_ = r.sendRefusal(linkpb.Refusal_REASON_FAILED, 0, err.Error())
		return false, err
	}
	switch d := decision.(type) {
	case core.SendWelcome:
		if d.Yield != nil && !hello.TakesYield {
			return false, r.sendRefusal(linkpb.Refusal_REASON_VERSION, 0, fmt.Sprintf("group %s gives way at %s, and the "+
				"release at %s does not know what that is; upgrade it", g.Name(), g.cfg.Site, r.stream.Peer()))
		}
		tail, err := g.tail(d.Durable)
		if err != nil {
			return false, err
		}
		g.mu.Lock()
		session := sessionToWire(g.core.Meta.Session)
		g.mu.Unlock()
		err = r.stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Welcome{Welcome: &linkpb.Welcome{
			DurableOrdinal: d.Durable, NeedsSync: d.NeedsSync, Instance: d.Instance,
			Session: session, Place: placeToWire(g.journal.DurableEnd()), Tail: tailToWire(tail),
			Horizon: g.checkpoint.horizon.Load(), Yield: yieldToWire(d.Yield), Verifies: true,
		}}})
		if err == nil && d.Yield != nil && !d.Yield.All {
			err = r.sendRanges(d.Yield.ID)
		}
		return true, err
	case core.SendRefusal:
		if d.Reason == core.RefuseForeign {
			return false, fmt.Errorf("%w: %s", errForeign, d.Message)
		}
		klog.InfoS("Primary refused", "group", g.Name(), "peer", r.stream.Peer(), "reason", d.Reason, "message",
			d.Message)
		if hello.Yielding {
			g.shipper.linkWork.send() // it wants to be called
		}
		return false, r.sendRefusal(refusalToWire(d.Reason), d.Fork, d.Message)
	}
	return false, fmt.Errorf("group %s: no answer to Hello", g.Name())
}

// begin makes this site the secondary of the caller, which has agreed to the Welcome.
func (r *receiver) begin(ctx context.Context, b *linkpb.BeginSession) error {
	g := r.g
	if r.begun {
		return fmt.Errorf("group %s: %s begins a second session on one stream", g.Name(), r.stream.Peer())
	}
	if err := checkBegin(r.stream.Peer(), b); err != nil {
		return fmt.Errorf("group %s: %w", g.Name(), err)
	}
	base, err := g.resync.preserve(ctx, true, b.Sync)
	if err != nil {
		return err
	}
	event := core.SessionReceived{
		Session: core.Session{Number: b.Number, ID: b.Id, Primary: r.stream.Peer()},
		Sync:    b.Sync, Base: base, FullCopy: untrusted.Reason(b.FullCopy),
	}
	decision, err := g.yields.follows(event)
	if err == nil {
		if _, ok := decision.(core.Follow); !ok {
			err = errReplaced // the role or the settings changed since the Hello
		}
	}
	if err != nil {
		return errors.Join(err, g.resync.notBegun())
	}
	r.begun = true
	if err := g.members.alignPool(); err != nil { // a demoted primary may have become a secondary
		return err
	}
	g.shipper.linkWork.send() // this site calls no peer any more
	g.settings.follow(settingsFromWire(r.hello))
	if err := g.shard.joined(); err != nil {
		return err
	}
	klog.InfoS("Receiving", "group", g.Name(), "peer", r.stream.Peer(), "after", g.journal.Durable(), "session",
		b.Number, "sync", b.Sync, "fullCopy", event.FullCopy)
	return nil
}

func (r *receiver) sendRefusal(reason linkpb.Refusal_Reason, fork uint64, message string) error {
	r.g.mu.Lock()
	m := &r.g.core.Meta
	timelines, primary := timelinesToWire(m.Timelines), m.Role.Ships() && m.Yielding() == nil
	r.g.mu.Unlock()
	return r.stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: &linkpb.Refusal{
		Reason: reason, Message: message, ForkOrdinal: fork, Timelines: timelines, Primary: primary,
	}}})
}

// awaitTail waits for the count of what a refused primary wrote past the fork, which it reads its journal for. That
// takes as long as the tail is long, so the wait has no limit of its own: it ends with the stream. The transport ends a
// stream whose other end is gone, a new stream of the primary takes its place, and a promotion ends it.
func (r *receiver) awaitTail(ctx context.Context, messages <-chan *linkpb.ToSecondary, failed <-chan error) error {
	select {
	case <-ctx.Done():
		return nil
	case <-failed:
		return nil
	case m := <-messages:
		return r.takeTail(m.GetDivergentTail())
	}
}

// takeTail puts the count of a divergent tail into the loss report; nil is no count.
func (r *receiver) takeTail(tail *linkpb.DivergentTail) error {
	if tail == nil {
		return nil
	}
	_, err := r.g.step(core.TailReceived{
		Peer: r.stream.Peer(), Timeline: untrusted.Escape(tail.TimelineId, maxInstanceBytes), Fork: tail.ForkOrdinal,
		Last: tail.LastOrdinal, Writes: tail.Writes, Bytes: tail.Bytes,
		FirstUnixNanos: tail.FirstUnixNanos, LastUnixNanos: tail.LastUnixNanos, Partial: tail.Partial,
	}, nil)
	return err
}

func (r *receiver) handle(ctx context.Context, m *linkpb.ToSecondary) error {
	r.g.hearPeer()
	if begin := m.GetBeginSession(); begin != nil {
		return r.begin(ctx, begin)
	}
	if !r.begun {
		return fmt.Errorf("group %s: %T from %s before the beginning of a session", r.g.Name(), m.Message, r.stream.Peer())
	}
	switch m := m.Message.(type) {
	case *linkpb.ToSecondary_Batch:
		return r.batch(ctx, m.Batch)
	case *linkpb.ToSecondary_Heartbeat:
		h := m.Heartbeat
		_, err := r.g.step(core.HeartbeatReceived{
			Head: h.HeadOrdinal, Durable: h.DurableOrdinal, LagBytes: h.LagBytes, Demoted: h.Demoted,
			FinalOrdinal: h.FinalOrdinal,
			NotBefore:    r.g.timed(&r.exchange, h.Timing), Local: r.g.journal.Durable(),
		}, nil)
		r.ackWork.send()
		r.g.remembered.save(true)
		return err
	case *linkpb.ToSecondary_RoleRequest:
		return r.roleRequest(m.RoleRequest)
	case *linkpb.ToSecondary_Verify:
		return r.verify(m.Verify)
	default:
		return fmt.Errorf("group %s: unexpected %T from %s", r.g.Name(), m, r.stream.Peer())
	}
}

// batch puts a batch's records into the journal, in stream order. They are acknowledged when they are durable.
func (r *receiver) batch(ctx context.Context, b *linkpb.Batch) error {
	records, err := r.decoder.Decode(b)
	if err != nil {
		return err
	}
	if err = checkRanges(records); err == nil {
		err = r.g.copies.leaveReserve(records)
	}
	if err != nil {
		return err
	}
	if err := r.records(ctx, records); err != nil {
		return fmt.Errorf("group %s: batch %d: %w", r.g.Name(), b.Sequence, err)
	}
	r.g.noRoom.Store(nil)
	r.appended.Store(b.Sequence)
	r.ackWork.send()
	return nil
}

// acknowledge makes what was appended durable and says so. While it syncs, more is appended: group commit.
func (r *receiver) acknowledge(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-r.outbox:
			if err := r.stream.Send(m); err != nil {
				return err
			}
			continue
		case <-r.ackWork:
		}
		if answer := r.answers.Swap(nil); answer != nil {
			err := r.stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_RoleAnswer{RoleAnswer: answer}})
			if err != nil {
				return err
			}
		}
		sequence := r.appended.Load()
		if err := r.g.log.commit(); err != nil {
			return err
		}
		durable, place := r.g.journal.Durable(), r.g.journal.DurableEnd()
		applied := r.g.checkpoint.read().AppliedOrdinal
		err := r.stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Ack{Ack: &linkpb.Ack{
			DurableOrdinal: durable, AppliedOrdinal: applied, BatchSequence: sequence, Place: placeToWire(place),
			Timing: timingToWire(r.exchange.Send(r.g.cfg.Clock())),
		}}})
		if err != nil {
			return err
		}
	}
}

func (r *receiver) records(ctx context.Context, records []link.Record) error {
	for i := 0; i < len(records); {
		n, err := r.content(ctx, records[i:])
		if err == nil && n == 0 {
			n, err = 1, r.special(ctx, records[i].Header, records[i].Data)
		}
		if err != nil {
			return fmt.Errorf("record %d: %w", i, err)
		}
		i += n
	}
	return nil
}

// content takes the records up to the first one that is more than a volume's content, and returns how many.
func (r *receiver) content(ctx context.Context, records []link.Record) (int, error) {
	g := r.g
	r.entries, r.volumes = r.entries[:0], r.volumes[:0]
	for i := range records {
		h := records[i].Header
		if !touchesImage(&h) {
			break
		}
		r.copied += uint64(len(records[i].Data))
		v := g.members.at(h.Volume)
		if v == nil {
			if !g.copies.removed(h.Volume) {
				return 0, fmt.Errorf("%w: no member %d", ErrNotFound, h.Volume)
			}
			// The list of members is ahead of the stream: a sync's manifest is, and a copy that another group has
			// taken.
			r.entries = append(r.entries, journal.Entry{Header: h, Data: records[i].Data})
			r.volumes = append(r.volumes, nil)
			continue
		}
		if err := blockdev.CheckRange(h.Offset, int64(h.Length), v.size.Load()); err != nil {
			return 0, fmt.Errorf("volume %s: %s of %s at %d: %w", v.id, h.Kind, words.Count(h.Length, "byte"), h.Offset,
				err)
		}
		r.entries = append(r.entries, journal.Entry{Header: h, Data: records[i].Data})
		r.volumes = append(r.volumes, v)
	}
	return len(r.entries), g.log.appendCopies(ctx, r.volumes, r.entries)
}

// special takes one record that is more than content. What it changes is made durable around the record, so that a
// crash between the two leaves the safer state: not promotable before the first extent, promotable after the last.
func (r *receiver) special(ctx context.Context, h journal.Header, data []byte) error {
	g := r.g
	switch h.Kind {
	case journal.KindSyncBegin:
		var manifest syncManifest
		if err := json.Unmarshal(data, &manifest); err != nil {
			return fmt.Errorf("sync manifest: %w", err)
		}
		base, err := g.resync.preserve(ctx, false, true)
		if err != nil {
			return err
		}
		// Before the members become what the manifest says, which shows writes, too.
		if err := g.checkpoint.saveSyncBegin(uint64(h.Offset), manifest.Tail); err != nil {
			return err
		}
		if err := g.copies.replaceAdmitted(manifest.Members, base); err != nil {
			return errors.Join(err, g.resync.notBegun())
		}
		if err := g.log.appendCopy(ctx, h, data); err != nil {
			return err
		}
		if err := g.log.commit(); err != nil {
			return err
		}
		_, err = g.step(core.SyncBeginDurable{}, nil)
		return err
	case journal.KindVolume:
		var member core.Member
		if err := json.Unmarshal(data, &member); err != nil {
			return fmt.Errorf("member: %w", err)
		}
		// Everything before the record is durable before the record's effect: a format is known here only when the
		// filesystem that it speaks of is here. The record comes after its effect: if it were durable first, a crash
		// between the two would leave a member that is never made, since the record is not sent again.
		if err := g.log.commit(); err != nil {
			return err
		}
		done, err := g.shard.pastEpoch(ctx)
		if err != nil {
			return err
		}
		defer done()
		if err := g.copies.takeAdmitted(member); err != nil {
			return err
		}
		return g.log.appendCopy(ctx, h, data)
	case journal.KindHorizon:
		// Checkpoints have it before the record can leave the journal.
		g.checkpoint.horizon.Store(uint64(h.Offset))
		return g.log.appendCopy(ctx, h, data)
	case journal.KindBookmark:
		if err := g.log.appendCopy(ctx, h, data); err != nil {
			return err
		}
		if err := g.log.commit(); err != nil {
			return err
		}
		return g.bookmarks.take(h, data)
	case journal.KindEpoch:
		if err := g.log.appendCopy(ctx, h, data); err != nil {
			return err
		}
		g.shard.noteMark(h, data)
		return nil
	case journal.KindSyncEnd:
		if err := g.log.appendCopy(ctx, h, data); err != nil {
			return err
		}
		if err := g.log.commit(); err != nil {
			return err
		}
		g.points.syncEnd.extend(g.journal.DurableEnd(), h.Ordinal)
		if err := r.noteCopied(); err != nil {
			return err
		}
		before, _ := g.resync.current()
		if _, err := g.step(core.SyncEndDurable{}, nil); err != nil {
			return err
		}
		if err := g.shard.syncEnded(h.Ordinal); err != nil {
			return err
		}
		if now, _ := g.resync.current(); now != before || before == nil { // a shard keeps it until its group's next epoch
			g.resync.syncEnded(before)
		}
		g.tailPolicy.work.send()
		return g.yields.dropRanges()
	}
	return fmt.Errorf("group %s: unexpected %s record", g.Name(), h.Kind)
}
