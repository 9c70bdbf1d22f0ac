package core

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// promote makes this site primary.
//
// Planned: the old primary has demoted itself and its last ordinal is here, so the timeline goes on and nothing is
// lost. Forced: a new timeline forks at the last ordinal here; its list entry is what lets every later contact see
// that the old primary's further ordinals are not ours.
func (g *Group) promote(e Promote) error {
	m := &g.Meta
	if e.Point != nil {
		return g.promoteAt(e)
	}
	if m.Role == RolePrimary {
		return nil // repeated: already done
	}
	g.following = nil
	if m.Role == RoleDemoted {
		// Demoted here: undone without force only while the peer cannot have been promoted, which this site cannot
		// know.
		if y := m.Yielding(); y != nil && !e.Force {
			return fmt.Errorf("%w: group %s gives way at %s; to take that back, with all that was written there: %s",
				ErrPrecondition, m.Name, m.Site, Command{m.Site, CommandForce, m.Name})
		}
		if !e.Force {
			return fmt.Errorf("%w: group %s was demoted at %s at ordinal %d, and %s does not confirm that it did not take "+
				"over; go on with %s, or, if %s is lost and was not promoted: %s",
				ErrPrecondition, m.Name, m.Site, m.FinalOrdinal, m.Peer, Command{m.Peer, CommandPromote, m.Name},
				m.Peer,
				Command{m.Site, CommandForce, m.Name})
		}
		m.Loss = &Loss{
			Bounded: true, RecoveredOrdinal: e.Durable,
			Text: fmt.Sprintf("%s has everything that it wrote; what %s wrote, if it was promoted meanwhile, is not here and "+
				"not known", m.Site, m.Peer),
		}
		g.fork(e.Durable, e.NewTimeline, e.Now.WallNanos)
		m.Term++
		m.become(RolePrimary)
		m.FinalOrdinal, m.Yield = 0, nil
		g.persist()
		g.rollJournal()
		return nil
	}
	if e.Force && e.At != nil && m.Copy != CopyRollingBack {
		m.Base = e.At
		g.rollBack(e)
		return nil
	}
	switch {
	case m.Copy == CopyWhole:
	case m.Copy == CopyRollingBack:
		return nil // repeated: decided already
	case m.Base == nil:
		return fmt.Errorf("%w: group %s is in the middle of a sync at %s, its copy is not one instant; wait until it "+
			"ends (%s)",
			ErrPrecondition, m.Name, m.Site, Command{m.Site, CommandStatus, m.Name})
	case e.Force:
		g.rollBack(e)
		return nil
	default:
		return fmt.Errorf("%w: group %s is in the middle of a sync at %s; wait until it ends (%s), or open it as of ordinal "+
			"%d, before the sync: %s",
			ErrPrecondition, m.Name, m.Site, Command{m.Site, CommandStatus, m.Name}, m.Base.Ordinal,
			Command{m.Site, CommandForce, m.Name})
	}
	if !e.Force {
		if g.heard == nil || !g.heard.Demoted {
			return fmt.Errorf("%w: %s has not demoted group %s; without loss: %s; if %s is lost: %s",
				ErrPrecondition, m.Peer, m.Name, Command{m.Peer, CommandDemote, m.Name}, m.Peer,
				Command{m.Site, CommandForce, m.Name})
		}
		if e.Durable < g.heard.FinalOrdinal {
			return fmt.Errorf("%w: group %s has ordinals up to %d of %s's %d at %s; the rest is on its way: repeat %s",
				ErrNotYet, m.Name, e.Durable, m.Peer, g.heard.FinalOrdinal, m.Site,
				Command{m.Site, CommandPromote, m.Name})
		}
		m.Loss = noLoss(e.Durable, "planned: nothing was lost")
		g.becomePrimary(e)
		g.persist()
		return nil
	}
	m.Loss = g.boundLoss(e)
	g.fork(e.Durable, e.NewTimeline, e.Now.WallNanos)
	g.becomePrimary(e)
	g.persist()
	g.rollJournal()
	return nil
}

// fork begins a timeline at an ordinal, the last one here at a promotion. Timelines that the peer forked later than
// that are not part of this site's history: it had heard of them, and nothing of them had arrived.
func (g *Group) fork(at uint64, timeline string, now int64) {
	list := slices.Clone(g.Meta.Timelines)
	for len(list) > 1 && list[len(list)-1].ForkOrdinal > at {
		list = list[:len(list)-1]
	}
	g.Meta.Timelines = append(list, Timeline{ID: timeline, ForkOrdinal: at, ForkedUnixNanos: now})
}

