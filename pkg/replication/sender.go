package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// recordSource is the journal's cursor. Tests put themselves between it and the sender.
type recordSource interface {
	Next(maxBytes int) ([]journal.Record, error)
	Close()
}

// sender is the primary's end of one stream.
type sender struct {
	g      *Group
	stream link.Stream
	enc    *link.Encoder
	cursor recordSource
	// timeline is the one that Hello spoke of; what belongs to another needs another Hello.
	timeline string
	// session is the number of the stream's.
	session uint64
	// at is the last ordinal that was shipped or skipped by a sync-begin.
	at       uint64
	sequence uint64
	// horizon is the last one that was sent.
	horizon uint64
	// undo are the ranges that the peer wrote past a fork, gives up, and was not sent yet: see sendUndo.
	undo []byteRange
	// sentSmall is when the last batch was sent that the journal's durable end had cut short.
	sentSmall time.Time
	// asked is the last roleRequest that was sent on this stream. takingBack: one was to take the role back.
	asked      uint64
	takingBack atomic.Bool
	// exchange is of stamps with the secondary.
	exchange clocks.Exchange
	sync     streamSync
	// port is the way of comparisons through the stream.
	port *verifyPort

	// mu guards the window, which acknowledgements open.
	mu       sync.Mutex
	inFlight []sentBatch
	bytes    int
	// acknowledged: the peer acknowledged a batch. heard is when anything came from it.
	acknowledged bool
	heard        time.Time
	wake         signal

	// receiveEnded is closed when nothing comes from the peer any more; receiveErr says why from then on.
	receiveEnded chan struct{}
	receiveErr   error
}

type sentBatch struct {
	sequence uint64
	bytes    int
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
// window is full or nothing is left, and makes no other goroutine wait.
func (s *sender) loop(ctx context.Context) error {
	heartbeat := time.NewTicker(s.g.cfg.HeartbeatInterval)
	defer heartbeat.Stop()
	if err := s.sendHeartbeat(); err != nil {
		return err
	}
	for {
		if err := s.sendRoleRequest(); err != nil {
			return err
		}
		if err := s.sendVerify(); err != nil {
			return err
		}
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

// sendVerify sends what a comparison asks the secondary.
func (s *sender) sendVerify() error {
	select {
	case m := <-s.port.out:
		return s.stream.Send(m)
	default:
		return nil
	}
}

// sendSome sends at most one run of extents and one batch of records.
func (s *sender) sendSome() (sent bool, err error) {
	if s.sync.stage == syncStageExtents && len(s.undo) > 0 {
		if err := s.sendUndo(); err != nil {
			return false, err
		}
		sent = true
	} else if s.sync.stage == syncStageExtents {
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
		return true, s.restart(core.CursorLost{Retained: s.g.log.retained()})
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
	// The map, too, is looked at after the records were read: a volume's content is marked before the volume's record
	// is written. A record that came between an earlier look and the reading would be shipped outside of a sync, and
	// the peer's copy, with zeros for the content, be taken for whole.
	if s.wantsSync() {
		return true, s.restart(core.MapDirty{At: s.at})
	}
	if len(records) > 0 {
		if err := s.sendRecords(records); err != nil {
			return sent, err
		}
		sent = true
	}
	if s.sync.reachedTarget(s.at) {
		if s.g.members.needsSync() { // folded or added meanwhile, or about to be
			return sent || !s.g.members.awaitsJoining(), s.sync.moreExtents()
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
	if !m.Role.Ships() || m.Timeline() != s.timeline {
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
		if err := s.g.shipper.saveChangeMap(); err != nil {
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
		return fmt.Errorf("group %s: ordinal %d with %s does not fit in a batch", s.g.Name(), h.Ordinal,
			words.Count(len(data), "byte"))
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
		HeadOrdinal: head, DurableOrdinal: durable, Timing: timingToWire(timing),
		Demoted:      m.Role == core.RoleDemoted && !s.takingBack.Load(),
		FinalOrdinal: m.FinalOrdinal,
	}
	acked := s.g.core.Acked()
	s.g.mu.Unlock()
	h.LagBytes = s.g.lagBytes(acked)
	s.g.remembered.save(true)
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
		if answer := m.GetRoleAnswer(); answer != nil {
			if err := s.roleAnswered(answer); err != nil {
				return err
			}
		}
		if a := m.GetVerify(); a != nil {
			s.port.answered(a)
		}
		if q := m.GetRepair(); q != nil {
			s.g.verification.repairAsked(q)
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
	s.g.hearPeer()
	s.g.timed(&s.exchange, ack.Timing)
	if ack.DurableOrdinal > s.g.journal.Durable() {
		return fmt.Errorf("group %s: the peer acknowledged ordinal %d, past the durable one", s.g.Name(), ack.DurableOrdinal)
	}
	if _, err := s.g.step(core.Acked{Ordinal: ack.DurableOrdinal}, nil); err != nil {
		return err
	}
	s.g.shard.peerHas(ack.DurableOrdinal)
	if err := s.g.shipper.extentsAcked(ack.BatchSequence, deliveryFromWire(s.session, ack.Place)); err != nil {
		return err
	}
	s.g.trimmer.work.send()
	s.wake.send()
	return nil
}
