package epoch

import (
	"errors"
	"fmt"
	"testing"
)

// TestSearchDemotions visits all states of two shards that are demoted as a whole, by a caller that knows of each shard
// only what it said some time ago. Meanwhile shards are written to, epochs come about in part and in whole, and shards
// are taken back and opened one by one, in any order. A shard must be demoted only at an epoch that has everything it
// wrote; and when all are, it is one epoch on all of them.
func TestSearchDemotions(t *testing.T) {
	first := demotionModel{demotionBounds: demotionBounds{epochs: 2, writes: 1, closings: 3, openings: 2}}
	if *searchDeep {
		first.demotionBounds = demotionBounds{epochs: demotionEpochs, writes: 2, closings: 3, openings: 2}
	}
	for i := range first.shards {
		first.shards[i] = demotedShard{Standing: Standing{Shard: ShardID(i), Stand: StandOpen}}
		first.heard[i] = first.shards[i].says()
	}
	seen, queue := map[demotionModel]bool{first: true}, []demotionModel{first}
	done := 0
	for len(queue) > 0 {
		m := queue[0]
		queue = queue[1:]
		for _, next := range m.successors() {
			if seen[next.model] {
				continue
			}
			seen[next.model] = true
			finished, err := next.model.check()
			if err == nil {
				err = next.err
			}
			if err != nil {
				t.Fatalf("after %s: %v\nbefore %+v\nafter  %+v", next.what, err, m, next.model)
			}
			if finished {
				done++
			}
			queue = append(queue, next.model)
		}
	}
	t.Logf("%d states, the demotion has ended in %d", len(seen), done)
	if done == 0 {
		t.Error("no demotion ended, so nothing was checked")
	}
}

// demotionEpochs is how many epochs there are at most.
const demotionEpochs = 3

// demotionBounds bound a search.
type demotionBounds struct{ epochs, writes, closings, openings int }

// demotedShard is a shard with what its journal has. Standing has the truth about Covered and Marked.
type demotedShard struct {
	Standing
	writes int
	// has is how many writes each epoch has here, plus one; 0: no mark.
	has   [demotionEpochs + 1]int
	dirty bool // a write is last
}

// says is what the shard answers.
func (s demotedShard) says() Standing {
	if s.dirty || s.Stand != StandClosed {
		s.Covered, s.Marked = ID{}, ID{}
	}
	return s.Standing
}

func (s *demotedShard) mark(number int) {
	id := ID{Number: uint64(number)}
	if s.dirty || s.Covered.IsZero() {
		s.Covered = id
	}
	s.Marked, s.dirty = id, false
	s.has[number] = s.writes + 1
}

// complete reports whether an epoch has all that the shard wrote.
func (s *demotedShard) complete(at ID) bool {
	return !at.IsZero() && s.has[at.Number] == s.writes+1
}

type demotionModel struct {
	demotionBounds // what is left
	shards         [2]demotedShard
	heard          [2]Standing
	last           int // epoch
	lives          Life
}

type demotionSuccessor struct {
	what  string
	model demotionModel
	err   error
}

func (m demotionModel) successors() (list []demotionSuccessor) {
	add := func(what string, change func(next *demotionModel) error) {
		next := m
		err := change(&next)
		list = append(list, demotionSuccessor{what, next, err})
	}
	primary := func(i int) bool { return m.shards[i].Stand == StandOpen || m.shards[i].Stand == StandClosed }
	for i := range m.shards {
		if m.shards[i].Stand == StandOpen && m.writes > 0 {
			add(fmt.Sprint("write ", i), func(next *demotionModel) error {
				s := &next.shards[i]
				s.writes, s.dirty = s.writes+1, true
				next.writes--
				return nil
			})
		}
		if primary(i) && m.epochs > 0 {
			add(fmt.Sprint("an epoch in part at ", i), func(next *demotionModel) error {
				next.epochs, next.last = next.epochs-1, next.last+1
				next.shards[i].mark(next.last)
				return nil
			})
		}
		if s := m.shards[i]; s.Stand == StandDemoted && m.openings > 0 {
			add(fmt.Sprint("take back ", i), func(next *demotionModel) error {
				next.shards[i].Stand = StandClosed
				next.openings--
				return nil
			})
		}
		if s := m.shards[i]; s.Stand == StandClosed && m.openings > 0 {
			add(fmt.Sprint("open ", i), func(next *demotionModel) error {
				s := &next.shards[i]
				s.Stand, s.Closing, s.Final = StandOpen, 0, ID{}
				next.openings--
				return nil
			})
		}
		add(fmt.Sprint("hear of ", i), func(next *demotionModel) error {
			next.heard[i] = next.shards[i].says()
			return nil
		})
	}
	if primary(0) && primary(1) && m.epochs > 0 {
		add("an epoch", func(next *demotionModel) error {
			next.epochs, next.last = next.epochs-1, next.last+1
			for i := range next.shards {
				next.shards[i].mark(next.last)
			}
			return nil
		})
	}
	step, err := NextOfDemotion(m.heard[:])
	if err != nil && !errors.Is(err, ErrRefused) {
		add("a step", func(*demotionModel) error { return err })
	}
	for _, id := range step.Close {
		add(fmt.Sprint("close ", id), func(next *demotionModel) error {
			if s := &next.shards[id]; s.Stand == StandOpen && next.closings > 0 {
				next.closings, next.lives = next.closings-1, next.lives+1
				s.Stand, s.Closing, s.Final = StandClosed, next.lives, ID{}
			}
			return nil
		})
	}
	for _, told := range step.Demote {
		add(fmt.Sprintf("demote %d at %s", told.Shard, step.Epoch), func(next *demotionModel) error {
			s := &next.shards[told.Shard]
			if s.Stand != StandClosed || s.Closing != told.Closing {
				return nil // refused by the shard
			}
			s.Stand, s.Final = StandDemoted, step.Epoch
			if !s.complete(step.Epoch) {
				return fmt.Errorf("shard %d is demoted at epoch %s, which has not all that it wrote", told.Shard, step.Epoch)
			}
			return nil
		})
	}
	return list
}

// check looks at what a caller would be told that hears all shards at one instant.
func (m *demotionModel) check() (done bool, err error) {
	var now []Standing
	for i := range m.shards {
		now = append(now, m.shards[i].says())
	}
	step, err := NextOfDemotion(now)
	if err != nil || !step.Done {
		return false, nil
	}
	for i := range m.shards {
		if s := &m.shards[i]; s.Stand != StandDemoted || !s.complete(step.Epoch) {
			return true, fmt.Errorf("the demotion has ended at epoch %s, and shard %d is %s and has more", step.Epoch, i,
				s.Stand)
		}
	}
	return true, nil
}
