package core

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrPrecondition marks errors of Step that a person or another call has to resolve first. The group is unchanged.
var ErrPrecondition = errors.New("precondition failed")

// ErrNotYet is an ErrPrecondition that time resolves: what is missing is on its way.
var ErrNotYet = fmt.Errorf("%w", ErrPrecondition)

// Link is the state of a group's stream to or from its peer.
type Link string

const (
	LinkDown      Link = "down"
	LinkGreeting  Link = "greeting"
	LinkStreaming Link = "streaming"
	LinkSyncing   Link = "syncing"
)

// State is what status and metrics say that a group does.
type State string

const (
	// StateIdle: the group has no peer.
	StateIdle State = "idle"
	// StateConnecting: there is no stream to the peer, or it has not agreed to one yet.
	StateConnecting State = "connecting"
	StateStreaming  State = "streaming"
	StateSyncing    State = "syncing"
	StateDemoted    State = "demoted"
	// StateSuspended: a person stopped replication.
	StateSuspended State = "suspended"
	// StateYielding: the group gives way to its peer, and has not begun to follow.
	StateYielding State = "yielding"
	// StateTrial: the site was promoted to a point, and whether it stays there is not decided.
	StateTrial State = "trial"
	// StateDiverged: the histories of the two sites disagree, and a person has to decide.
	StateDiverged State = "diverged"
	// StateFailed: the group stopped at an error. Core never returns it; the caller that stopped the group does.
	StateFailed State = "failed"
)

// States are all states.
var States = []State{
	StateIdle, StateConnecting, StateStreaming, StateSyncing, StateDemoted, StateYielding, StateSuspended, StateTrial,
	StateDiverged,
	StateFailed,
}

// Group is the state machine of one group at one site. The zero value is not usable: see [New].
type Group struct {
	// Meta is the durable part. The caller reads it, Step alone changes it.
	Meta Meta

	// effects are those of the running Step; nil outside of it.
	effects []Effect

	link  Link
	acked uint64
	// answered: the peer has said so since this process started, or since the role began.
	answered bool
	// following is set between a Welcome and what the caller says to it.
	following *following
	// refusal is the last one, for status; cleared by a Welcome.
	refusal string
	// heard is the last heartbeat of this process; nil before the first.
	heard *HeartbeatReceived
	// told is the highest durable ordinal that the other site was heard to have, current when this one had everything.
	told    *uint64
	current currency
}

// New returns the state machine for what group.json says.
func New(meta Meta) *Group { return &Group{Meta: meta, link: LinkDown} }

// Link is the stream's state.
func (g *Group) Link() Link { return g.link }

// Acked is the peer's durable ordinal as far as it is known since this process started, and 0 before: for decisions
// about what may go. What is shown to people is Told.
func (g *Group) Acked() uint64 { return g.acked }

// Answered reports whether Acked is what the peer said.
func (g *Group) Answered() bool { return g.answered }

// Heard is the primary's last heartbeat; nil before the first.
func (g *Group) Heard() *HeartbeatReceived { return g.heard }

// Promotable reports whether a forced promotion would give one consistent instant: what is here, or in the middle of a
// sync what was here before.
func (g *Group) Promotable() bool { return g.Whole() || g.Meta.Base != nil }

// Writable reports whether volumes of the group may take writes here.
func (g *Group) Writable() bool { return g.Markable() && !g.Meta.Closed() }

// Markable reports whether marks of epochs may be put into the journal here. No writes need be taken for that.
func (g *Group) Markable() bool { return g.Meta.Role == RolePrimary && g.Meta.Copy != CopyRollingBack }

// State returns the state, with one sentence for a person where there is something to say.
func (g *Group) State() (state State, reason string) {
	m := &g.Meta
	switch {
	case m.Yielding() != nil && (m.Role == RoleDemoted || m.Yield.Stage == YieldKeeping || m.Yield.Stage == YieldReady):
		return StateYielding, g.yieldText()
	case m.Copy == CopyRollingBack:
		return StateConnecting, m.rollingBackText()
	case m.Trial != nil:
		return StateTrial, m.trialText()
	case m.Divergence != nil:
		return StateDiverged, m.Divergence.Text
	case m.Role == RoleDemoted:
		return StateDemoted, fmt.Sprintf("no writes past ordinal %d; to go on: %s; to take it back: %s", m.FinalOrdinal,
			Command{m.Peer, CommandPromote, m.Name}, Command{m.Site, CommandPromote, m.Name})
	case m.Peer == "":
		return StateIdle, "the group has no peer"
	case m.Flow == FlowSuspended:
		return StateSuspended, fmt.Sprintf("nothing is sent to %s since %s; slipctl group resume %s continues", m.Peer,
			m.Suspension().Format(time.DateTime+" MST"), m.Name)
	case g.link == LinkStreaming && !g.Whole(), g.link == LinkSyncing,
		g.link == LinkStreaming && m.Role.Ships() && m.Sync == SyncRunning: // about to begin
		switch {
		case m.Role.Ships():
			return StateSyncing, ""
		case m.Base != nil:
			return StateSyncing, m.Base.opensAs()
		}
		return StateSyncing, "not promotable until the sync ends"
	case g.link == LinkStreaming:
		return StateStreaming, m.closedText()
	case m.Base != nil && !g.Whole():
		return StateConnecting, "the sync was interrupted; " + m.Base.opensAs()
	case !g.Whole():
		return StateConnecting, "not promotable: the sync was interrupted"
	default:
		return StateConnecting, g.refusal
	}
}

