package replication

import (
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// MayLeave says why the shard cannot leave its group: only an empty one can, since its volumes would lose their order
// with those of the other shards. Its copy has to have taken the volumes out, too: when the group has gone on without
// the shard, the copy goes past no epoch any more. That resolves itself (core.ErrNotYet). A shard that has left only
// has to be empty.
func (s *Shard) MayLeave() error {
	if err := s.empty(); err != nil {
		return err
	}
	id, _ := s.Identity()
	status := s.g.Status()
	if acked := status.AcknowledgedOrdinal; id.Config.Has(id.ID) && s.HasPeer() &&
		(acked == nil || *acked < status.HeadOrdinal) {
		return fmt.Errorf("%w: %s does not have all of group %s yet, and could not take its volumes out after it has left; "+
			"see %s", core.ErrNotYet, status.Peer, status.Name,
			core.Command{Site: s.g.cfg.Site, Verb: core.CommandStatus, Name: status.Name})
	}
	return nil
}

// empty is an error unless the shard is primary and has no volumes.
func (s *Shard) empty() error {
	g := s.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	if m.Role != core.RolePrimary {
		return fmt.Errorf("%w: group %s is not primary at %s", core.ErrPrecondition, m.Name, m.Site)
	}
	for i := range m.Members {
		if !m.Members[i].State.Removed() {
			return fmt.Errorf("%w: group %s has volumes, %s among them; take them out first (slipctl group remove), so that no "+
				"write loses its order", core.ErrPrecondition, m.Name, m.Members[i].VolumeID)
		}
	}
	return nil
}

// HasPeer reports whether the shard has a copy at another site.
func (s *Shard) HasPeer() bool { return s.g.peer() != "" }

// GiveUp issues the configuration without shards that a person gave up. The caller knows that no shard has a later one.
func (s *Shard) GiveUp(lost []epoch.ShardID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ensurePrimary(); err != nil {
		return err
	}
	next := s.primary.Force(lost)
	if !next.Has(s.primary.ID()) {
		return fmt.Errorf("%w: group %s is the shard that is to be given up", core.ErrPrecondition, s.g.Name())
	}
	if _, err := s.stepPrimary(epoch.Adopt{Config: next}); err != nil {
		return err
	}
	klog.InfoS("Shards were given up", "group", s.g.Name(), "lost", lost, "shards", next.Shards, "version", next.Version)
	return nil
}

// left is an error for a shard that has left its group: what is written there has no order with the others.
func (s *Shard) left() error {
	if id, ok := s.Identity(); ok && id.Config.Version.Number > 0 && !id.Config.Has(id.ID) && id.Role == core.RolePrimary {
		return fmt.Errorf("%w: group %s was shard %d of %s and has left it; delete the group (slipctl group delete), or "+
			"choose another one", core.ErrPrecondition, id.GroupName, id.ID, id.Group)
	}
	return nil
}
