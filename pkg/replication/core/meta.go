package core

import "fmt"

// Policy is what happens when the journal reaches its size and the peer has not acknowledged the oldest segment.
type Policy string

const (
	// PolicyTrack folds it into the change map; the peer will need a resync.
	PolicyTrack Policy = "track"
	// PolicyStall makes writers wait for the peer.
	PolicyStall Policy = "stall"
)

// SyncState is where a primary's full copy to its peer stands.
type SyncState string

const (
	// SyncNever: the peer has nothing that counts; the next contact marks everything.
	SyncNever SyncState = "never"
	// SyncRunning: the change map says what is missing.
	SyncRunning SyncState = "running"
	// SyncDone: the peer holds a prefix; the journal holds the rest.
	SyncDone SyncState = "done"
)

// Loss says what a forced promotion lost. What is nil is unknown.
type Loss struct {
	// Exact is set once the old primary came back and counted; until then the numbers are bounds: ordinals at least,
	// seconds at most.
	Exact bool `json:"exact"`
	// Bounded: numbers that are not exact are proven bounds. Earlier releases wrote guesses, without this.
	Bounded          bool     `json:"bounded,omitempty"`
	RecoveredOrdinal uint64   `json:"recoveredOrdinal"`
	LostOrdinals     *uint64  `json:"lostOrdinals,omitempty"`
	LostWrites       *uint64  `json:"lostWrites,omitempty"`
	LostBytes        *uint64  `json:"lostBytes,omitempty"`
	LostSeconds      *float64 `json:"lostSeconds,omitempty"`
	// Partial: the old primary's journal did not hold all of what was lost, so writes, bytes and seconds are at least.
	Partial bool   `json:"partial,omitempty"`
	Text    string `json:"text"`
}

// Divergence is a peer whose history and ours disagree.
type Divergence struct {
	Relation      string `json:"relation"`
	CommonOrdinal uint64 `json:"commonOrdinal"`
	PeerTimeline  string `json:"peerTimeline"`
	// PeerPrimary: when it was last heard, the peer was primary on its branch.
	PeerPrimary bool   `json:"peerPrimary,omitempty"`
	Text        string `json:"text"`
}

// Supersedes reports whether the peer may have been promoted in this site's place. If this site is the one that was
// promoted, the peer's old history blocks nothing here.
func (d *Divergence) Supersedes() bool {
	return d.Relation != RelationIContinue.String() && d.Relation != RelationTheyDiverged.String()
}

// Meta is the durable part of a group: the content of group.json.
type Meta struct {
	Version int    `json:"version"`
	GroupID string `json:"groupID"`
	Name    string `json:"name"`
	Site    string `json:"site"`
	// Pool is the id of the pool that this is the group of. Generation counts how often the file was written; Places are
	// the identities of the directories that groups and volumes were in. An earlier version left all of them out.
	Pool       string   `json:"pool,omitempty"`
	Generation uint64   `json:"generation,omitempty"`
	Places     []string `json:"places,omitempty"`
	// Settings has its keys beside the others: it is embedded in the JSON too.
	Settings
	Role      Role       `json:"role"`
	Timelines []Timeline `json:"timelines"`
	// Term counts promotions. Of two sites on one timeline that were both primary once, the one with the higher term was
	// so later; a copy has its primary's.
	Term    uint64     `json:"term,omitempty"`
	Members MemberList `json:"members,omitempty"`
	// FinalOrdinal is a demoted site's last one.
	FinalOrdinal uint64      `json:"finalOrdinal,omitempty"`
	Loss         *Loss       `json:"loss,omitempty"`
	Divergence   *Divergence `json:"divergence,omitempty"`
	// Yield is the last time that this site gave way, until it is promoted again; nil if it did not.
	Yield *Yield `json:"yield,omitempty"`
	// Trial is a promotion to a point that is not decided yet; nil without one.
	Trial *Trial `json:"trial,omitempty"`
	// Bookmarks are named ordinals, oldest first.
	Bookmarks []Bookmark `json:"bookmarks,omitempty"`

	// Session is the last one: that this site began as the primary, or that it took part in as the secondary.
	Session Session `json:"session,omitzero"`
	// Tail is the last record when the role last changed here, in case it leaves the journal; nil if it was not known.
	Tail *Tail `json:"tail,omitempty"`

	// Epochs is a shard's; nil where there is nothing to keep.
	Epochs *Epochs `json:"epochs,omitempty"`

	// A primary's.
	Sync SyncState `json:"sync"`
	// FullCopy is why the running sync, or else the last one, copies everything; empty if it does not, or if it is the
	// first one. A secondary has it from its primary.
	FullCopy     string `json:"fullCopy,omitempty"`
	PeerInstance string `json:"peerInstance,omitempty"`
	// Flow says whether it ships; SuspendedUnixNanos since when it does not.
	Flow               Flow  `json:"flow,omitempty"`
	SuspendedUnixNanos int64 `json:"suspendedUnixNanos,omitempty"`
	// PeerSession is the session that the peer reported last.
	PeerSession Session `json:"peerSession,omitzero"`
	// Openings bound what the peer can hold, oldest first; see opened.
	Openings []Opening `json:"openings,omitempty"`
	// PeerYield is the last time that the peer gave way to this site; nil if it did not.
	PeerYield *PeerYield `json:"peerYield,omitempty"`
	// Relied is the place up to which this site has forgotten the extents that it sent when it was the primary. A peer
	// that is not so far any more gets everything.
	Relied Delivery `json:"relied,omitzero"`
	// Forgotten is the last ordinal with content among those extents: of writes up to there the change map does not tell.
	Forgotten uint64 `json:"forgotten,omitempty"`

	// A secondary's.
	Instance string `json:"instance,omitempty"`
	// Copy is written as the keys of metaKeys.
	Copy CopyState `json:"-"`
	// Base is what the copy was before the sync that runs; nil if it was not whole.
	Base *Base `json:"base,omitempty"`
}

