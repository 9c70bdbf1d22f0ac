package core

import (
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/epoch"
)

// Event is something that happened. See [Group.Step].
type Event interface{ event() }

// Connected: the link to the peer is open; this side is the caller. Decisions: SendHello, Close.
type Connected struct{ Durable uint64 }

// Welcomed: the secondary answered Hello with Welcome. Decisions: Ship, Diverge, Close.
type Welcomed struct {
	// PeerDurable, NeedsSync and Instance are the answer's.
	PeerDurable uint64
	NeedsSync   bool
	Instance    string
	// PeerSession and PeerPlace are the last session that the peer took part in, and the durable end of its journal (whose
	// Session is not set). PeerTail compares the record at PeerDurable with the one here.
	PeerSession Session
	PeerPlace   Delivery
	PeerTail    Match
	// PeerHorizon is the peer's Horizon record: the extents that it holds show writes up to this ordinal at most.
	PeerHorizon uint64
	// Yield: the peer gives way to this site. PeerDurable is then the last ordinal that both have.
	Yield *YieldOffer
	// Durable is the local durable ordinal.
	Durable uint64
	// Relied is the place up to which the caller has forgotten extents that it sent, if it is past Meta.Relied.
	Relied Delivery
	// Forgotten is the last ordinal with content among these extents, if it is past Meta.Forgotten.
	Forgotten uint64
	// NewSession and NewTimeline are identifiers to use, Now the time.
	NewSession, NewTimeline string
	Now                     int64
	// Retained is the first ordinal that the local journal still holds; head+1 when it holds none.
	Retained uint64
	// ReleasedAcked is the highest ordinal that left the journal because it was acknowledged, not folded.
	ReleasedAcked uint64
}

// Refused: the secondary answered Hello with Refusal. Decisions: CountTail, Diverge, Close.
type Refused struct {
	Reason  RefusalReason
	Message string
	// Fork is the last common ordinal, PeerTimelines the peer's history, for the reasons about timelines.
	Fork          uint64
	PeerTimelines []Timeline
	// PeerPrimary: the peer is primary, or demoted.
	PeerPrimary bool
	Durable     uint64
	// NewTimeline is an identifier to use, Now the time.
	NewTimeline string
	Now         int64
}

// Acked: the secondary has everything up to Ordinal on stable storage.
type Acked struct{ Ordinal uint64 }

// Disconnected: a stream ended. Both sides of a group may have one to the other at a time, while roles change.
type Disconnected struct {
	// Caller: it was the one that this side opened.
	Caller bool
}

// CursorLost: the journal no longer holds what the stream would ship next; it was folded into the change map.
// Decisions: Ship, Close.
type CursorLost struct{ Retained uint64 }

// Folded: records were marked in the change map, which is durable, and are about to leave the journal.
type Folded struct{}

// MapDirty: the change map is not empty although no sync runs; At is the last shipped ordinal. Decisions: Ship, Close.
type MapDirty struct{ At uint64 }

// SyncAcked: the secondary acknowledged sync-end and everything before it.
type SyncAcked struct{}

// HelloReceived: a primary calls. Peer is the name in its certificate. Decisions: SendWelcome, SendRefusal.
type HelloReceived struct {
	Peer        string
	GroupID     string
	Timelines   []Timeline
	Term        uint64
	PeerDurable uint64
	// Yielding: the caller gives way to this site, and only asks to be called.
	Yielding bool
	Durable  uint64
	// Attached counts local volumes of the group that are open for I/O.
	Attached int
}

// SessionReceived: the primary agreed to the answer to its Hello and named the stream's session, before anything else.
// Sync tells that it begins a sync, because what is here is not all that it needs to be. Decisions: Follow, Close.
type SessionReceived struct {
	Session Session
	Sync    bool
	// FullCopy is why the sync copies everything, as the primary says; empty if it does not, or if it is the first one.
	FullCopy string
	// Base is what the caller preserved; see NeedsBase.
	Base *Base
}

// Relied: the caller is about to forget, on disk too, extents that the peer acknowledged up to a place.
type Relied struct {
	Delivery Delivery
	// Through is the last ordinal whose content was among them.
	Through uint64
}

// Opened: the process opened the group with this durable ordinal in its journal.
type Opened struct{ Durable uint64 }

// SyncBeginReceived: from here on the secondary is not a prefix. Base is what the caller preserved; see NeedsBase.
type SyncBeginReceived struct{ Base *Base }

// SyncBeginDurable: the sync's beginning is durable here.
type SyncBeginDurable struct{}

