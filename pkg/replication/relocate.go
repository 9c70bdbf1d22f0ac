package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// handover moves the primary role between the two sites by agreement.
type handover struct {
	g *Group
	// mu keeps relocations, their taking back and yields apart.
	mu sync.Mutex
	// request is what the peer is asked; nil for nothing. requests counts them; mu guards it.
	request  atomic.Pointer[roleRequest]
	requests uint64
	// takeOvers are what the peer asks for.
	takeOvers takeOvers
}

// roleRequest is what a demoted site wants of its peer, until it is answered or given up.
type roleRequest struct {
	id   uint64
	wish roleWish
	// answer gets the peer's answer; it has room for one.
	answer chan roleAnswer
}

// roleWish is what is asked.
type roleWish int

const (
	// wishTakeOver: the peer is to become primary.
	wishTakeOver roleWish = iota + 1
	// wishTakeBack: the peer is to agree that it did not take over, and does not.
	wishTakeBack
)

// String names the wish for people.
func (w roleWish) String() string {
	switch w {
	case wishTakeOver:
		return "take over"
	case wishTakeBack:
		return "take back"
	}
	return fmt.Sprintf("wish %d", int(w))
}

// roleAnswer is what the peer says to a wish; message is why it does not agree.
type roleAnswer struct {
	agreed  bool
	message string
}

// rolePoll is the time between two looks at a role that is about to change.
const rolePoll = 2 * time.Millisecond

// ask has the sender ask the peer, on this and on later streams, until forget is called. The caller holds mu.
func (h *handover) ask(wish roleWish) (r *roleRequest, forget func()) {
	h.requests++
	r = &roleRequest{id: h.requests, wish: wish, answer: make(chan roleAnswer, 1)}
	h.request.Store(r)
	h.g.shipper.work.send()
	h.g.shipper.linkWork.send() // a link that waits to call again calls now
	return r, func() { h.request.Store(nil) }
}

// Relocated is the outcome of Relocate.
type Relocated struct {
	// FinalOrdinal is the last one that was written here; the peer has it.
	FinalOrdinal uint64
	// Took is the time in which the group was primary at no site: from the demotion to the peer's call.
	Took time.Duration
}

// Relocate moves the primary role to the peer without loss: demote, wait until the peer has everything, ask it to
// promote itself, and follow it. Before the peer is connected and has a whole copy nothing is changed. A site that
// follows its peer already has nothing to do.
//
// After an error or a cancellation the group may be demoted. A repetition goes on, and PromoteWithin takes it back.
func (g *Group) Relocate(ctx context.Context) (Relocated, error) { return g.handover.relocate(ctx) }

