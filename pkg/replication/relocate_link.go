package replication

import (
	"errors"
	"fmt"
	"sync"

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

// takeOvers carry out what a demoted primary asks for, one at a time: each can wait for long.
type takeOvers struct {
	mu sync.Mutex
	// running: a goroutine is at it. It answers the last one who asked, and tries again for a request that came meanwhile.
	running bool
	last    takeOverRequest
}

// takeOverRequest is a request, and the stream that it came on. A request comes again on a new stream.
type takeOverRequest struct {
	id uint64
	by *receiver
}

// ask has the group take over, and a refusal answered. It does not wait. Of the requests that come while one is carried
// out, the last one counts: the peer has given the others up.
func (t *takeOvers) ask(q takeOverRequest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = q
	if t.running {
		return
	}
	t.running = true
	g := q.by.g
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		for tried := q.id; ; {
			err := g.shard.takeOver()
			var done bool
			if tried, done = t.tried(tried, err); done {
				return
			}
		}
	}()
}

// tried ends a try for a request. Without done, the next try is for the request that it returns.
func (t *takeOvers) tried(id uint64, err error) (next uint64, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.last
	if err != nil && last.id != id && last.by.g.ctx.Err() == nil {
		return last.id, false
	}
	t.running, t.last = false, takeOverRequest{}
	if err != nil {
		last.by.answer(&linkpb.RoleAnswer{Id: last.id, Message: err.Error()})
	}
	return 0, true
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
		g.handover.takeOvers.ask(takeOverRequest{id: q.GetId(), by: r})
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
