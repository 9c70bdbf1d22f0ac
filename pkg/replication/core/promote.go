package core

import (
	"fmt"
	"slices"
	"time"
)

// promote makes this site primary.
//
// Planned: the old primary has demoted itself and its last ordinal is here, so the timeline goes on and nothing is
// lost. Forced: a new timeline forks at the last ordinal here; its list entry is what lets every later contact see
// that the old primary's further ordinals are not ours.
func (g *Group) promote(e Promote) ([]Action, error) {
	m := &g.Meta
	if m.Role == RolePrimary && !m.Demoted {
		return nil, nil // repeated: already done
	}
	if m.Role == RolePrimary {
		// Demoted here: undone without force only while the peer cannot have been promoted, which nobody can know.
		if !e.Force {
			return nil, fmt.Errorf("%w: group %s was demoted here at ordinal %d; promote it at %s, or force it here if it was not promoted there",
				ErrPrecondition, m.Name, m.FinalOrdinal, m.Peer)
		}
		g.fork(e)
		m.Term++
		m.Demoted, m.FinalOrdinal = false, 0
		return []Action{Persist{}, RollJournal{}, CloseStream{}}, nil
	}
	if !m.Consistent {
		return nil, fmt.Errorf("%w: group %s is in the middle of a sync, its copy is not one instant; wait until it ends, or let %s come back",
			ErrPrecondition, m.Name, m.Peer)
	}
	if !e.Force {
		if !g.heard.Demoted {
			return nil, fmt.Errorf("%w: %s has not demoted group %s; demote it there first, or force the promotion and lose what has not arrived",
				ErrPrecondition, m.Peer, m.Name)
		}
		if e.Durable < g.heard.FinalOrdinal {
			return nil, fmt.Errorf("%w: group %s has ordinals up to %d of %s's %d; wait for the rest, or force the promotion and lose it",
				ErrPrecondition, m.Name, e.Durable, m.Peer, g.heard.FinalOrdinal)
		}
		m.Loss = &Loss{Exact: true, RecoveredOrdinal: e.Durable, Text: "planned: nothing was lost"}
		g.becomePrimary()
		return []Action{Persist{}, CloseStream{}}, nil
	}
	m.Loss = g.boundLoss(e)
	g.fork(e)
	g.becomePrimary()
	return []Action{Persist{}, RollJournal{}, CloseStream{}}, nil
}

// fork begins a timeline at the last ordinal here. Timelines that the peer forked later than that are not part of this
// site's history: it had heard of them, and nothing of them had arrived.
func (g *Group) fork(e Promote) {
	list := slices.Clone(g.Meta.Timelines)
	for len(list) > 1 && list[len(list)-1].ForkOrdinal > e.Durable {
		list = list[:len(list)-1]
	}
	g.Meta.Timelines = append(list, Timeline{ID: e.NewTimeline, ForkOrdinal: e.Durable, ForkedUnixNanos: e.Now})
}

func (g *Group) becomePrimary() {
	m := &g.Meta
	m.Role = RolePrimary
	m.Term++
	m.Divergence = nil
	// The old primary holds everything up to the fork; the journal and the change map have what comes after.
	m.Sync = SyncDone
	m.PeerInstance = ""
	g.acked = 0
	g.link = LinkDown
	g.heard = HeartbeatReceived{} // of a primary that is none any more
}

// boundLoss says what is known without the old primary: what it had told before the link fell silent, and how long the
// silence lasted.
func (g *Group) boundLoss(e Promote) *Loss {
	h := g.heard
	l := &Loss{RecoveredOrdinal: e.Durable}
	if h.Head > e.Durable {
		l.LostOrdinals = h.Head - e.Durable
		l.LostBytes = h.LagBytes
	}
	// Everything up to since is here: the last record's time, or the heartbeat's if it said there was nothing more.
	since := e.DurableUnixNanos
	if h.Head <= e.Durable {
		since = max(since, h.UnixNanos)
	}
	if since > 0 && e.Now > since {
		l.LostSeconds = time.Duration(e.Now - since).Seconds()
	}
	if h.UnixNanos == 0 {
		l.Text = "the primary was not heard since this replicator started; what it wrote after the last record here is unknown"
		return l
	}
	l.Text = fmt.Sprintf("at least %d ordinals, as of the primary's last heartbeat %s before the promotion; at most what it wrote in the last %.3f s",
		l.LostOrdinals, time.Duration(e.Now-h.UnixNanos).Round(time.Millisecond), l.LostSeconds)
	return l
}

// demote gives the primary role up, losslessly: what is durable here is final, and goes on being shipped.
func (g *Group) demote(e Demote) ([]Action, error) {
	m := &g.Meta
	if m.Role == RoleSecondary || m.Demoted {
		return nil, nil // repeated: already done
	}
	if e.Attached > 0 {
		return nil, fmt.Errorf("%w: group %s has %d attached volumes; stop the application and unstage them first", ErrPrecondition, m.Name, e.Attached)
	}
	if m.Peer == "" {
		return nil, fmt.Errorf("%w: group %s has no peer that could be promoted in its place", ErrPrecondition, m.Name)
	}
	m.Demoted, m.FinalOrdinal = true, e.Durable
	return []Action{Persist{}}, nil
}

// tailReceived turns the bound into the exact loss (guarantee G7).
func (g *Group) tailReceived(e TailReceived) []Action {
	m := &g.Meta
	if m.Role != RolePrimary || e.Peer != m.Peer || m.Loss == nil || e.Fork != m.Loss.RecoveredOrdinal {
		return nil
	}
	l := &Loss{Exact: true, RecoveredOrdinal: e.Fork, LostOrdinals: e.Last - min(e.Fork, e.Last), LostWrites: e.Writes, LostBytes: e.Bytes}
	if e.LastUnixNanos > e.FirstUnixNanos {
		l.LostSeconds = time.Duration(e.LastUnixNanos - e.FirstUnixNanos).Seconds()
	}
	l.Text = fmt.Sprintf("counted by %s: ordinals %d to %d of timeline %s", m.Peer, e.Fork+1, e.Last, e.Timeline)
	if l.LostOrdinals == 0 {
		l.Text = fmt.Sprintf("counted by %s: it had written nothing past ordinal %d", m.Peer, e.Fork)
	}
	if m.Loss.Exact && m.Loss.LostOrdinals >= l.LostOrdinals {
		return nil // counted before; it only grows, while the old primary is written to
	}
	m.Loss = l
	return []Action{Persist{}}
}
