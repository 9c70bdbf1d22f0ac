package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// Shard is a group as a part of a larger one that is over several nodes: it carries out what package epoch decides.
// Every group has one; where the group is on one node it does nothing. shard_primary.go holds answers and appends
// marks, shard_copy.go shows the copy at complete epochs only. Messages between the nodes are package shards' to carry.
//
// # Concurrency
//
// All methods are safe for concurrent use. See the package comment for mu.
type Shard struct {
	g    *Group
	hold answerHold

	mu sync.Mutex
	// primary and copy are the state machines; nil where the group is not that. Each has a life of its own.
	primary *epoch.Shard
	copy    *epoch.Copy
	held    *heldAnswers
	expires *time.Timer
	// begins is where who waits for the beginning of a sync hears of it; nil for no waiter.
	begins chan epoch.BeginSync

	// marks are those in the journal.
	marks shardMarks
	// shown is where the copy is shown; nil before the first epoch.
	shown atomic.Pointer[epoch.Mark]
	// promoting: a goroutine carries out the decision.
	promoting atomic.Bool
	// promoted answers collectors when that is done.
	promoted promotedShard
	// fixes keep the shard openable at an epoch for a while.
	fixes epochFixes
}

func newShard(g *Group) *Shard { return &Shard{g: g} }

// Shard returns the group as a shard.
func (g *Group) Shard() *Shard { return g.shard }

// Errors of a shard.
var (
	// ErrNoShard: the group is on one node, or its role here is another one.
	ErrNoShard = errors.New("no such shard")
	// ErrUnmarked: the mark of an epoch could not be appended; the epoch is complete nowhere.
	ErrUnmarked = errors.New("the epoch has no mark")
)

// NewLife makes a number that is never used twice, of an identifier that is not.
func NewLife(id uuid.UUID) epoch.Life {
	return epoch.Life(max(binary.LittleEndian.Uint64(id[:]), 1))
}

// Identity is what a shard is.
type Identity struct {
	core.Shard
	// GroupName is the name of the group on this node, GroupID the same at both sites.
	GroupName, GroupID string
	Role               core.Role
	// Config has the shards, as a primary knows them; zero before the first.
	Config epoch.Config
	// Decided: the promotion of the copy is decided, or the primary was promoted so.
	Decided bool
	// Suspended: nothing is sent to the peer.
	Suspended bool
}

// Identity says which shard this is; false for a group that is on one node.
func (s *Shard) Identity() (Identity, bool) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	m := &s.g.core.Meta
	id := Identity{Shard: m.Shard, GroupName: m.Name, GroupID: m.GroupID, Role: m.Role,
		Decided: m.Decided() != nil || m.PromotedAt() != nil, Suspended: m.Flow == core.FlowSuspended}
	if m.Epochs != nil {
		id.Config = m.Epochs.Config
	}
	return id, m.Shard.Group != ""
}

// Deliver takes a message of a coordinator or a collector, and returns the answer; nil for none. Errors are ErrNoShard,
// ErrUnmarked, and those of the disk.
func (s *Shard) Deliver(m epoch.Message) (epoch.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch m := m.(type) {
	case epoch.Ask:
		return s.stepPrimary(epoch.AskReceived{Ask: m})
	case epoch.Prepare:
		return s.prepare(m)
	case epoch.Commit:
		return s.stepPrimary(epoch.CommitReceived{Commit: m})
	case epoch.Abort:
		return s.stepPrimary(epoch.AbortReceived{Abort: m})
	case epoch.Gather:
		if d := s.promotedAt(); d != nil {
			return s.promoted.report(m, d), nil
		}
		return s.stepCopy(epoch.GatherReceived{Gather: m})
	case epoch.Grant:
		return s.stepCopy(epoch.GrantReceived{Grant: m})
	case epoch.Decide:
		if d := s.promotedAt(); d != nil && d.Epoch == m.Decision.Epoch {
			return epoch.Decided{Attempt: m.Attempt, Life: m.Life, Epoch: d.Epoch}, nil
		}
		return s.stepCopy(epoch.DecideReceived{Decide: m})
	case epoch.Settled:
		return s.stepCopy(epoch.SettledReceived{Settled: m})
	}
	return nil, fmt.Errorf("%w: no shard takes a %T", ErrNoShard, m)
}

// keepEpochs stores what a shard keeps. The caller holds mu.
func (s *Shard) keepEpochs(change func(*core.Epochs)) error {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	var next core.Epochs
	if now := g.core.Meta.Epochs; now != nil {
		next = *now
	}
	change(&next)
	_, err := g.stepLocked(core.EpochsChanged{Epochs: next}, nil)
	return err
}

// follow takes over what the primary says of the shard. What it says wrong is not taken.
func (s *Shard) follow(next core.Settings, told core.Shard) core.Settings {
	before := next.Shard
	next.Shard = told
	if err := next.Check(); err != nil {
		klog.ErrorS(err, "What the primary says of the shard is not taken over", "group", s.g.Name())
		next.Shard = before
	}
	return next
}

