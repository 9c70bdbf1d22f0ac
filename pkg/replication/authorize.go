package replication

import (
	"errors"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
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
	// relationSpent: another group of the caller has the name, and nothing is left in it.
	relationSpent
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
		f := found{relation: relationNamesake, group: g}
		if g.spent() {
			f.relation = relationSpent
		}
		return foundOf(peer, g.peer(), f), nil
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

// spent reports whether nothing is lost with a copy of a group: all volumes have left it, and it keeps nothing of
// another time. That is what stays here of a group whose primary was deleted after its volumes had left.
func (g *Group) spent() bool {
	g.mu.Lock()
	m := &g.core.Meta
	kept := m.Role != core.RoleSecondary || m.Base != nil || m.Yielding() != nil ||
		slices.ContainsFunc(m.Members, func(member core.Member) bool { return !member.Removed() })
	g.mu.Unlock()
	return !kept && len(g.Views()) == 0
}

// peer is the site that the group replicates with; empty for none.
func (g *Group) peer() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Peer
}
