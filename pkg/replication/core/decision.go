package core

// Effect is something that the caller carries out before it acts on the decision: it concerns this site's disk alone.
// See [Group.Step].
type Effect interface{ effect() }

// Persist: make Group.Meta durable before the next effect.
type Persist struct{}

// MarkAll: mark every byte of every member in the change map, durably.
type MarkAll struct{}

// RollJournal: the next record starts a segment on the current timeline.
type RollJournal struct{}

func (Persist) effect()     {}
func (MarkAll) effect()     {}
func (RollJournal) effect() {}

// Decision is what the caller does about its stream. Each event that asks for one names its decisions; all other events
// have none (nil).
type Decision interface{ decision() }

// SendHello: introduce the group to the secondary.
type SendHello struct{ Durable uint64 }

// Ship: send records with ordinals past After; first a sync-begin at After if Begin. A stream's first Ship comes with
// Meta.Session drawn and durable; the peer is told of it, and of Begin, before anything else.
type Ship struct {
	After uint64
	Begin bool
}

// Diverge: the histories of the two sites disagree. Close the stream; Meta.Divergence says why.
type Diverge struct{}

// SendWelcome: accept the primary, if it agrees: see SessionReceived.
type SendWelcome struct {
	Durable   uint64
	NeedsSync bool
	Instance  string
	// Yield: this site gives way to the caller; nil otherwise.
	Yield *YieldOffer
}

// SendRefusal: turn the primary away. It may still tell the count of its divergent tail (TailReceived); then close the
// stream.
type SendRefusal struct {
	Reason  RefusalReason
	Message string
	Fork    uint64
}

// CountTail: count what this side journaled past Fork, report TailCounted, and tell the peer. Then close the stream.
type CountTail struct{ Fork uint64 }

// Follow: this site is the secondary of the caller now, and takes what it sends.
type Follow struct{}

// Close: close the stream. Its role has ended, or the peer turned it away; the caller may connect again.
type Close struct{}

func (SendHello) decision()   {}
func (Ship) decision()        {}
func (Diverge) decision()     {}
func (SendWelcome) decision() {}
func (SendRefusal) decision() {}
func (CountTail) decision()   {}
func (Follow) decision()      {}
func (Close) decision()       {}