// Step takes an event and returns the effects to carry out, in order, and after them the decision about the stream. An
// error (always an ErrPrecondition) means that a request was refused and nothing changed.
func (g *Group) Step(e Event) (Decision, []Effect, error) {
	g.effects = nil
	decision, err := g.decide(e)
	effects := g.effects
	g.effects = nil
	if err != nil {
		return nil, nil, err
	}
	return decision, effects, nil
}

func (g *Group) persist() { g.effects = append(g.effects, Persist{}) }

func (g *Group) rollJournal() { g.effects = append(g.effects, RollJournal{}) }

func (g *Group) decide(e Event) (Decision, error) {
	if calls(e) && !g.Meta.Role.Ships() {
		// This side stopped being primary while its stream was open: what it says is about a role that is gone.
		return Close{}, nil
	}
	if g.deferred(e) {
		return nil, g.undecided()
	}
	switch e := e.(type) {
	case Connected:
		if g.Meta.Flow == FlowSuspended || g.Meta.Trial != nil {
			return Close{}, nil
		}
		g.link = LinkGreeting
		return SendHello(e), nil
	case Welcomed:
		return g.welcomed(e), nil
	case Refused:
		return g.refused(e), nil
	case CursorLost:
		return g.beginSync(e.Retained - 1), nil
	case MapDirty:
		return g.beginSync(e.At), nil
	case HelloReceived:
		return g.hello(e), nil
	case SessionReceived:
		return g.sessionReceived(e), nil
	}
	return nil, g.note(e)
}

// note is decide for the events that have no decision.
func (g *Group) note(e Event) error {
	switch e := e.(type) {
	case Acked:
		g.acked = max(g.acked, e.Ordinal)
		g.hear(g.acked)
	case Disconnected:
		if !e.Caller {
			g.following = nil
		}
		if e.Caller == g.Meta.Role.Ships() { // the other stream is not the one that link speaks of
			g.link = LinkDown
		}
	case Folded:
		g.folded()
	case SyncAcked:
		g.syncAcked()
	case Relied:
		g.relied(e)
	case Opened:
		g.opened(e)
	case SyncBeginReceived:
		g.syncBegins(e.Base)
	case SyncBeginDurable:
		if g.Meta.Copy == CopyAwaiting {
			g.setCopy(CopyPartial, g.Meta.Base)
		}
	case EpochKept:
		g.epochKept(e)
	case EpochPassed:
		g.epochPassed()
	case EpochsChanged:
		g.epochsChanged(e)
	case CloseShard:
		return g.closeShard(e)
	case OpenShard:
		return g.openShard()
	case SyncEndDurable:
		if g.Meta.keepsBase() {
			g.setCopy(CopyWhole, g.Meta.Base)
		} else {
			g.setCopy(CopyWhole, nil)
		}
		g.undone()
	case ImagesRestored:
		g.imagesRestored()
	case RolledBack:
		g.rolledBack(e)
	case HeartbeatReceived:
		g.heartbeat(e)
	case Promote:
		return g.promote(e)
	case TrialCommitted:
		return g.trialCommitted()
	case TakeTrialBack:
		return g.takeTrialBack(e)
	case HeldLost:
		g.heldLost()
	case Demote:
		return g.demote(e)
	case TakenBack:
		return g.takenBack()
	case TakeBackReceived:
		g.forgetDemotion()
	case YieldRequest:
		return g.yield(e)
	case YieldKept:
		g.yieldKept(e)
	case RangesLost:
		g.rangesLost(e)
	case Rewound:
		g.rewound()
	case Received:
		g.received(e)
	case TailReceived:
		g.tailReceived(e)
	case TailCounted:
		g.tailCounted(e)
	case MemberChanged:
		if known := g.Meta.At(e.Member.Index); known != nil && known.Removed() && !e.Member.Removed() {
			return known.refuse("changed")
		}
		next := Meta{Members: slices.Clone(g.Meta.Members)}
		next.Upsert(e.Member)
		return g.setMembers(next.Members)
	case Bookmarked:
		g.bookmarked(e.Bookmark)
	case MembersReplaced:
		return g.setMembers(slices.Clone(e.Members))
	case Configured:
		return g.configured(e)
	case Suspend:
		return g.suspend(e)
	case Resume:
		g.resume()
	default:
		panic(fmt.Sprintf("core: unknown event %T", e)) // a programming error: the set of events is closed
	}
	return nil
}

func (g *Group) heartbeat(e HeartbeatReceived) {
	if g.Meta.Role != RoleSecondary {
		return
	}
	g.heard = &e
	g.hear(e.Durable)
	g.current.mark(e.Head, e.NotBefore)
	g.CaughtUp(e.Local)
}

// calls reports whether an event belongs to the stream that a primary opens.
func calls(e Event) bool {
	switch e.(type) {
	case Connected, Welcomed, Refused, Acked, CursorLost, MapDirty, SyncAcked:
		return true
	}
	return false
}

func (g *Group) setMembers(members []Member) error {
	if err := CheckMembers(g.Meta.Bound(members), members); err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrPrecondition, g.Meta.Name, err)
	}
	g.Meta.Members = members
	g.persist()
	return nil
}
