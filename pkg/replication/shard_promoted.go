package replication

import (
	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// promotedShard answers collectors after the copy has become primary: the copies of other shards may not have heard of
// the decision yet, and no other process may know it any more. It follows no attempt, because the decision is final.
// Shard.mu guards it.
type promotedShard struct {
	life epoch.Life
	seq  uint64
}

// promotedAt is the decision that this primary was promoted by, or nil.
func (s *Shard) promotedAt() *epoch.Decision {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.g.core.Meta.PromotedAt()
}

func (p *promotedShard) report(m epoch.Gather, d *epoch.Decision) epoch.Report {
	if p.life == 0 {
		p.life = NewLife(uuid.New())
	}
	p.seq++
	return epoch.Report{Attempt: m.Attempt, Life: p.life, Seq: p.seq, Decision: d}
}