// end releases what is held: the group is closed.
func (s *Shard) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.release()
	s.primary, s.copy = nil, nil
}

// markAt is a mark with the ordinal of its record.
type markAt struct {
	epoch.Mark
	ordinal uint64
}

// shardMarks are the marks in the journal, oldest first.
type shardMarks struct {
	mu   sync.Mutex
	list []markAt
	// covered is the first epoch behind whose boundary there are marks alone, up to the last mark; zero for none.
	covered epoch.ID
	// passed is how many of them the state machine of this role has heard of as durable, or as acknowledged.
	passed int
}

// maxMarkBytes bounds the data that is taken from a peer.
const maxMarkBytes = 16 << 10

// add takes a mark up. One that is not behind the last is there already.
func (m *shardMarks) add(mark epoch.Mark, ordinal uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.list)
	if n > 0 && m.list[n-1].ordinal >= ordinal {
		return
	}
	switch {
	case mark.Boundary+1 != ordinal:
		m.covered = epoch.ID{}
	case n == 0 || m.list[n-1].ordinal+1 != ordinal || m.covered.IsZero():
		m.covered = mark.Epoch
	}
	m.list = append(m.list, markAt{mark, ordinal})
}

// uncover has covers return nothing before the next mark.
func (m *shardMarks) uncover() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.covered = epoch.ID{}
}

// covers returns the first epoch that has everything up to an ordinal, and the last one; zero where the record there is
// not a mark, or does not follow its boundary.
func (m *shardMarks) covers(ordinal uint64) (covered, last epoch.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.list)
	if n == 0 || m.list[n-1].ordinal != ordinal || m.covered.IsZero() {
		return epoch.ID{}, epoch.ID{}
	}
	return m.covered, m.list[n-1].Epoch
}

// rewind forgets those behind an ordinal, which becomes the last one.
func (m *shardMarks) rewind(ordinal uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = slices.DeleteFunc(m.list, func(at markAt) bool { return at.ordinal > ordinal })
	m.passed, m.covered = min(m.passed, len(m.list)), epoch.ID{}
}

// pass returns the marks up to an ordinal that were not returned before.
func (m *shardMarks) pass(ordinal uint64) []epoch.Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	var passed []epoch.Mark
	for m.passed < len(m.list) && m.list[m.passed].ordinal <= ordinal {
		passed = append(passed, m.list[m.passed].Mark)
		m.passed++
	}
	return passed
}

// behind reports whether there are marks up to an ordinal that were not passed.
func (m *shardMarks) behind(ordinal uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.passed < len(m.list) && m.list[m.passed].ordinal <= ordinal
}

// all returns the marks, oldest first.
func (m *shardMarks) all() []markAt {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]markAt(nil), m.list...)
}

// last is the newest one's epoch.
func (m *shardMarks) last() epoch.ID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.list) == 0 {
		return epoch.ID{}
	}
	return m.list[len(m.list)-1].Epoch
}

// forget drops those before an epoch, but not those that were not passed.
func (m *shardMarks) forget(before epoch.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n < m.passed && m.list[n].Epoch.Before(before) {
		n++
	}
	m.list, m.passed = append([]markAt(nil), m.list[n:]...), m.passed-n
}

// foundMark is a record that recovery saw.
type foundMark struct {
	header journal.Header
	loc    journal.Location
}

// recallMarks takes up the marks that are in the journal. The group is not in use yet.
func (s *Shard) recallMarks(found []foundMark) error {
	for _, f := range found {
		if f.header.Length > maxMarkBytes {
			continue
		}
		data := make([]byte, f.header.Length)
		if err := s.g.journal.ReadData(f.loc, 0, data); err != nil {
			return err
		}
		if journal.DataCRC(data) != f.header.DataCRC {
			return fmt.Errorf("group %s: mark of an epoch at ordinal %d does not match its checksum", s.g.Name(),
				f.header.Ordinal)
		}
		s.noteMark(f.header, data)
	}
	return nil
}

// noteMark takes up a mark whose record is in the journal. One that is wrong is left out: its record has an ordinal, so
// the stream goes on with it, and its epoch is never complete.
func (s *Shard) noteMark(h journal.Header, data []byte) {
	var mark epoch.Mark
	err := fmt.Errorf("mark of %s, the limit is %d", words.Count(len(data), "byte"), maxMarkBytes)
	if len(data) <= maxMarkBytes {
		mark, err = epoch.DecodeMark(data)
	}
	if err == nil && mark.Boundary >= h.Ordinal {
		err = fmt.Errorf("mark of epoch %s at ordinal %d for the boundary %d", mark.Epoch, h.Ordinal, mark.Boundary)
	}
	if err != nil {
		klog.ErrorS(err, "The mark of an epoch is not taken", "group", s.g.Name(), "ordinal", h.Ordinal)
		return
	}
	s.marks.add(mark, h.Ordinal)
}

// Shards returns the groups of the site that are shards.
func (s *Site) Shards() []*Shard {
	var list []*Shard
	for _, g := range s.Groups() {
		if _, ok := g.shard.Identity(); ok {
			list = append(list, g.shard)
		}
	}
	return list
}