// SyncEndDurable: sync-end and everything before it is durable here.
type SyncEndDurable struct{}

// HeartbeatReceived: what the primary says of itself.
type HeartbeatReceived struct {
	Head, Durable uint64
	LagBytes      uint64
	Demoted       bool
	FinalOrdinal  uint64
	// NotBefore is an instant of this site before which the primary had not read its head; unknown where nothing proves
	// one.
	NotBefore clocks.Instant
	// Local is the local durable ordinal.
	Local uint64
}

// Promote asks for the primary role.
type Promote struct {
	Force bool
	// Durable equals the head: the caller has synced the journal and stopped receiving.
	Durable uint64
	// At is what a shard becomes by a forced promotion: its copy at the end of an epoch. The images are those of the base,
	// durably, or the base has a set. Nil for a group that is no shard.
	At *Base
	// Tail is the record at Durable; nil if it is not known.
	Tail        *Tail
	Now         clocks.Instant
	NewTimeline string
	// Point is a recovery point to open, undecided; nil for what is here.
	Point *AtPoint
}

// Demote gives the primary role up. Head equals Durable: the caller has synced the journal.
type Demote struct {
	Durable  uint64
	Tail     *Tail    // the record at Durable; nil if it is not known
	Attached []string // volumes that are in use here
	// Closing and Epoch are of a shard: under which name it was closed, and the epoch that has everything it wrote.
	Closing epoch.Life
	Epoch   epoch.ID
	// Then is the command that a person repeats when the volumes are detached; empty for demote.
	Then CommandVerb
}

// TakenBack: the peer agreed on the stream of this demoted site that it did not take over.
type TakenBack struct{}

// TakeBackReceived: the demoted primary wants to be primary again.
type TakeBackReceived struct{}

// TailReceived: the old primary counted what it had written past the fork.
type TailReceived struct {
	Peer                          string
	Timeline                      string
	Fork, Last, Writes, Bytes     uint64
	FirstUnixNanos, LastUnixNanos int64
	// Partial: Writes, Bytes and times are of the newest of them only.
	Partial bool
}

// TailCounted: this old primary counted what it had written past the fork.
type TailCounted struct{ Fork, Last, Writes, Bytes uint64 }

// MemberChanged adds or replaces a member. It may come from the peer, so it is refused if it does not fit.
type MemberChanged struct{ Member Member }

// MembersReplaced is a sync manifest's list, refused like a MemberChanged.
type MembersReplaced struct{ Members []Member }

// Bookmarked: the record of a bookmark is durable. The caller has checked its label.
type Bookmarked struct{ Bookmark Bookmark }

// Configured: other settings are asked for. The caller has ended the stream that it opened, if the peer or its address
// changes.
type Configured struct {
	Settings Settings
	// FromPeer: the primary said so.
	FromPeer bool
	// PeerGone: a person said that the peer is gone for good. So nothing that it may have done keeps it.
	PeerGone bool
}

// Suspend: a person wants nothing to be shipped. The caller has ended the stream that it opened.
type Suspend struct{ Now int64 } // wall clock, nanoseconds

// Resume: a person wants the group to be shipped again.
type Resume struct{}

func (Suspend) event()           {}
func (Resume) event()            {}
func (Connected) event()         {}
func (Welcomed) event()          {}
func (Refused) event()           {}
func (Acked) event()             {}
func (Disconnected) event()      {}
func (CursorLost) event()        {}
func (Folded) event()            {}
func (MapDirty) event()          {}
func (SyncAcked) event()         {}
func (HelloReceived) event()     {}
func (SessionReceived) event()   {}
func (Relied) event()            {}
func (Opened) event()            {}
func (SyncBeginReceived) event() {}
func (SyncBeginDurable) event()  {}
func (SyncEndDurable) event()    {}
func (HeartbeatReceived) event() {}
func (Promote) event()           {}
func (Demote) event()            {}
func (TakenBack) event()         {}
func (TakeBackReceived) event()  {}
func (TailReceived) event()      {}
func (TailCounted) event()       {}
func (MemberChanged) event()     {}
func (MembersReplaced) event()   {}
func (Bookmarked) event()        {}
func (Configured) event()        {}

// RefusalReason is why a primary was turned away.
type RefusalReason string

const (
	RefuseForeign      RefusalReason = "foreign-group"
	RefuseStale        RefusalReason = "stale-timeline"
	RefuseDiverged     RefusalReason = "diverged"
	RefuseNotSecondary RefusalReason = "not-secondary"
	RefuseOther        RefusalReason = "other"
)