// relocate is Group.Relocate.
func (h *handover) relocate(ctx context.Context) (Relocated, error) {
	g := h.g
	if _, ok := g.shard.Identity(); ok {
		return Relocated{}, fmt.Errorf("%w: group %s is a shard; it is relocated with the whole group", core.ErrPrecondition,
			g.Name())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.awaitWholeCopy(ctx); err != nil {
		return Relocated{}, err
	}
	began := time.Now()
	final, err := g.demote(core.Demote{Then: core.CommandRelocate})
	if err != nil {
		return Relocated{}, err
	}
	if h.isSecondary() {
		return Relocated{FinalOrdinal: final}, nil
	}
	if err := h.handOver(ctx); err != nil {
		return Relocated{}, err
	}
	moved := Relocated{FinalOrdinal: final, Took: time.Since(began)}
	klog.InfoS("Group relocated", "group", g.Name(), "to", h.g.peer(), "ordinal", final, "took", moved.Took)
	return moved, nil
}

// handOver asks the peer to take over from this demoted site, and returns when this site follows it. The caller holds
// mu.
func (h *handover) handOver(ctx context.Context) error {
	request, forget := h.ask(wishTakeOver)
	defer forget()
	for !h.isSecondary() {
		select {
		case answer := <-request.answer:
			return h.halfWay("%s refuses to take over: %s", h.g.peer(), answer.message)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", h.halfWay("%s did not take over in time", h.g.peer()), ctx.Err())
		case <-h.g.ctx.Done():
			return ErrClosed
		case <-time.After(rolePoll):
		}
	}
	return nil
}

// halfWay is the error of a relocation that has demoted the group.
func (h *handover) halfWay(format string, args ...any) error {
	g := h.g
	command := func(verb core.CommandVerb) core.Command {
		return core.Command{Site: g.cfg.Site, Verb: verb, Name: g.Name()}
	}
	return fmt.Errorf("%w: group %s is demoted at %s: %s; to go on: %s; to take it back: %s",
		core.ErrPrecondition, g.Name(),
		g.cfg.Site, fmt.Sprintf(format, args...), command(core.CommandRelocate), command(core.CommandPromote))
}

func (h *handover) isSecondary() bool {
	g := h.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Role == core.RoleSecondary
}

// isDemotedAlone reports whether a demotion can be taken back without another history being given up.
func (h *handover) isDemotedAlone() bool {
	g := h.g
	g.mu.Lock()
	defer g.mu.Unlock()
	m := &g.core.Meta
	return m.Role == core.RoleDemoted && m.Yielding() == nil && m.Divergence == nil
}

// awaitWholeCopy returns when the peer can take over as soon as it has the last writes, or this site is not primary.
func (h *handover) awaitWholeCopy(ctx context.Context) error {
	g := h.g
	for {
		g.mu.Lock()
		m, failure := g.core.Meta, g.failure
		state, reason := g.core.State()
		g.mu.Unlock()
		switch {
		case failure != nil:
			return failure
		case m.Divergence != nil || m.Yielding() != nil || state == core.StateTrial:
			return fmt.Errorf("%w: group %s is %s at %s: %s", core.ErrPrecondition, m.Name, state, m.Site, reason)
		case m.Peer == "":
			return fmt.Errorf("%w: group %s has no peer that it could move to", core.ErrPrecondition, m.Name)
		case m.Flow == core.FlowSuspended:
			return fmt.Errorf("%w: group %s is suspended at %s; first: %s", core.ErrPrecondition, m.Name, m.Site,
				core.Command{Site: m.Site, Verb: core.CommandResume, Name: m.Name})
		case m.Role != core.RolePrimary || state == core.StateStreaming:
			return nil
		}
		if attached := g.members.attached(); len(attached) > 0 {
			return nil // the demotion says so at once
		}
		if !pause.For(ctx, rolePoll) {
			return fmt.Errorf("group %s: %s is not connected or has no whole copy (%s); nothing was changed; look with %s: %w",
				m.Name, m.Peer, state, core.Command{Site: m.Site, Verb: core.CommandStatus, Name: m.Name}, ctx.Err())
		}
		if g.ctx.Err() != nil {
			return ErrClosed
		}
	}
}

// PromoteWithin is Promote that waits, until the context ends, for what is on its way: a heartbeat that tells of the
// demotion, the last writes, and at a demoted site the peer's word that it did not take over.
func (g *Group) PromoteWithin(ctx context.Context, force bool) (*core.Loss, error) {
	return g.handover.promoteWithin(ctx, force)
}

// promoteWithin is Group.PromoteWithin.
func (h *handover) promoteWithin(ctx context.Context, force bool) (*core.Loss, error) {
	began := h.g.cfg.Clock()
	for {
		if !force && h.isDemotedAlone() && ctx.Err() == nil {
			if err := h.takeBack(ctx); err != nil {
				return nil, err
			}
		}
		loss, err := h.g.Promote(force)
		if !errors.Is(err, core.ErrPrecondition) || !h.mayBeGranted(err, began) || !pause.For(ctx, rolePoll) {
			return loss, err
		}
	}
}

// mayBeGranted reports whether a refused promotion can succeed without another command.
func (h *handover) mayBeGranted(err error, began clocks.Instant) bool {
	g := h.g
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(err, core.ErrNotYet) {
		return true
	}
	if g.core.Meta.Role != core.RoleSecondary || !g.core.Whole() || g.ctx.Err() != nil {
		return false
	}
	heard := g.core.Heard()
	if heard == nil || g.core.Link() == core.LinkDown {
		return true
	}
	// A heartbeat that was made after the call says for certain that the peer was not demoted before it.
	_, after := heard.NotBefore.SinceAtMost(began)
	return heard.Demoted || !after
}

// takeBack makes a demoted site primary again, if the peer agrees that it did not take over. The peer that took over is
// followed instead. An error leaves the group demoted.
func (h *handover) takeBack(ctx context.Context) error {
	g := h.g
	h.mu.Lock()
	defer h.mu.Unlock()
	request, forget := h.ask(wishTakeBack)
	defer func() {
		forget()
		if roleOf(g) == core.RoleDemoted {
			g.streams.restart() // the next stream speaks of the demotion again
		}
	}()
	for h.isDemotedAlone() {
		select {
		case answer := <-request.answer:
			if !answer.agreed {
				return fmt.Errorf("%w: group %s: %s does not give the role back: %s", core.ErrPrecondition, g.Name(), h.g.peer(),
					answer.message)
			}
		case <-ctx.Done():
			_, err := g.Promote(false) // says what to do
			return err
		case <-g.ctx.Done():
			return ErrClosed
		case <-time.After(rolePoll):
		}
	}
	return nil
}

// roleOf is a group's role as its core has it.
func roleOf(g *Group) core.Role {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Role
}
