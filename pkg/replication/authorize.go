package replication

import (
	"errors"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// errForeign: the calling site has no part in the group that it names. The caller gets [link.RefuseForeign] and nothing
// else, and nothing was changed.
var errForeign = errors.New("not a group of the calling site")

// relation is what a calling site is to the group that it names.
type relation int

const (
	// relationPeer: the group replicates with the caller. Zero: nothing here has the group's id or its name.
	relationPeer relation = iota + 1
	// relationNamesake: another group of the caller has the name.
	relationNamesake
	// relationStranger: what has the id or the name is not the caller's.
	relationStranger
)

// found is what relate found. group is nil if it does not exist, and if it cannot be opened; then broken says why.
type found struct {
	relation relation
	group    *Group
	broken   error
}

// relate says what a site is to the group with an id and a name. Everything that a peer may learn of a group, or do to
// it, depends on the answer. An empty peer is this site's own gateway of an earlier release, which may know all. The
// caller holds s.mu.
func (s *Site) relate(peer, id, name string) (found, error) {
	dir, err := s.cfg.Pool.GroupDir(id)
	if err != nil {
		return found{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	for _, g := range s.groups {
		if g.ID() == id {
			return foundOf(peer, g.peer(), found{relation: relationPeer, group: g}), nil
		}
	}
	if err := s.broken[dir]; err != nil {
		// If group.json cannot be read either, the peer is unknown.
		owner := ""
		if meta, err := loadMeta(s.cfg.FS, dir+"/"+core.MetaFile); err == nil {
			owner = meta.Peer
		}
		return foundOf(peer, owner, found{relation: relationPeer, broken: err}), nil
	}
	if g := s.groups[name]; g != nil {
		return foundOf(peer, g.peer(), found{relation: relationNamesake, group: g}), nil
	}
	return found{}, nil
}

// foundOf is f for the group's peer, and relationStranger for others.
func foundOf(caller, owner string, f found) found {
	if caller != "" && caller != owner {
		f.relation = relationStranger
	}
	return f
}

// peer is the site that the group replicates with; empty for none.
func (g *Group) peer() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Peer
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
