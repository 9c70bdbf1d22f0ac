package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
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

// errLeftJournal ends a stream that was to begin at records which left the journal meanwhile.
var errLeftJournal = errors.New("the next record left the journal while the stream began")

// errRefused ends a stream that the secondary turned away.
var errRefused = errors.New("refused by the peer")

// linkLoop keeps a stream to the peer while the group is primary.
func (g *Group) linkLoop(ctx context.Context) {
	backoff := link.NewBackoff(g.cfg.RedialInterval)
	for ctx.Err() == nil {
		streamCtx, peer, address := g.streams.open(ctx, g.dialTarget)
		if peer == "" {
			g.linkDown.Store(nil)
			select {
			case <-ctx.Done():
			case <-g.linkWork:
			}
			continue
		}
		progress, err := g.ship(streamCtx, peer, address)
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
			g.linkDown.Store(&err)
			klog.InfoS("Link to the peer is down; connecting again", "group", g.Name(), "peer", peer, "in", wait,
				"reason", err.Error())
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-g.linkWork: // the role, the peer or a setting changed here; a peer's call is no reason (see greet)
		}
		t.Stop()
	}
}

// dialTarget is whom to call; empty while there is nobody to call.
func (g *Group) dialTarget() (peer, address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	if m.Role != core.RolePrimary || m.Peer == "" || g.cfg.Dialer == nil || g.failure != nil {
		return "", ""
	}
	if address = g.cfg.addressOf(m.Settings); address == "" {
		return "", ""
	}
	return m.Peer, address
}

// ship connects and serves one stream until it ends. progress tells whether the peer acknowledged anything on it.
func (g *Group) ship(ctx context.Context, peer, address string) (progress bool, err error) {
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
	defer g.streamEnded()
	hello, ok := decision.(core.SendHello)
	if !ok {
		return false, nil // not primary any more
	}
	message := g.helloMessage(hello)
	if err := stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Hello{Hello: message}}); err != nil {
		return false, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return false, err
	}
	if refusal := answer.GetRefusal(); refusal != nil {
		return false, g.onRefusal(ctx, stream, refusal)
	}
	welcome := answer.GetWelcome()
	if welcome == nil {
		return false, fmt.Errorf("%s answered Hello with %T", peer, answer.Message)
	}
	if err := checkWelcome(peer, welcome); err != nil {
		return false, err
	}
	enc, err := link.NewEncoder(g.cfg.Codec)
	if err != nil {
		return false, err
	}
	s := &sender{
		g: g, stream: stream, enc: enc, wake: newSignal(), receiveEnded: make(chan struct{}),
		timeline: message.Timelines[len(message.Timelines)-1].Id, heard: time.Now(),
	}
	start, err := g.onWelcome(welcome)
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
	go s.receive()
	err = s.loop(ctx)
	cancel()
	stream.Close()
	<-s.receiveEnded // no goroutine outlives the stream
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.acknowledged, err
}

func (g *Group) helloMessage(a core.SendHello) *linkpb.Hello {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	return &linkpb.Hello{
		ProtocolVersion: protocolVersion, GroupId: m.GroupID, GroupName: m.Name, Timelines: timelinesToWire(m.Timelines),
		DurableOrdinal: a.Durable, JournalSizeBytes: m.JournalSizeBytes, RpoTargetMillis: m.RPOTargetMillis, Term: m.Term,
	}
}

