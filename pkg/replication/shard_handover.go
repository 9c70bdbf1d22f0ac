package replication

import (
	"context"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// takeOverPatience is how long a copy waits for those of the other shards, when its demoted primary asks it to take
// over.
const takeOverPatience = 30 * time.Second

// TakesOver says what makes all copies of a group over several nodes primary at this site, when the demoted site asks
// for it. It is called with the name of the group, and may be called for several of its shards at a time.
func (s *Site) TakesOver(promote func(ctx context.Context, group string) error) {
	s.takesOver.Store(&promote)
}

// takeOver makes the copy primary because its demoted primary asks for it: that of a shard with the whole group.
func (s *Shard) takeOver() error {
	id, shard := s.Identity()
	if !shard || id.Role != core.RoleSecondary {
		_, err := s.g.Promote(false)
		return err
	}
	promote := s.g.site.takesOver.Load()
	if promote == nil {
		return fmt.Errorf("%w: group %s is a shard, and the replicator at %s does not know the other nodes of its site",
			core.ErrPrecondition, s.g.Name(), s.g.cfg.Site)
	}
	ctx, cancel := context.WithTimeout(s.g.ctx, takeOverPatience)
	defer cancel()
	return (*promote)(ctx, id.Group)
}

// HandOver has the peer's site take the whole group over, and returns when this demoted shard follows its peer.
func (s *Shard) HandOver(ctx context.Context) error {
	h := &s.g.handover
	h.mu.Lock()
	defer h.mu.Unlock()
	switch roleOf(s.g) {
	case core.RoleSecondary:
		return nil
	case core.RolePrimary:
		return fmt.Errorf("%w: group %s is not demoted at %s any more", core.ErrPrecondition, s.g.Name(), s.g.cfg.Site)
	}
	return h.handOver(ctx)
}

// learnConfig takes the shards of the group from the marks that have arrived, if this is a copy. A collector may not
// have asked for them yet. Copies that are promoted with different ones would issue different configurations of one
// version, and cut no epoch any more.
func (s *Shard) learnConfig() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.copyOf().copy {
		return nil
	}
	for _, m := range s.marks.all() {
		if err := s.keepConfig(m.Config); err != nil {
			return err
		}
	}
	return nil
}

// PromotePlanned makes the copy primary as Group.Promote does without force: with everything that its primary wrote.
// The caller knows that this holds for all shards of the group.
func (s *Shard) PromotePlanned() error {
	if err := s.learnConfig(); err != nil {
		return err
	}
	_, err := s.g.promoteWhole(false)
	return err
}
