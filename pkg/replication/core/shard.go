package core

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// Shard says which part of a group over several nodes a group of one node is. It is comparable with ==.
type Shard struct {
	// Group is the name of the whole group; empty: none, and then all fields are zero.
	Group string `json:"group,omitempty"`
	// ID is the number of this shard in the group, the same at both sites.
	ID epoch.ShardID `json:"id,omitempty"`
	// EpochMillis is the time between two epochs; 0 for the default. That of the shard with the lowest number counts.
	EpochMillis int64 `json:"epochMillis,omitempty"`
}

// Bounds of the time between two epochs.
const (
	MinEpochMillis = 60
	MaxEpochMillis = 60_000
)

var shardGroupPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?$`)

func (s *Shard) check() error {
	switch {
	case s.Group == "" && *s != Shard{}:
		return fmt.Errorf("shard %d of a group without a name", s.ID)
	case s.Group == "":
	case !shardGroupPattern.MatchString(s.Group):
		return fmt.Errorf("shard of group %.80q: want lower-case letters, digits, '-' and '.', at most 128", s.Group)
	case s.EpochMillis != 0 && (s.EpochMillis < MinEpochMillis || s.EpochMillis > MaxEpochMillis):
		return fmt.Errorf("time between epochs %d ms, must be 0 (the default) or from %d to %d", s.EpochMillis,
			MinEpochMillis, MaxEpochMillis)
	}
	return nil
}

// Epochs is what a shard keeps of the epochs of its group. It is replaced, never changed.
type Epochs struct {
	// Config has the shards of the group, as a primary knows them.
	Config epoch.Config `json:"config,omitzero"`
	// Decision is the epoch that a copy is promoted at, with the whole group. The copy follows no primary then. A primary
	// keeps it, for copies that have not heard of it, until it is demoted.
	Decision *epoch.Decision `json:"decision,omitempty"`
	// Copy: it is the copy of a shard. What it had applied up to Since, no epoch says anything of.
	Copy  bool   `json:"copy,omitempty"`
	Since uint64 `json:"since,omitempty"`
	// Closing is not 0 while the shard takes no writes because its group is being demoted as a whole; it names this time
	// of being closed. Final is the epoch that it was demoted at then.
	Closing epoch.Life `json:"closing,omitempty"`
	Final   epoch.ID   `json:"final,omitzero"`
	// Separate: the copy was whole as one of a group of its own when it became that of a shard, and has shown no epoch
	// since.
	Separate bool `json:"separate,omitempty"`
}

func (e *Epochs) clone() *Epochs {
	e = pointed(e)
	if e == nil {
		return nil
	}
	e.Config.Shards = slices.Clone(e.Config.Shards)
	if e.Decision = pointed(e.Decision); e.Decision != nil {
		d := e.Decision
		d.Config.Shards, d.Without = slices.Clone(d.Config.Shards), slices.Clone(d.Without)
	}
	return e
}

func (e *Epochs) validate() error {
	if e == nil {
		return nil
	}
	if d := e.Decision; d != nil {
		if err := d.Config.Validate(); err != nil {
			return fmt.Errorf("decision about epoch %s: %w", d.Epoch, err)
		}
	}
	if e.Config.Version.Number == 0 {
		return nil
	}
	return e.Config.Validate()
}

// EpochKept: a whole copy that is a shard is about to show writes past the end of the last epoch that its group can be
// promoted at. Base is what it was there.
type EpochKept struct{ Base *Base }

// EpochPassed: the group has a later complete epoch, which the copy can show without its base.
type EpochPassed struct{}

// EpochsChanged: the shard has another configuration, or a copy the decision of a promotion.
type EpochsChanged struct{ Epochs Epochs }

// CloseShard: a primary that is a shard is to take no more writes, before its group is demoted as a whole. Closing is a
// name that was never used before.
type CloseShard struct {
	Closing  epoch.Life
	Attached []string // volumes that are in use here
	// NeedsSync: the peer lacks extents that the journal does not hold.
	NeedsSync bool
}

// OpenShard: it is to take writes again.
type OpenShard struct{}

func (EpochKept) event()     {}
func (EpochPassed) event()   {}
func (EpochsChanged) event() {}
func (CloseShard) event()    {}
func (OpenShard) event()     {}

// Decided is the epoch that the copy is to be promoted at, or nil.
func (m *Meta) Decided() *epoch.Decision {
	if m.Epochs == nil || m.Role != RoleSecondary {
		return nil
	}
	return m.Epochs.Decision.Of(m.Shard.ID)
}

// keepsBase reports whether the base is that of an epoch, which outlives a sync.
func (m *Meta) keepsBase() bool { return m.Base != nil && m.Base.Epoch != nil }

// PromotedAt is the epoch that a primary was promoted at as a shard, or nil.
func (m *Meta) PromotedAt() *epoch.Decision {
	if m.Epochs == nil || m.Role != RolePrimary {
		return nil
	}
	return m.Epochs.Decision
}

// endShardRole is called when the role has changed: a site that is not primary any more forgets the decision that it
// was promoted by, and a secondary that it was closed.
func (m *Meta) endShardRole() {
	if m.Epochs == nil || m.Role == RolePrimary {
		return
	}
	next := *m.Epochs
	next.Decision = nil
	if m.Role == RoleSecondary {
		next.Closing, next.Final = 0, epoch.ID{}
	}
	m.Epochs = &next
}

// endDecision is called when a copy is primary: the shards that were promoted go on as a group.
func (m *Meta) endDecision() {
	if m.Epochs == nil {
		return
	}
	next := Epochs{Config: m.Epochs.Config, Decision: m.Epochs.Decision}
	if d := m.Epochs.Decision; d != nil {
		next.Config = d.Promoted()
	}
	m.Epochs = &next
}

func (g *Group) epochKept(e EpochKept) {
	m := &g.Meta
	if m.Role == RoleSecondary && m.Copy == CopyWhole && m.Base == nil {
		m.Base = e.Base
		g.persist()
	}
}

func (g *Group) epochPassed() {
	m := &g.Meta
	if m.Role == RoleSecondary && m.Copy == CopyWhole && m.keepsBase() {
		m.Base = nil
		g.persist()
	}
}

func (g *Group) epochsChanged(e EpochsChanged) {
	g.Meta.Epochs = &e.Epochs
	g.persist()
}

// Closed reports whether a primary takes no writes because its group is being demoted.
func (m *Meta) Closed() bool {
	return m.Role == RolePrimary && m.Epochs != nil && m.Epochs.Closing != 0
}

// closedText says why there are no writes; "" where there are.
func (m *Meta) closedText() string {
	if !m.Closed() {
		return ""
	}
	return fmt.Sprintf("no writes: %s is being demoted as a whole; to go on: %s; to take it back: %s", m.Shard.Group,
		Command{m.Site, CommandDemote, m.Name}, Command{m.Site, CommandPromote, m.Name})
}

// closeShard ends the writes of a shard. Repeating it keeps the name.
func (g *Group) closeShard(e CloseShard) error {
	m := &g.Meta
	if m.Role != RolePrimary || m.Closed() {
		return nil
	}
	if err := g.mayDemote(e.Attached, CommandDemote); err != nil {
		return err
	}
	if g.link != LinkStreaming || m.Sync != SyncDone || e.NeedsSync {
		// A sync that ends behind the last epoch would leave the copy without one.
		return fmt.Errorf("%w: group %s has no whole copy at %s that is connected, and the copies of %s are to end at one "+
			"epoch; see %s", ErrNotYet, m.Name, m.Peer, m.Shard.Group, Command{m.Site, CommandStatus, m.Name})
	}
	next := Epochs{}
	if m.Epochs != nil {
		next = *m.Epochs
	}
	next.Closing, next.Final = e.Closing, epoch.ID{}
	m.Epochs = &next
	g.persist()
	return nil
}

// openShard lets a shard be written to again.
func (g *Group) openShard() error {
	m := &g.Meta
	if m.Role == RoleDemoted {
		return fmt.Errorf("%w: group %s is demoted at %s; take that back first: %s", ErrPrecondition, m.Name, m.Site,
			Command{m.Site, CommandPromote, m.Name})
	}
	if m.Closed() {
		next := *m.Epochs
		next.Closing, next.Final = 0, epoch.ID{}
		m.Epochs = &next
		g.persist()
	}
	return nil
}

// demotesShard checks that a shard is demoted as it was when the epoch was found to have everything, and notes the
// epoch.
func (g *Group) demotesShard(e Demote) error {
	m := &g.Meta
	if m.Shard.Group == "" {
		return nil
	}
	if !m.Closed() || m.Epochs.Closing != e.Closing || e.Epoch.IsZero() {
		return fmt.Errorf("%w: group %s is a shard, and was opened again since its group began to be demoted; to begin "+
			"anew: %s", ErrPrecondition, m.Name, Command{m.Site, CommandDemote, m.Name})
	}
	next := *m.Epochs
	next.Final = e.Epoch
	m.Epochs = &next
	return nil
}