// Where a group has its Meta and its journal, below the pool's directory for it, and what tells the file from other
// record files, whose form is in blockdev's package comment.
const (
	MetaFile   = "group.json"
	MetaKind   = "group"
	JournalDir = "journal"
)

// MetaVersion is the format of group.json that this code writes and reads.
const MetaVersion = 1

// Timeline is the current one's identifier.
func (m *Meta) Timeline() string { return m.Timelines[len(m.Timelines)-1].ID }

// Member returns the member with a volume id that was not removed, or nil.
func (m *Meta) Member(volumeID string) *Member {
	for i := range m.Members {
		if m.Members[i].VolumeID == volumeID && !m.Members[i].Removed() {
			return &m.Members[i]
		}
	}
	return nil
}

// At returns the member with an index, removed or not, or nil.
func (m *Meta) At(index uint32) *Member {
	for i := range m.Members {
		if m.Members[i].Index == index {
			return &m.Members[i]
		}
	}
	return nil
}

// Upsert replaces or adds the member with the same index.
func (m *Meta) Upsert(member Member) {
	for i := range m.Members {
		if m.Members[i].Index == member.Index {
			m.Members[i] = member
			return
		}
	}
	m.Members = append(m.Members, member)
}

// NextIndex is an index that no member ever had.
func (m *Meta) NextIndex() uint32 {
	var next uint32
	for _, member := range m.Members {
		next = max(next, member.Index+1)
	}
	return next
}

// Validate checks what a decoder cannot: a group.json that was damaged or written by a newer release is refused with
// the reason, and nothing is done with it.
func (m *Meta) Validate() error {
	switch {
	case m.Version != MetaVersion:
		return fmt.Errorf("format version %d, this release reads %d", m.Version, MetaVersion)
	case m.GroupID == "" || m.Name == "" || m.Site == "":
		return fmt.Errorf("group id, name or site missing")
	case m.Role != RolePrimary && m.Role != RoleDemoted && m.Role != RoleSecondary:
		return fmt.Errorf("unknown role %q", m.Role)
	case len(m.Timelines) == 0:
		return fmt.Errorf("no timeline")
	case m.Flow != Flowing && (m.Flow != FlowSuspended || m.Role != RolePrimary):
		return fmt.Errorf("flow %q of a group that is %s", m.Flow, m.Role)
	case m.Sync != SyncNever && m.Sync != SyncRunning && m.Sync != SyncDone:
		return fmt.Errorf("unknown sync state %q", m.Sync)
	}
	if err := m.Settings.validate(); err != nil {
		return err
	}
	if err := checkBookmarks(m.Bookmarks); err != nil {
		return err
	}
	for i, t := range m.Timelines {
		if t.ID == "" || i > 0 && t.ForkOrdinal < m.Timelines[i-1].ForkOrdinal {
			return fmt.Errorf("timeline %d of %d is malformed", i+1, len(m.Timelines))
		}
	}
	if m.Base != nil {
		if err := m.Base.validate(); err != nil {
			return err
		}
	}
	if err := m.validateYield(); err != nil {
		return err
	}
	if err := m.Epochs.validate(); err != nil {
		return err
	}
	if err := m.validateTrial(); err != nil {
		return err
	}
	return CheckMembers(nil, m.Members)
}

// MaxVolumeBytes is the largest volume of a group: 64 TiB, what a change map can describe. It bounds what a peer can
// make this site keep track of.
const MaxVolumeBytes = 64 << 40

// MaxMemberIndex bounds the indices of members, which are counted up from 0, so that one more is always possible.
const MaxMemberIndex = 1 << 24

// CheckMembers says what is wrong with a list of members, by itself and as the successor of the list before: an index
// and a volume belong together, and an index keeps its volume for good.
func CheckMembers(before, members []Member) error {
	volume := map[uint32]string{}
	for _, m := range before {
		volume[m.Index] = m.VolumeID
	}
	seen, present := map[uint32]bool{}, map[string]uint32{}
	for _, m := range members {
		other, twice := present[m.VolumeID]
		switch {
		case m.VolumeID == "":
			return fmt.Errorf("member %d has no volume", m.Index)
		case m.SizeBytes < 0 || m.SizeBytes > MaxVolumeBytes:
			return fmt.Errorf("member %d (volume %s) has size %d, the limit is %d", m.Index, m.VolumeID, m.SizeBytes,
				int64(MaxVolumeBytes))
		case m.Index > MaxMemberIndex:
			return fmt.Errorf("member %d (volume %s): the largest index is %d", m.Index, m.VolumeID, MaxMemberIndex)
		case seen[m.Index]:
			return fmt.Errorf("member %d is listed twice", m.Index)
		case volume[m.Index] != "" && volume[m.Index] != m.VolumeID:
			return fmt.Errorf("member %d is volume %s, not %s", m.Index, volume[m.Index], m.VolumeID)
		case twice && !m.Removed():
			return fmt.Errorf("volume %s is both member %d and member %d", m.VolumeID, other, m.Index)
		}
		seen[m.Index] = true
		if !m.Removed() {
			present[m.VolumeID] = m.Index
		}
	}
	return nil
}
