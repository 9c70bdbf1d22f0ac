package replication

import (
	"context"
	"fmt"
	"time"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// verifyHold is how long the secondary stops applying for a comparison at most, until it has the ordinal that the
// primary chose.
const verifyHold = 10 * time.Second

// verifyServer is the secondary's side of comparisons, for one stream. Its goroutine alone uses it.
type verifyServer struct {
	r *receiver
	g *Group
	// set is what is preserved; nil outside of a comparison.
	set *preserved
	buf []byte
}

// verifyRequests is how many requests may wait: a primary asks one at a time, and may end without an answer.
const verifyRequests = 4

// verify takes a request of the primary.
func (r *receiver) verify(q *linkpb.VerifyRequest) error {
	select {
	case r.verifyIn <- q:
		return nil
	default:
		return fmt.Errorf("group %s: %s asks for more of a comparison than was answered", r.g.Name(), r.stream.Peer())
	}
}

// serveVerify answers requests until the stream ends.
func (r *receiver) serveVerify(ctx context.Context) {
	s := &verifyServer{r: r, g: r.g, buf: make([]byte, changemap.ExtentBytes)}
	defer s.end()
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-r.verifyIn:
			s.serve(ctx, q)
		}
	}
}

func (s *verifyServer) serve(ctx context.Context, q *linkpb.VerifyRequest) {
	answer, err := &linkpb.VerifyAnswer{}, error(nil)
	switch request := q.Request.(type) {
	case *linkpb.VerifyRequest_Hold:
		s.end()
		s.g.verification.begin()
		err = s.hold(ctx, q.Step)
		if err == nil {
			return // it has answered
		}
	case *linkpb.VerifyRequest_Compare:
		answer.Data, err = s.compare(request.Compare)
	case *linkpb.VerifyRequest_End:
		s.end()
		s.take(request.End)
		return
	default:
		err = fmt.Errorf("%w: %T outside of a comparison", ErrInvalid, request)
	}
	if err != nil {
		answer.Error = untrusted.Escape(err.Error(), maxReasonBytes)
	}
	s.send(ctx, q.Step, answer)
}

func (s *verifyServer) send(ctx context.Context, step uint64, answer *linkpb.VerifyAnswer) {
	answer.Step = step
	select {
	case s.r.outbox <- &linkpb.ToPrimary{Message: &linkpb.ToPrimary_Verify{Verify: answer}}:
	case <-ctx.Done():
	}
}

// begin notes that the primary began a comparison.
func (v *verification) begin() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase.begin()
	v.failure = ""
}

// end notes that the primary's comparison ended.
func (v *verification) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase.end()
}

// end drops what is preserved.
func (s *verifyServer) end() {
	s.g.verification.drop(s.set)
	s.set = nil
	s.g.verification.end()
}

// hold stops applying, answers with the applied ordinal, waits for the ordinal to compare, preserves the images there,
// and answers again. It is the same whatever is asked for instead.
//
// The primary chooses an ordinal that is not below the applied one. Without the hold this site could be past any
// ordinal by the time that it hears of it.
func (s *verifyServer) hold(ctx context.Context, step uint64) error {
	g := s.g
	g.applier.mu.Lock()
	defer g.applier.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, verifyHold)
	defer cancel()
	s.send(ctx, step, &linkpb.VerifyAnswer{AppliedOrdinal: g.checkpoint.read().AppliedOrdinal})
	var q *linkpb.VerifyRequest
	select {
	case q = <-s.r.verifyIn:
	case <-ctx.Done():
		return fmt.Errorf("no ordinal came within %v", verifyHold)
	}
	at := q.GetAt()
	if at == nil {
		return fmt.Errorf("%w: %T in place of an ordinal", ErrInvalid, q.Request)
	}
	answer := &linkpb.VerifyAnswer{}
	if err := s.preserve(ctx, at); err != nil {
		answer.Error = untrusted.Escape(err.Error(), maxReasonBytes)
	} else {
		for _, m := range s.set.record.Members {
			answer.Members = append(answer.Members, &linkpb.VerifyMember{Index: m.Index, SizeBytes: m.SizeBytes})
		}
	}
	s.send(ctx, q.Step, answer)
	return nil
}

// preserve preserves the images at the primary's ordinal. The caller holds applier.mu.
func (s *verifyServer) preserve(ctx context.Context, at *linkpb.VerifyAt) error {
	g := s.g
	for g.journal.Durable() < at.Ordinal || !g.shard.mayApply(at.Ordinal) {
		if !pause.For(ctx, g.cfg.CommitInterval) {
			if g.journal.Durable() >= at.Ordinal {
				return fmt.Errorf("no complete epoch of the group has ordinal %d within %v at site %s; see that the nodes of all "+
					"shards run (slipctl group status)", at.Ordinal, verifyHold, g.cfg.Site)
			}
			return fmt.Errorf("site %s is durable up to ordinal %d, and did not come to %d within %v", g.cfg.Site,
				g.journal.Durable(), at.Ordinal, verifyHold)
		}
	}
	set, err := g.preserved.takeLocked(ctx, preserveRequest{owner: ownerVerify, full: preserveOrLose,
		position: func() (journal.Position, string, error) { return s.position(at) }})
	if err != nil {
		return err
	}
	s.set = set
	if set.record.Ordinal != at.Ordinal {
		return fmt.Errorf("site %s preserved ordinal %d, not %d", g.cfg.Site, set.record.Ordinal, at.Ordinal)
	}
	return nil
}

