package replication

import (
	"errors"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// sendRoleRequest asks the peer what a caller of this site wants of it, once on each stream.
func (s *sender) sendRoleRequest() error {
	g, r := s.g, s.g.handover.request.Load()
	if r == nil || s.asked == r.id {
		return nil
	}
	g.mu.Lock()
	m := &g.core.Meta
	ready := m.Role == core.RoleDemoted
	if r.wish == wishTakeOver {
		ready = ready && m.Sync == core.SyncDone && g.core.Answered() && g.core.Acked() >= m.FinalOrdinal
	}
	g.mu.Unlock()
	if !ready {
		return nil
	}
	s.asked = r.id
	if r.wish == wishTakeBack {
		s.takingBack.Store(true) // no heartbeat behind the request says that this site is demoted
	} else {
		s.takingBack.Store(false)                 // of an earlier demotion
		if err := s.sendHeartbeat(); err != nil { // the peer has to have heard of this one
			return err
		}
	}
	return s.stream.Send(&linkpb.ToSecondary{Message: &linkpb.ToSecondary_RoleRequest{RoleRequest: &linkpb.RoleRequest{
		Id: r.id, Kind: wishToWire[r.wish],
	}}})
}

// roleAnswered takes the peer's answer.
func (s *sender) roleAnswered(answer *linkpb.RoleAnswer) error {
	r := s.g.handover.request.Load()
	if r == nil || r.id != answer.GetId() {
		return fmt.Errorf("group %s: the peer answers a request that was given up", s.g.Name())
	}
	if r.wish == wishTakeBack && answer.GetAgreed() {
		if _, err := s.g.step(core.TakenBack{}, nil); err != nil && !errors.Is(err, core.ErrPrecondition) {
			return err
		}
		s.takingBack.Store(false)
	}
	select {
	case r.answer <- roleAnswer{agreed: answer.GetAgreed(), message: untrusted.Reason(answer.GetMessage())}:
	default:
	}
	return nil
}

// roleRequest answers a demoted primary. Taking over ends the stream, so it is done beside it.
func (r *receiver) roleRequest(q *linkpb.RoleRequest) error {
	g := r.g
	switch q.GetKind() {
	case linkpb.RoleRequest_KIND_TAKE_BACK:
		if _, err := g.step(core.TakeBackReceived{}, nil); err != nil {
			return err
		}
		r.answer(&linkpb.RoleAnswer{Id: q.GetId(), Agreed: true})
	case linkpb.RoleRequest_KIND_TAKE_OVER:
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			if err := g.shard.takeOver(); err != nil {
				r.answer(&linkpb.RoleAnswer{Id: q.GetId(), Message: err.Error()})
			}
		}()
	default:
		r.answer(&linkpb.RoleAnswer{Id: q.GetId(), Message: "the release at " + g.cfg.Site + " does not know this " +
			"request"})
	}
	return nil
}

// answer has the acknowledger send an answer: a stream takes one message at a time.
func (r *receiver) answer(a *linkpb.RoleAnswer) {
	r.answers.Store(a)
	r.ackWork.send()
}
