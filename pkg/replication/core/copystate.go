package core

import (
	"fmt"
	"slices"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// CopyState is what a secondary's copy is.
//
//	             SessionReceived with Sync, SyncBeginReceived
//	whole -------------------------------------------------> awaiting
//	  ^                                                         |
//	  |        SyncEndDurable                   SyncBeginDurable|
//	  +---------------------------- partial <-------------------+
//
//	awaiting, partial --Promote by force, with a Base--> rolling back --ImagesRestored, RolledBack--> whole, as primary
//	whole --Promote to a point, TakeTrialBack--> rolling back --ImagesRestored, RolledBack--> whole; see Trial
//
// A sync of a copy that was whole is one transaction: Meta.Base says what the copy was before, until it is whole again.
// A copy that is a shard keeps the base longer, until its group has a complete epoch that the copy can show: see
// EpochKept.
type CopyState uint8

const (
	// CopyPartial: it is no prefix of its primary's ordinals. The end of a sync that is in the journal makes it whole.
	CopyPartial CopyState = iota
	// CopyAwaiting: it is no prefix, and the beginning of the sync that will make it one is not in the journal yet. Ends
	// of syncs in there are of earlier ones.
	CopyAwaiting
	// CopyWhole: it is a prefix of its primary's ordinals.
	CopyWhole
	// CopyRollingBack: it was promoted in the middle of a sync or to a point, or such a promotion is taken back, and it
	// becomes what Meta.Base says. This is decided for good.
	CopyRollingBack
)

func (s CopyState) String() string {
	return [...]string{"partial", "awaiting a sync", "whole", "rolling back"}[s]
}

// Base is a whole copy as it was before a sync began. The caller has preserved its images before core hears of it. A
// Base is replaced, never changed.
type Base struct {
	// Set identifies the preserved images.
	Set     string `json:"set"`
	Ordinal uint64 `json:"ordinal"`
	// UnixNanos is when the sync began, by this site's wall clock.
	UnixNanos int64 `json:"unixNanos"`
	// Timelines, Tail, Horizon and Members are those of that instant. A nil Tail was not known.
	Timelines []Timeline `json:"timelines"`
	Tail      *Tail      `json:"tail,omitempty"`
	Horizon   uint64     `json:"horizon,omitempty"`
	Members   MemberList `json:"members,omitempty"`
	// Epoch is the mark of the epoch that the base is the end of; nil where the copy is no shard.
	Epoch *epoch.Mark `json:"epoch,omitempty"`
	// RollBack is set while the copy becomes this base, and primary with it.
	RollBack *RollBack `json:"rollBack,omitempty"`
}

// RollBack is a promotion in the middle of a sync.
type RollBack struct {
	// Timeline is the one that forks at Base.Ordinal, at UnixNanos.
	Timeline  string `json:"timeline"`
	UnixNanos int64  `json:"unixNanos"`
	// Restored: the images are those of the base, and what is left to discard is in the journal.
	Restored bool `json:"restored,omitempty"`
	// Back: a trial is taken back, and the group becomes secondary with the base.
	Back bool `json:"back,omitempty"`
}

// Has reports whether a volume was a member.
func (b *Base) Has(volumeID string) bool {
	is := func(m Member) bool { return m.VolumeID == volumeID && !m.Removed() }
	return b != nil && slices.ContainsFunc(b.Members, is)
}

// opensAs says what a promotion gives in the middle of a sync.
func (b *Base) opensAs() string {
	return fmt.Sprintf("opens as of ordinal %d (%s) until the sync ends", b.Ordinal,
		time.Unix(0, b.UnixNanos).UTC().Format(time.RFC3339))
}

func (b *Base) validate() error {
	atBase := b.RollBack != nil && b.RollBack.Restored // as a shard at the end of an epoch is from the beginning
	if b.Set == "" && !atBase || len(b.Timelines) == 0 {
		return fmt.Errorf("the state before a sync has no images or no timeline")
	}
	return CheckMembers(nil, b.Members)
}

// restored is the list of members after a roll back: the base's. Members that came later have left, so that no other
// volume gets their indices.
func (b *Base) restored(now []Member) []Member {
	list := slices.Clone(b.Members)
	for _, m := range now {
		if !slices.ContainsFunc(list, func(old Member) bool { return old.Index == m.Index }) {
			m.Drop()
			list = append(list, m)
		}
	}
	return list
}

// ImagesRestored: the images are those of Meta.Base, durably.
type ImagesRestored struct{}

// RolledBack: images and journal are those of Meta.Base, durably: the last ordinal here is its Ordinal.
type RolledBack struct{ Now clocks.Instant }

func (ImagesRestored) event() {}
func (RolledBack) event()     {}

// NeedsBase reports whether the next SessionReceived (session, with its sync) or SyncBeginReceived makes a whole copy
// one that is not. The caller preserves it then, and tells of it in that event. The base of an epoch outlives a sync: a
// copy that has one, and is whole again, agrees with the other copies once more on where it goes back to.
func (g *Group) NeedsBase(session, sync bool) bool {
	if g.Meta.Base != nil && !g.Meta.keepsBase() {
		return false
	}
	if session {
		f := g.following
		return f != nil && (f.consistent || f.yield != nil && g.Whole()) && sync
	}
	return g.Meta.Role == RoleSecondary && g.Meta.Copy == CopyWhole
}

// Whole reports whether what is here now is one instant.
func (g *Group) Whole() bool { return g.Meta.Role.Ships() || g.Meta.Copy == CopyWhole }

// setCopy changes the state of a secondary's copy. A whole one needs no base.
func (g *Group) setCopy(state CopyState, base *Base) {
	m := &g.Meta
	if m.Copy == CopyRollingBack || m.Copy == state && m.Base == base {
		return
	}
	m.Copy, m.Base = state, base
	g.persist()
}

func (g *Group) syncBegins(base *Base) {
	if g.Meta.Base != nil {
		base = g.Meta.Base // from before an interrupted sync, which this one continues
	} else if g.Meta.Copy != CopyWhole {
		base = nil
	}
	g.setCopy(CopyAwaiting, base)
}

// rollBack decides a promotion in the middle of a sync, or at the end of an epoch.
func (g *Group) rollBack(e Promote) {
	m := &g.Meta
	base := *m.Base
	// Without a set the images are those of the base already.
	base.RollBack = &RollBack{Timeline: e.NewTimeline, UnixNanos: e.Now.WallNanos, Restored: base.Set == ""}
	at := e
	at.Durable = base.Ordinal
	m.Loss = g.boundLoss(at)
	m.Copy, m.Base = CopyRollingBack, &base
	g.persist()
}

func (g *Group) imagesRestored() {
	m := &g.Meta
	if m.Copy != CopyRollingBack || m.Base.RollBack.Restored {
		return
	}
	base, roll := *m.Base, *m.Base.RollBack
	roll.Restored = true
	base.RollBack = &roll
	m.Base = &base
	g.persist()
}

// rolledBack completes a promotion in the middle of a sync.
func (g *Group) rolledBack(e RolledBack) {
	m := &g.Meta
	if m.Copy != CopyRollingBack {
		return
	}
	if m.Base.RollBack.Back {
		g.trialTakenBack()
		return
	}
	base := m.Base
	m.Members = base.restored(m.Members)
	m.Timelines = base.Timelines
	m.forgetBookmarks(base.Ordinal)
	g.fork(base.Ordinal, base.RollBack.Timeline, base.RollBack.UnixNanos)
	m.Copy, m.Base = CopyWhole, nil
	g.becomePrimary(Promote{Durable: base.Ordinal, Tail: base.Tail, Now: e.Now})
	g.persist()
}