// position is the place of an ordinal in the journal of a whole copy. The caller holds log.mu and mu.
func (s *verifyServer) position(at *linkpb.VerifyAt) (journal.Position, string, error) {
	g := s.g
	m := &g.core.Meta
	switch {
	case m.Role != core.RoleSecondary || !g.core.Whole():
		return journal.Position{}, "", fmt.Errorf("%w: group %s has no whole copy at %s", core.ErrPrecondition, m.Name,
			m.Site)
	case m.Timeline() != at.TimelineId:
		return journal.Position{}, "", fmt.Errorf("%w: group %s is on another timeline at %s", core.ErrPrecondition, m.Name,
			m.Site)
	}
	pos, ok, err := g.journal.PositionOf(at.Ordinal)
	if err == nil && !ok {
		err = fmt.Errorf("ordinal %d has left the journal of %s", at.Ordinal, m.Site)
	}
	return pos, m.Timeline(), err
}

// compare answers with what the preserved images have in a run of extents.
func (s *verifyServer) compare(c *linkpb.VerifyCompare) ([]byte, error) {
	if s.set == nil {
		return nil, fmt.Errorf("%w: nothing is preserved for a comparison", core.ErrPrecondition)
	}
	image := memberImage(s.set, c.Member)
	first, count := c.First, uint64(c.Count)
	switch {
	case image == nil:
		return nil, fmt.Errorf("%w: no member %d", ErrNotFound, c.Member)
	case count == 0 || count > verifyRunExtents || first > extentsOf(image.Size()) ||
		first+count > extentsOf(image.Size()):
		return nil, fmt.Errorf("%w: extents %d to %d of member %d, which has %d", ErrInvalid, first, first+count-1, c.Member,
			extentsOf(image.Size()))
	}
	if c.Want == linkpb.VerifyCompare_CONTENT {
		if count != 1 {
			return nil, fmt.Errorf("%w: content of %s", ErrInvalid, words.Count(count, "extent"))
		}
		p, err := readExtent(image, first, s.buf)
		if err == nil {
			err = s.set.check()
		}
		return append([]byte{}, p...), err
	}
	hashes, _, err := hashRun(image, first, count, s.buf)
	if err == nil {
		err = s.set.check()
	}
	if err != nil || c.Want == linkpb.VerifyCompare_HASHES {
		return packHashes(hashes), err
	}
	digest := digestOf(hashes)
	return digest[:], nil
}

// take takes the result of a comparison, as the primary tells it. What is wrong in it is left out.
func (s *verifyServer) take(end *linkpb.VerifyEnd) {
	if !end.Complete {
		return
	}
	found := s.g.verification.fromWire(end.Extents)
	scope := verifyScope{extents: s.g.verification.fromWire(end.Scope)}
	if len(end.Scope) > 0 && len(scope.extents) == 0 {
		return // the members are gone
	}
	s.g.verification.store(end.Ordinal, &scope, found, max(end.DifferenceCount, uint64(len(found))))
}

// fromWire takes those extents of a message that members have, and no more than are kept.
func (v *verification) fromWire(wire []*linkpb.MemberExtent) (list []MemberExtent) {
	for _, e := range wire {
		member := v.g.members.at(e.GetMember())
		if member != nil && e.GetExtent() < extentsOf(member.Size()) && len(list) < maxKeptDifferences {
			list = append(list, MemberExtent{Member: e.GetMember(), Extent: e.GetExtent()})
		}
	}
	return list
}

// askForRepair asks the primary to send extents anew.
func (v *verification) askForRepair(list []MemberExtent) error {
	g := v.g
	g.streams.mu.Lock()
	r := g.streams.incoming
	g.streams.mu.Unlock()
	if r == nil || !r.hello.GetVerifies() {
		return fmt.Errorf("%w: group %s has no stream from a primary that can send the extents again; see slipctl group "+
			"status %s", core.ErrPrecondition, g.Name(), g.Name())
	}
	select {
	case r.outbox <- &linkpb.ToPrimary{Message: &linkpb.ToPrimary_Repair{
		Repair: &linkpb.RepairRequest{Extents: extentsToWire(list)}}}:
		return nil
	case <-r.done:
		return fmt.Errorf("%w: the stream of group %s ended; try again", core.ErrPrecondition, g.Name())
	}
}
