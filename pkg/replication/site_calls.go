package replication

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Replicate implements link.Handler: it serves the stream of a primary. The peer's name comes from its certificate.
func (s *Site) Replicate(stream link.PeerStream) error {
	hello, err := link.ReceiveHello(stream)
	if err != nil {
		return err
	}
	g, err := s.groupForHello(stream.Peer(), hello)
	if err != nil {
		return s.turnAway(stream, hello, err)
	}
	if err = g.receive(stream, hello); errors.Is(err, errForeign) { // its peer was changed meanwhile
		return s.turnAway(stream, hello, err)
	}
	return err
}

// groupForHello finds the group that a primary speaks of, or makes an empty secondary for one that is new here. Nothing
// of a message is trusted: identifiers become file names, sizes become files. Who is not the group's peer gets
// errForeign.
func (s *Site) groupForHello(peer string, hello *linkpb.Hello) (*Group, error) {
	if err := s.cfg.checkHello(hello); err != nil {
		return nil, err
	}
	if err := s.makeWayForNamesake(peer, hello); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f, err := s.relate(peer, hello.GroupId, hello.GroupName)
	switch {
	case err != nil:
		return nil, err
	case f.relation == relationPeer && f.broken != nil:
		return nil, fmt.Errorf("group %s cannot be opened at %s: %w", hello.GroupName, s.cfg.Site, f.broken)
	case f.relation == relationPeer:
		return f.group, nil
	}
	// Before it is known whether there is a group: what is wrong with the call itself is told to everybody.
	spec := GroupSpec{Name: hello.GroupName, Settings: settingsFromWire(hello)}
	spec.Peer = peer
	if err := spec.check(); err != nil {
		return nil, err
	}
	switch f.relation {
	case relationStranger:
		return nil, f.explain(peer, hello)
	case relationNamesake, relationSpent: // a spent one that has been filled since
		return nil, fmt.Errorf("%w: group %s at %s is another one (%s) than %s's (%s); delete one of them", ErrExists,
			hello.GroupName, s.cfg.Site, f.group.ID(), peer, hello.GroupId)
	}
	spec.JournalSizeBytes = s.copyJournalBytes(spec.JournalSizeBytes)
	spec.HistoryBytes = min(spec.HistoryBytes, spec.JournalSizeBytes/2)
	if err := s.admitGroup(peer, spec.Name, spec.JournalSizeBytes); err != nil {
		return nil, err
	}
	klog.InfoS("New group from a peer", "group", hello.GroupName, "groupID", hello.GroupId, "peer", peer)
	return s.addLocked(core.Meta{
		Version: core.MetaVersion, GroupID: hello.GroupId, Name: hello.GroupName, Site: s.cfg.Site, Settings: spec.Settings,
		Role: core.RoleSecondary, Timelines: timelinesFromWire(hello.Timelines), Sync: core.SyncNever,
		Instance: uuid.NewString(),
	})
}

// turnAway ends a stream that did not get as far as its group.
func (s *Site) turnAway(stream link.PeerStream, hello *linkpb.Hello, reason error) error {
	s.refusals.Error(reason, "Primary refused", "peer", stream.Peer(), "group", hello.GroupName, "groupID", hello.GroupId)
	refusal := &linkpb.Refusal{Reason: linkpb.Refusal_REASON_FAILED, Message: untrusted.Reason(reason.Error())}
	switch {
	case errors.Is(reason, errForeign):
		refusal = link.RefuseForeign(s.cfg.Site, stream.Peer(), hello)
	case errors.Is(reason, ErrExists), errors.Is(reason, ErrInvalid):
		refusal.Reason = linkpb.Refusal_REASON_FOREIGN_GROUP
	}
	return stream.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: refusal}})
}

// explain is what this site's log says of a stranger's call.
func (f found) explain(peer string, hello *linkpb.Hello) error {
	what := "a group that cannot be opened: " + fmt.Sprint(f.broken)
	if f.group != nil {
		what = fmt.Sprintf("group %s (%s), which replicates with %q", f.group.Name(), f.group.ID(), f.group.peer())
	}
	return fmt.Errorf("%w: %s calls for %.128q (%s), which here is %s", errForeign, peer, hello.GroupName, hello.GroupId,
		what)
}

// makeWayForNamesake deletes what is left here of an earlier group of the caller with the name, if that is nothing.
// Else a group that is deleted and made again, as by a label that is removed and set again, would be refused for good.
func (s *Site) makeWayForNamesake(peer string, hello *linkpb.Hello) error {
	s.mu.Lock()
	f, err := s.relate(peer, hello.GroupId, hello.GroupName)
	s.mu.Unlock()
	if err != nil || f.relation != relationSpent {
		return err
	}
	klog.InfoS("An empty copy makes way for a new group of its primary", "group", hello.GroupName, "peer", peer,
		"groupID", f.group.ID(), "newGroupID", hello.GroupId)
	return s.DeleteGroup(hello.GroupName, false)
}