// onWelcome asks core what to ship, with what this site knows of the peer. See core.Welcomed.
func (g *Group) onWelcome(w *linkpb.Welcome) (core.Ship, error) {
	released := g.checkpoint.read().ReleasedAcked
	tail, err := g.tail(w.DurableOrdinal)
	if err != nil && !errors.Is(err, journal.ErrOutOfOrder) {
		return core.Ship{}, err
	}
	event := core.Welcomed{
		PeerDurable: w.DurableOrdinal, NeedsSync: w.NeedsSync, Instance: w.Instance,
		PeerSession: sessionFromWire(w.Session), PeerPlace: deliveryFromWire(0,
			w.Place), PeerTail: tailFromWire(w.Tail).Compare(tail),
		PeerHorizon: w.Horizon, Durable: g.journal.Durable(), Retained: g.retained(), ReleasedAcked: released,
		Relied:     g.changes.reliedOn(),
		NewSession: uuid.NewString(), NewTimeline: uuid.NewString(), Now: g.cfg.Clock().WallNanos,
	}
	decision, err := g.step(event, g.markAll)
	if err != nil {
		return core.Ship{}, err
	}
	g.trimWork.send()
	return startOf(decision)
}

// beginSession agrees to the peer's Welcome.
func (s *sender) beginSession(sync bool) error {
	s.g.mu.Lock()
	session := s.g.core.Meta.Session
	s.g.mu.Unlock()
	s.session = session.Number
	return s.stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_BeginSession{BeginSession: &linkpb.BeginSession{
		Number: session.Number, Id: session.ID, Sync: sync,
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

// retained is the first ordinal that the journal still holds.
func (g *Group) retained() uint64 {
	if segments := g.journal.Segments(); len(segments) > 0 {
		return segments[0].FirstOrdinal
	}
	return g.journal.Head() + 1
}

// begin sets the stream to where core wants it.
func (s *sender) begin(start core.Ship) error {
	pos, ok, err := s.g.journal.PositionOf(start.After)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("group %s: %w: ordinal %d", s.g.Name(), errLeftJournal, start.After+1)
	}
	if s.cursor != nil {
		s.cursor.Close()
	}
	s.cursor = s.g.journal.NewCursor(pos)
	s.at = start.After
	s.sync.reset()
	if start.Begin {
		return s.sendSyncBegin()
	}
	return nil
}

// loop sends whatever there is: extents of a sync, records, the end of a sync, heartbeats. It waits only when the
// window is full or nothing is left, and never makes anybody else wait.
func (s *sender) loop(ctx context.Context) error {
	heartbeat := time.NewTicker(s.g.cfg.HeartbeatInterval)
	defer heartbeat.Stop()
	if err := s.sendHeartbeat(); err != nil {
		return err
	}
	for {
		sent, delay := false, s.rateDelay()
		if s.windowOpen() && delay == 0 {
			err := s.pace(ctx)
			if err != nil {
				return err
			}
			if sent, err = s.sendSome(); err != nil {
				return err
			}
		}
		if sent {
			select {
			case <-heartbeat.C:
			case <-s.receiveEnded:
				return s.receiveErr
			default:
				continue
			}
		} else {
			beat, err := s.wait(ctx, heartbeat.C, delay)
			if err != nil {
				return err
			}
			if !beat {
				continue
			}
		}
		if err := s.sendHeartbeat(); err != nil {
			return err
		}
	}
}

// sendSome sends at most one run of extents and one batch of records.
func (s *sender) sendSome() (sent bool, err error) {
	if s.sync.stage == syncStageExtents {
		if sent, err = s.sendExtents(); err != nil {
			return sent, err
		}
		if !sent {
			// Every extent was read at a head not above this one.
			if err := s.sync.extentsRead(s.g.journal.Head()); err != nil {
				return false, err
			}
		}
	}
	records, err := s.cursor.Next(batchBytes)
	if folded := s.g.changes.foldedThrough(); folded > s.at {
		return true, s.skipFolded(folded)
	}
	// the deliberate fault FoldUnordered; nothing else leaves before it was acknowledged
	if errors.Is(err, journal.ErrReleased) {
		return true, s.restart(core.CursorLost{Retained: s.g.retained()})
	}
	if err != nil {
		var corrupt *journal.CorruptionError
		if errors.As(err, &corrupt) {
			s.g.fail(err)
		}
		return sent, err
	}
	// After the records were read, since those of a new timeline are written only when it is known.
	if err := s.checkTimeline(); err != nil {
		return sent, err
	}
	// The map, too, is looked at after the records were read: a volume's content is marked before the volume's record is
	// written. A record that came between an earlier look and the reading would be shipped outside of a sync, and the
	// peer's copy, with zeros for the content, be taken for whole.
	if !s.sync.active() && s.g.needsSync() {
		return true, s.restart(core.MapDirty{At: s.at})
	}
	if len(records) > 0 {
		if err := s.sendRecords(records); err != nil {
			return sent, err
		}
		sent = true
	}
	if s.sync.reachedTarget(s.at) {
		if s.g.needsSync() { // folded or added meanwhile, or about to be
			return sent || !s.g.awaitsJoining(), s.sync.moreExtents()
		}
		return true, s.sendSyncEnd()
	}
	return sent, nil
}

// checkTimeline returns an error when the group has gone on to another timeline, or another role, than the peer was
// told.
func (s *sender) checkTimeline() error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	m := &s.g.core.Meta
	if m.Role != core.RolePrimary || m.Timeline() != s.timeline {
		return fmt.Errorf("group %s: its role or timeline changed; it introduces itself again", m.Name)
	}
	return nil
}

// skipFolded goes on behind the records that were folded. The map has all that they wrote.
//
// A range is in the journal or in the map, never in both for the sender. If it shipped records of a segment whose
// extents are in the map, it could send an extent with its newest content, an older record of that extent behind it,
// and then find that the segment with the newest record has left the journal. The copy would keep the older content for
// good, and the extent's mark would be used up. So no extent is taken from the map (see changeSet.take) and no record
// sent until the stream is behind what was folded.
//
// The map is durable before the peer hears of the skip: after a power loss the peer would otherwise be past records
// that neither the map nor the stream brings.
func (s *sender) skipFolded(folded uint64) error {
	for {
		if err := s.g.saveChangeMap(); err != nil {
			return err
		}
		err := s.restart(core.CursorLost{Retained: folded + 1})
		again := s.g.changes.foldedThrough()
		if !errors.Is(err, errLeftJournal) || again == folded {
			return err
		}
		folded = again // more was folded meanwhile
	}
}

func (s *sender) restart(e core.Event) error {
	decision, err := s.g.step(e, nil)
	if err != nil {
		return err
	}
	start, err := startOf(decision)
	if err != nil {
		return err
	}
	return s.begin(start)
}

func (s *sender) sendRecords(records []journal.Record) error {
	for i := range records {
		r := &records[i]
		if err := s.add(r.Header, r.Data); err != nil {
			return err
		}
	}
	if s.enc.RawBytes() < batchBytes/2 {
		s.sentSmall = time.Now()
	}
	if err := s.sendBatch(); err != nil {
		return err
	}
	s.at = records[len(records)-1].Header.Ordinal
	return nil
}

func (s *sender) add(h journal.Header, data []byte) error {
	if !s.enc.Add(h, data) {
		return fmt.Errorf("group %s: ordinal %d with %d bytes does not fit in a batch", s.g.Name(), h.Ordinal, len(data))
	}
	return nil
}

// sendBatch sends what the encoder holds and takes it into the window.
func (s *sender) sendBatch() error {
	s.sequence++
	batch := s.enc.Batch(s.sequence)
	n := len(batch.Records)
	s.mu.Lock()
	s.inFlight = append(s.inFlight, sentBatch{s.sequence, n})
	s.bytes += n
	s.mu.Unlock()
	if err := s.stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Batch{Batch: batch}}); err != nil {
		return err
	}
	s.charge(n)
	s.g.stats.shippedBytes.Add(uint64(batch.RawBytes))
	s.g.stats.wireBytes.Add(uint64(n))
	return nil
}

