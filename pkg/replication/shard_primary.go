package replication

import (
	"fmt"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// holdBound is how long answers are held for an epoch at most, by this process's own clock, whatever died.
var holdBound = epoch.DefaultTiming().Hold

// ensurePrimary makes the state machine of a primary. The caller holds mu.
//
// The number of the first epoch is that of the wall clock in milliseconds at least: after a promotion, or where the
// marks have left the journal, nothing else says which numbers were used.
func (s *Shard) ensurePrimary() error {
	id, ok := s.Identity()
	if !ok || id.Role != core.RolePrimary {
		s.release()
		s.primary = nil
		return fmt.Errorf("%w: group %s is not primary here as a shard", ErrNoShard, s.g.Name())
	}
	if s.primary != nil && s.primary.ID() == id.ID && s.primary.Config().Version == id.Config.Version {
		return nil
	}
	s.release()
	marked := s.marks.last()
	if floor := (epoch.ID{Number: uint64(max(0, s.g.cfg.Now().UnixMilli()))}); marked.Before(floor) {
		marked = floor
	}
	s.primary, s.copy = epoch.NewShard(id.ID, NewLife(uuid.New()), id.Config, marked), nil
	s.shown.Store(nil)
	return nil
}

// prepare fixes the boundary of an epoch: between reading the head and holding answers nothing is appended.
func (s *Shard) prepare(m epoch.Prepare) (epoch.Message, error) {
	before := s.held
	answer, err := func() (epoch.Message, error) {
		s.g.log.mu.Lock()
		defer s.g.log.mu.Unlock()
		return s.stepPrimary(epoch.PrepareReceived{Prepare: m, Head: s.g.journal.Head()})
	}()
	if before != s.held {
		s.hold.release(before) // of an earlier epoch
	}
	return answer, err
}

// stepPrimary has the shard decide and carries out the effects. The caller holds mu, and with a preparation log.mu.
func (s *Shard) stepPrimary(e epoch.ShardEvent) (answer epoch.Message, err error) {
	if err := s.ensurePrimary(); err != nil {
		return nil, err
	}
	for _, effect := range s.primary.Step(e) {
		switch effect := effect.(type) {
		case epoch.PersistConfig:
			err = s.keepEpochs(func(kept *core.Epochs) { kept.Config = effect.Config })
		case epoch.Hold:
			s.holdFor(effect)
		case epoch.Release:
			if _, next := e.(epoch.PrepareReceived); !next { // prepare does it, without the lock that writers need
				s.release()
			}
		case epoch.AppendMark:
			err = s.appendMark(effect.Mark)
		case epoch.Reply:
			answer = effect.Message
		}
		if err != nil {
			// What the state machine believes is not so. The next one has another life, so nothing of this one counts.
			s.release()
			s.primary = nil
			return nil, err
		}
	}
	return answer, nil
}

// holdFor begins to hold answers. What an earlier epoch holds stays held until the caller of prepare releases it.
func (s *Shard) holdFor(e epoch.Hold) {
	if s.expires != nil {
		s.expires.Stop()
	}
	held := s.hold.begin(e.Boundary)
	s.held = held
	s.expires = time.AfterFunc(holdBound, func() {
		if s.hold.expire(held) {
			s.expired(e.Epoch)
		}
	})
}

func (s *Shard) expired(id epoch.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.primary != nil {
		_, _ = s.stepPrimary(epoch.HoldExpired{Epoch: id}) // releases
	}
}

// release ends the hold, if there is one. The caller holds mu.
func (s *Shard) release() {
	if s.expires != nil {
		s.expires.Stop()
		s.expires = nil
	}
	s.hold.release(s.held)
	s.held = nil
}

// appendMark puts a mark behind what was written since the boundary. It waits for no room: without it there is no
// epoch.
func (s *Shard) appendMark(mark epoch.Mark) error {
	if !s.held.commit() {
		return fmt.Errorf("%w: answers were held for too long", ErrUnmarked)
	}
	data := mark.Encode()
	entries := []journal.Entry{{Header: journal.Header{Kind: journal.KindEpoch, Length: uint32(len(data))}, Data: data}}
	if err := s.g.log.appendMark(entries); err != nil {
		return fmt.Errorf("%w: %w", ErrUnmarked, err)
	}
	s.marks.add(mark, entries[0].Header.Ordinal)
	return nil
}

// peerHas tells that the peer has everything up to an ordinal.
func (s *Shard) peerHas(ordinal uint64) {
	if !s.marks.behind(ordinal) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	passed := s.marks.pass(ordinal)
	if s.primary == nil || len(passed) == 0 {
		return
	}
	last := passed[len(passed)-1].Epoch
	if _, err := s.stepPrimary(epoch.MarkAcknowledged{Epoch: last}); err == nil {
		s.forgetMarks(last)
	}
}

// Adopt gives the shard a configuration that was issued here, durably.
func (s *Shard) Adopt(c epoch.Config) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.stepPrimary(epoch.Adopt{Config: c}); err != nil {
		return err
	}
	klog.InfoS("Shards of a group", "group", s.g.Name(), "shards", c.Shards, "version", c.Version)
	return nil
}

// HoldTimes says how long answers were held.
func (s *Shard) HoldTimes() HoldTimes { return s.hold.times.read() }
