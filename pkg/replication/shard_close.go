package replication

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// What a shard does while its group is demoted as a whole, and while that is taken back. epoch.NextOfDemotion says in
// which order; the caller knows all shards. Every call may be repeated.

// Standing is what the shard does about a demotion of its group.
func (s *Shard) Standing() epoch.Standing {
	// A mark that is being appended is in the journal before it is known, so the head is read last, and without log.mu a
	// record that follows makes Covered zero.
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.g
	g.mu.Lock()
	m := &g.core.Meta
	out := epoch.Standing{Shard: m.Shard.ID}
	switch m.Role {
	case core.RoleSecondary:
		out.Stand = epoch.StandFollowing
	case core.RoleDemoted:
		out.Stand = epoch.StandDemoted
	default:
		out.Stand = epoch.StandOpen
		if m.Closed() {
			out.Stand, out.Closing = epoch.StandClosed, m.Epochs.Closing
		}
	}
	if m.Epochs != nil {
		out.Final = m.Epochs.Final
	}
	g.mu.Unlock()
	if out.Stand == epoch.StandClosed {
		out.Covered, out.Marked = s.marks.covers(g.journal.Head())
	}
	return out
}

// CloseWrites ends the writes of a primary, durably; epochs go on. It reports whether it did so now. No volume may be
// attached. Errors are core.ErrPrecondition, and nothing was changed.
func (s *Shard) CloseWrites() (changed bool, err error) {
	before, needsSync := s.Standing().Stand, s.g.members.needsSync()
	_, err = s.g.stopWrites(func(_ uint64, _ *core.Tail, attached []string) core.Event {
		return core.CloseShard{Closing: NewLife(uuid.New()), Attached: attached, NeedsSync: needsSync}
	})
	if err != nil || before != epoch.StandOpen {
		return false, err
	}
	s.marks.uncover() // a sync may have ended behind the last one
	klog.InfoS("Shard takes no more writes", "group", s.g.Name())
	return true, nil
}

// OpenWrites lets a primary take writes again. A demoted shard has to be taken back before.
func (s *Shard) OpenWrites() error {
	_, err := s.g.step(core.OpenShard{}, nil)
	return err
}

// Demote gives the primary role up, as Group.Demote does. The shard must not have been opened since it was closed under
// a name, and at has everything that it wrote.
func (s *Shard) Demote(closing epoch.Life, at epoch.ID) error {
	_, err := s.g.demote(core.Demote{Closing: closing, Epoch: at})
	return err
}

// TakeBack makes a demoted shard primary again, as Group.PromoteWithin does; it stays closed for writes. Other roles
// are an error.
func (s *Shard) TakeBack(ctx context.Context, force bool) error {
	switch s.Standing().Stand {
	case epoch.StandOpen, epoch.StandClosed:
		return nil
	case epoch.StandFollowing:
		return fmt.Errorf("%w: group %s follows %s, which took over", core.ErrPrecondition, s.g.Name(), s.g.peer())
	}
	_, err := s.g.PromoteWithin(ctx, force)
	return err
}

// Suspend is Group.Suspend. The caller does it at all shards of the group.
func (s *Shard) Suspend() (changed bool, err error) { return s.g.Suspend() }

// Resume is Group.Resume.
func (s *Shard) Resume() (changed bool, err error) { return s.g.Resume() }

// Verify is Group.Verify. It reports false for a comparison that runs already.
func (s *Shard) Verify() (changed bool, err error) {
	if s.g.verification.running() {
		return false, nil
	}
	err = s.g.Verify()
	return err == nil, err
}

// SetEpochInterval changes the time between two epochs; the shard with the lowest number cuts them.
func (s *Shard) SetEpochInterval(millis int64) (changed bool, err error) {
	if id, _ := s.Identity(); id.EpochMillis == millis {
		return false, nil
	}
	err = s.g.Modify(func(next *core.Settings) { next.Shard.EpochMillis = millis })
	return err == nil, err
}

// PlanYield is Group.PlanYield.
func (s *Shard) PlanYield(ctx context.Context) (*YieldPlan, error) { return s.g.PlanYield(ctx) }

// Yield is Group.Yield.
func (s *Shard) Yield(ctx context.Context) (*core.Yield, error) { return s.g.Yield(ctx) }