func (g *Group) becomePrimary(e Promote) {
	m := &g.Meta
	m.Openings = []Opening{{Session: m.Session.Number, Ordinal: e.Durable}}
	m.Tail = e.Tail
	m.become(RolePrimary)
	m.Term++
	m.Divergence, m.Yield, m.Base = nil, nil, nil
	m.endDecision()
	// The old primary holds everything up to the fork; the journal and the change map have what comes after.
	m.Sync, m.FullCopy = SyncDone, ""
	m.PeerInstance = ""
	g.acked, g.answered = 0, false
	g.link = LinkDown
	g.heard, g.current = nil, currency{} // of a primary that is none any more
	g.hear(e.Durable)                    // what is here came from there
}

// noLoss is the exact report of a promotion that lost nothing.
func noLoss(recovered uint64, text string) *Loss {
	return &Loss{
		Exact: true, RecoveredOrdinal: recovered, LostOrdinals: new(uint64), LostWrites: new(uint64),
		LostBytes:   new(uint64),
		LostSeconds: new(float64), Text: text,
	}
}

// demote gives the primary role up, losslessly: what is durable here is final, and goes on being shipped.
func (g *Group) demote(e Demote) error {
	m := &g.Meta
	if m.Role != RolePrimary {
		return nil // repeated: already done
	}
	if err := g.mayDemote(e.Attached, cmp.Or(e.Then, CommandDemote)); err != nil {
		return err
	}
	if err := g.demotesShard(e); err != nil {
		return err
	}
	m.become(RoleDemoted)
	m.FinalOrdinal, m.Tail = e.Durable, e.Tail
	g.persist()
	return nil
}

// mayDemote says why a primary cannot give its role up. then is the command to repeat when no volume is attached.
func (g *Group) mayDemote(attached []string, then CommandVerb) error {
	m := &g.Meta
	if len(attached) > 0 {
		return fmt.Errorf("%w: group %s: %s", ErrPrecondition, m.Name, attachedText(m, attached, then))
	}
	if m.Flow == FlowSuspended {
		return fmt.Errorf("%w: group %s is suspended, so %s would never get the rest; resume it first (slipctl group resume "+
			"%s)", ErrPrecondition, m.Name, m.Peer, m.Name)
	}
	if m.Peer == "" {
		return fmt.Errorf("%w: group %s has no peer that could be promoted in its place", ErrPrecondition, m.Name)
	}
	return nil
}

// takenBack makes a demoted site primary again on its timeline: the peer has agreed that it did not take over, and
// does not believe in the demotion any more.
func (g *Group) takenBack() error {
	m := &g.Meta
	if m.Role != RoleDemoted || m.Yielding() != nil || m.Divergence != nil {
		return fmt.Errorf("%w: group %s at %s is not demoted any more, or another site was promoted", ErrPrecondition, m.Name,
			m.Site)
	}
	m.become(RolePrimary)
	m.FinalOrdinal = 0
	g.persist()
	return nil
}

// forgetDemotion is the peer's part of that.
func (g *Group) forgetDemotion() {
	if g.heard != nil {
		heard := *g.heard
		heard.Demoted, heard.FinalOrdinal = false, 0
		g.heard = &heard
	}
}

// tailReceived turns the bound into the exact loss (guarantee G7).
func (g *Group) tailReceived(e TailReceived) {
	m := &g.Meta
	if !m.Role.Ships() || e.Peer != m.Peer || m.Loss == nil || e.Fork != m.Loss.RecoveredOrdinal {
		return
	}
	if lost := e.Last - min(e.Fork,
		e.Last); m.Loss.Exact && m.Loss.LostOrdinals != nil && *m.Loss.LostOrdinals >= lost {
		return // counted before; it only grows, while the old primary is written to
	}
	m.Loss = countedLoss(m.Peer, e)
	g.persist()
}

// countedLoss is the exact report. The times between which the old primary wrote are its own clock's, and unknown where
// that was set back.
func countedLoss(peer string, e TailReceived) *Loss {
	if e.Last <= e.Fork {
		return noLoss(e.Fork, fmt.Sprintf("counted by %s: it had written nothing past ordinal %d", peer, e.Fork))
	}
	lost := e.Last - e.Fork
	l := &Loss{Exact: true, RecoveredOrdinal: e.Fork, LostOrdinals: &lost, LostWrites: &e.Writes, LostBytes: &e.Bytes,
		Partial: e.Partial}
	l.Text = fmt.Sprintf("counted by %s: ordinals %d to %d of timeline %s", peer, e.Fork+1, e.Last, e.Timeline)
	if e.FirstUnixNanos != 0 && e.LastUnixNanos >= e.FirstUnixNanos {
		seconds := time.Duration(e.LastUnixNanos - e.FirstUnixNanos).Seconds()
		l.LostSeconds = &seconds
	}
	if e.Partial {
		if e.Writes == 0 {
			l.LostWrites, l.LostBytes = nil, nil
		}
		l.Text += "; its journal holds only the newest of them, so writes, bytes and seconds are at least"
	}
	return l
}
