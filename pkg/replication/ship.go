package replication

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/tokenbucket"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

const (
	// protocolVersion 2 has sessions.
	protocolVersion = 2
	// batchBytes is how much of the journal one batch carries at most. Larger ones compress no better, and delay the
	// acknowledgement of their first record.
	batchBytes = 512 << 10
	// windowBytes bounds what is sent and not acknowledged: the bandwidth-delay product of 1 Gbit/s and 250 ms.
	windowBytes = 32 << 20
	// ackTimeout ends a stream on which nothing comes back although heartbeats ask for it: behind a proxy or a dropped
	// route the network does not tell. The secondary may be waiting for its disk, so it is generous.
	ackTimeout = 20 * time.Second
)

// shipper keeps a stream to the peer while the group is primary, and knows what the peer lacks.
type shipper struct {
	g *Group
	// work wakes the sender, linkWork the loop.
	work, linkWork signal
	// linkDown is what ended the last stream to the peer.
	linkDown atomic.Pointer[error]
	// bucket is the loop's alone.
	bucket tokenbucket.Bucket
	// schedule is that of the settings, parsed.
	schedule atomic.Pointer[shipSchedule]
}

// errLeftJournal ends a stream that was to begin at records which left the journal meanwhile.
var errLeftJournal = errors.New("the next record left the journal while the stream began")

// errRefused ends a stream that the secondary turned away.
var errRefused = errors.New("refused by the peer")

// loop keeps a stream to the peer while the group is primary.
func (sh *shipper) loop(ctx context.Context) {
	g := sh.g
	backoff := link.NewBackoff(g.cfg.RedialInterval)
	for ctx.Err() == nil {
		streamCtx, peer, address := g.streams.open(ctx, sh.target)
		if peer == "" {
			sh.linkDown.Store(nil)
			select {
			case <-ctx.Done():
			case <-sh.linkWork:
			}
			continue
		}
		progress, err := sh.ship(streamCtx, peer, address)
		g.streams.closed()
		if progress {
			backoff.Reset()
		}
		if ctx.Err() != nil {
			return
		}
		wait := backoff.Next()
		if err != nil {
			err = errors.New(untrusted.Reason(err.Error())) // a status from the network has the peer's text
			sh.linkDown.Store(&err)
			klog.InfoS("Link to the peer is down; connecting again", "group", g.Name(), "peer", peer, "in", wait,
				"reason", err.Error())
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-sh.linkWork: // the role, the peer or a setting changed here; a peer's call is no reason (see greet)
		}
		t.Stop()
	}
}

// target is the peer to call; empty while there is none.
func (sh *shipper) target() (peer, address string) {
	g := sh.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	if !m.Calls() || m.Flow == core.FlowSuspended || m.Peer == "" || g.cfg.Dialer == nil || g.failure != nil {
		return "", ""
	}
	if address = g.cfg.addressOf(m.Settings); address == "" {
		return "", ""
	}
	return m.Peer, address
}

// ship connects and serves one stream until it ends. progress tells whether the peer acknowledged anything on it.
func (sh *shipper) ship(ctx context.Context, peer, address string) (progress bool, err error) {
	g := sh.g
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.cfg.Dialer.Dial(ctx, peer, address)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	// Closing the stream is what ends a Recv or Send that the network does not.
	stopClose := context.AfterFunc(ctx, func() { stream.Close() })
	defer stopClose()

	decision, err := g.step(core.Connected{Durable: g.journal.Durable()}, nil)
	if err != nil {
		return false, err
	}
	defer sh.ended()
	hello, ok := decision.(core.SendHello)
	if !ok {
		return false, nil // not primary any more
	}
	message := sh.hello(hello)
	if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: message}}); err != nil {
		return false, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return false, err
	}
	if refusal := answer.GetRefusal(); refusal != nil {
		return false, sh.onRefusal(ctx, stream, refusal)
	}
	welcome := answer.GetWelcome()
	if welcome == nil {
		return false, fmt.Errorf("%s answered Hello with %T", peer, answer.Message)
	}
	if err := checkWelcome(peer, welcome); err != nil {
		return false, err
	}
	undo, err := receiveRanges(peer, stream, welcome.GetYield())
	if err != nil {
		return false, err
	}
	enc, err := link.NewEncoder(g.cfg.Codec)
	if err != nil {
		return false, err
	}
	wake := newSignal()
	port := &verifyPort{
		supported: welcome.GetVerifies(), wake: wake, out: make(chan *linkpb.ToSecondary, 1),
		in: make(chan *linkpb.VerifyAnswer, 1), ended: make(chan struct{}),
	}
	s := &sender{
		g: g, stream: stream, enc: enc, wake: wake, receiveEnded: make(chan struct{}), port: port,
		timeline: message.Timelines[len(message.Timelines)-1].Id, heard: time.Now(), undo: undo,
	}
	start, err := sh.onWelcome(welcome)
	if err != nil {
		return false, err
	}
	if err := s.beginSession(start.Begin); err != nil {
		return false, err
	}
	if err := s.begin(start); err != nil {
		return false, err
	}
	defer func() { s.cursor.Close() }()
	klog.InfoS("Shipping", "group", g.Name(), "peer", peer, "after", start.After, "sync", start.Begin)
	defer g.verification.open(port)()
	go s.receive()
	err = s.loop(ctx)
	cancel()
	stream.Close()
	<-s.receiveEnded // no goroutine outlives the stream
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acknowledged, err
}