func (s *sender) windowOpen() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes < windowBytes
}

func (s *sender) sendHeartbeat() error {
	s.mu.Lock()
	silent := time.Since(s.heard)
	s.mu.Unlock()
	if silent > ackTimeout {
		return fmt.Errorf("group %s: %s has not answered for %v", s.g.Name(), s.g.core.Meta.Peer, silent.Round(time.Second))
	}
	// The echo first: it proves to the secondary that the head was read after the stamp had come here.
	timing := s.exchange.Send(s.g.cfg.Clock())
	head, durable := s.g.clock.head(s.g.journal.Head), s.g.journal.Durable()
	s.g.mu.Lock()
	m := &s.g.core.Meta
	h := &linkpb.Heartbeat{
		HeadOrdinal: head, DurableOrdinal: durable, Timing: timingToWire(timing), Demoted: m.Demoted,
		FinalOrdinal: m.FinalOrdinal,
	}
	acked := s.g.core.Acked()
	s.g.mu.Unlock()
	h.LagBytes = s.g.lagBytes(acked)
	s.g.remember(true)
	return s.stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_Heartbeat{Heartbeat: h}})
}

// receive takes acknowledgements until the stream ends.
func (s *sender) receive() {
	s.receiveErr = s.receiveAcks()
	close(s.receiveEnded)
}

