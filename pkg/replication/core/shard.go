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
	// Decision is the epoch that a copy is promoted at, with the whole group. The copy follows no primary then.
	Decision *epoch.Decision `json:"decision,omitempty"`
	// Copy: it is the copy of a shard. What it had applied up to Since, no epoch says anything of.
	Copy  bool   `json:"copy,omitempty"`
	Since uint64 `json:"since,omitempty"`
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

func (EpochKept) event()     {}
func (EpochPassed) event()   {}
func (EpochsChanged) event() {}

// Decided is the epoch that the copy is to be promoted at, or nil.
func (m *Meta) Decided() *epoch.Decision {
	if m.Epochs == nil || m.Role != RoleSecondary {
		return nil
	}
	return m.Epochs.Decision
}

// keepsBase reports whether the base is that of an epoch, which outlives a sync.
func (m *Meta) keepsBase() bool { return m.Base != nil && m.Base.Epoch != nil }

// endDecision is called when a copy is primary: the shards that were promoted go on as a group.
func (m *Meta) endDecision() {
	if m.Epochs == nil {
		return
	}
	next := Epochs{Config: m.Epochs.Config}
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