func (sh *shipper) hello(a core.SendHello) *linkpb.Hello {
	g := sh.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	return &linkpb.Hello{
		ProtocolVersion: protocolVersion, GroupId: m.GroupID, GroupName: m.Name, Timelines: timelinesToWire(m.Timelines),
		DurableOrdinal: a.Durable, JournalSizeBytes: m.JournalSizeBytes, RpoTargetMillis: m.RPOTargetMillis, Term: m.Term,
		TakesYield: true, Yielding: m.Yielding() != nil,
		Verifies:      true,
		HistoryMillis: m.HistoryMillis, HistoryBytes: m.HistoryBytes,
		Shard: shardToWire(m.Shard),
	}
}

// onWelcome asks core what to ship, with what this site knows of the peer. See core.Welcomed.
func (sh *shipper) onWelcome(w *linkpb.Welcome) (core.Ship, error) {
	g := sh.g
	released := g.checkpoint.read().ReleasedAcked
	tail, err := g.tail(w.DurableOrdinal)
	if err != nil && !errors.Is(err, journal.ErrOutOfOrder) {
		return core.Ship{}, err
	}
	event := core.Welcomed{
		PeerDurable: w.DurableOrdinal, NeedsSync: w.NeedsSync, Instance: w.Instance,
		PeerSession: sessionFromWire(w.Session), PeerPlace: deliveryFromWire(0,
			w.Place), PeerTail: tailFromWire(w.Tail).Compare(tail),
		PeerHorizon: w.Horizon, Yield: yieldFromWire(w.Yield),
		Durable: g.journal.Durable(), Retained: g.log.retained(), ReleasedAcked: released,
		Relied: g.changes.reliedOn(), Forgotten: g.changes.forgottenThrough(),
		NewSession: uuid.NewString(), NewTimeline: uuid.NewString(), Now: g.cfg.Clock().WallNanos,
	}
	decision, err := g.step(event, sh.markAll)
	if err != nil {
		return core.Ship{}, err
	}
	g.trimmer.work.send()
	return startOf(decision)
}

// beginSession agrees to the peer's Welcome.
func (s *sender) beginSession(sync bool) error {
	s.g.mu.Lock()
	session, fullCopy := s.g.core.Meta.Session, s.g.core.Meta.FullCopy
	s.g.mu.Unlock()
	if !sync {
		fullCopy = "" // of the last sync, and not of this session
	} else if fullCopy != "" {
		klog.InfoS("Everything is copied to the peer", "group", s.g.Name(), "reason", fullCopy)
	}
	s.session = session.Number
	return s.stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_BeginSession{BeginSession: &linkpb.BeginSession{
		Number: session.Number, Id: session.ID, Sync: sync, FullCopy: fullCopy,
	}}})
}

// startOf is where a stream starts to ship, or why it ends.
func startOf(decision core.Decision) (core.Ship, error) {
	switch d := decision.(type) {
	case core.Ship:
		return d, nil
	case core.Diverge:
		return core.Ship{}, errors.New("the histories of the two sites disagree; see the status of the group")
	}
	return core.Ship{}, errors.New("the group is not primary here any more")
}

// onRefusal remembers why, and as an old primary counts and tells what the peer will never have.
func (sh *shipper) onRefusal(ctx context.Context, stream link.Stream, r *linkpb.Refusal) error {
	g := sh.g
	refused, err := refusalOf(r)
	if err != nil {
		return err
	}
	refused.Durable = g.journal.Durable()
	refused.NewTimeline, refused.Now = uuid.NewString(), g.cfg.Clock().WallNanos
	decision, err := g.step(refused, nil)
	if err != nil {
		return err
	}
	if y := g.yields.current(); y != nil {
		// The peer hears what it lost at last: this site takes no more writes.
		decision = core.CountTail{Fork: y.Fork}
	}
	if count, ok := decision.(core.CountTail); ok {
		tail, err := g.yields.countTail(ctx, count.Fork, nil)
		if err != nil {
			return err
		}
		if _, err := g.step(core.TailCounted{Fork: count.Fork, Last: tail.Last, Writes: tail.Writes,
			Bytes: tail.Bytes}, nil); err != nil {
			return err
		}
		message := &linkpb.ToSecondary{Message: &linkpb.ToSecondary_DivergentTail{DivergentTail: countToWire(tail)}}
		if err := stream.Send(message); err != nil {
			return err
		}
		// Wait for the other side to end the stream, so that closing does not overtake the message.
		_, _ = stream.Recv()
	}
	return fmt.Errorf("%w: %s", errRefused, refused.Message)
}

// ended notes that the stream to the peer has ended.
func (sh *shipper) ended() {
	g := sh.g
	g.changes.streamEnded()
	_, _ = g.step(core.Disconnected{Caller: true}, nil) // fails only when the group has failed
	g.remembered.save(false)
}