func (s *sender) receiveAcks() error {
	for {
		m, err := s.stream.Recv()
		if err != nil {
			return err
		}
		if r := m.GetRefusal(); r != nil {
			return fmt.Errorf("%w: %s", errRefused, untrusted.Reason(r.Message))
		}
		if ack := m.GetAck(); ack != nil {
			if err := s.onAck(ack); err != nil {
				return err
			}
		}
	}
}

func (s *sender) onAck(ack *linkpb.Ack) error {
	s.mu.Lock()
	n := 0
	for n < len(s.inFlight) && s.inFlight[n].sequence <= ack.BatchSequence {
		s.bytes -= s.inFlight[n].bytes
		n++
	}
	s.inFlight = s.inFlight[n:]
	s.acknowledged = s.acknowledged || n > 0
	s.heard = time.Now()
	s.mu.Unlock()
	s.g.timed(&s.exchange, ack.Timing)
	if ack.DurableOrdinal > s.g.journal.Durable() {
		return fmt.Errorf("group %s: the peer acknowledged ordinal %d, past the durable one", s.g.Name(), ack.DurableOrdinal)
	}
	if _, err := s.g.step(core.Acked{Ordinal: ack.DurableOrdinal}, nil); err != nil {
		return err
	}
	if err := s.g.extentsAcked(ack.BatchSequence, deliveryFromWire(s.session, ack.Place)); err != nil {
		return err
	}
	s.g.trimWork.send()
	s.wake.send()
	return nil
}

// onRefusal remembers why, and as an old primary counts and tells what the peer will never have.
func (g *Group) onRefusal(ctx context.Context, stream link.Stream, r *linkpb.Refusal) error {
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
	if count, ok := decision.(core.CountTail); ok {
		tail, err := g.countTail(ctx, count.Fork)
		if err != nil {
			return err
		}
		if _, err := g.step(core.TailCounted{Fork: count.Fork, Last: tail.LastOrdinal, Writes: tail.Writes,
			Bytes: tail.Bytes}, nil); err != nil {
			return err
		}
		message := &linkpb.ToSecondary{Message: &linkpb.ToSecondary_DivergentTail{DivergentTail: tail}}
		if err := stream.Send(message); err != nil {
			return err
		}
		// Wait for the other side to end the stream, so that closing does not overtake the message.
		_, _ = stream.Recv()
	}
	return fmt.Errorf("%w: %s", errRefused, refused.Message)
}

// streamEnded notes that the stream to the peer has ended.
func (g *Group) streamEnded() {
	g.changes.streamEnded()
	_, _ = g.step(core.Disconnected{Caller: true}, nil) // fails only when the group has failed
	g.remember(false)
}
