package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// NotTaken is a group of spec.engineGroups that is not taken over. Reason is that of the condition Allowed.
type NotTaken struct{ Reason, Text string }

// The reasons of NotTaken.
const (
	reasonForeign = "ForeignEngineGroup"
	reasonUnknown = "UnknownEngineGroup"
)

// Places returns the groups at the engine that belong to a ConsistencyGroup: those with its name for their node, and
// those that its spec names if they are known to be of this namespace.
func (in *Input) Places(g *v1alpha1.ConsistencyGroup) (places []engine.Place, not []NotTaken) {
	for node := range in.View.Nodes {
		for _, at := range in.View.Group(in.ownName(g, node)) {
			if at.Node == node {
				places = append(places, at)
			}
		}
	}
	for _, name := range g.Spec.EngineGroups {
		for _, at := range in.View.Group(name) {
			if why := in.notOurs(g, at); why != nil {
				not = append(not, *why)
			} else if !slices.ContainsFunc(places, func(p engine.Place) bool { return p.Group == at.Group }) {
				places = append(places, at)
			}
		}
	}
	slices.SortFunc(places, func(a, b engine.Place) int {
		return cmp.Or(cmp.Compare(a.Group.GetName(), b.Group.GetName()), cmp.Compare(a.Node, b.Node))
	})
	return places, not
}

// ownName is the name of the group that the operator makes for an object on a node; "" without the namespace.
func (in *Input) ownName(g *v1alpha1.ConsistencyGroup, node string) string {
	if in.Namespace == nil {
		return ""
	}
	return engineGroupName(g.Namespace, in.Namespace.UID, g.Name, node)
}

// ownership is what is known of whose a volume or a group is.
type ownership int

const (
	unknown ownership = iota
	ours
	theirs
)

// notOurs returns why a group that the spec of an object names is not taken over, nil if it is. A person who may write
// the object can name any group, so the engine has to say that each of its volumes is of this namespace. Where the
// engine does not say whose a group is, what the operator has recorded decides, or a volume of the same group.
func (in *Input) notOurs(g *v1alpha1.ConsistencyGroup, at engine.Place) *NotTaken {
	name, recorded := at.Group.GetName(), in.recorded(g, at)
	for _, v := range at.Group.GetVolumes() {
		switch whose := in.owner(g, at.Group, v); {
		case whose == theirs:
			return &NotTaken{reasonForeign, fmt.Sprintf("group %s at the engine has volume %s of namespace %q; take it out of "+
				"spec.engineGroups", name, v.GetVolumeId(), v.GetClaimNamespace())}
		case whose == unknown && !recorded:
			return &NotTaken{reasonUnknown, fmt.Sprintf("group %s at the engine has volume %s of namespace %q, and it is not "+
				"known whether that is a name of this cluster or of %s: make RemoteSite %s and a PersistentVolume of the volume "+
				"(on node %s: slipctl group pvs %s), or take the group out of spec.engineGroups", name, v.GetVolumeId(),
				v.GetClaimNamespace(), at.Group.GetPeer(), at.Group.GetPeer(), at.Node, name)}
		}
	}
	if len(at.Group.GetVolumes()) > 0 || recorded || in.shardOfOurs(g, at.Group.GetShard().GetGroup()) {
		return nil
	}
	return &NotTaken{reasonUnknown, fmt.Sprintf("group %s at the engine has no volumes, so it is not known whose it is; "+
		"it is taken over when it has one; if it is to have none, take it out of spec.engineGroups", name)}
}

// recorded reports that the operator has made a group for the object, or has taken it over already. Only the operator
// writes a status.
func (in *Input) recorded(g *v1alpha1.ConsistencyGroup, at engine.Place) bool {
	return at.Group.GetName() == in.ownName(g, at.Node) ||
		slices.ContainsFunc(g.Status.EngineGroups, func(e v1alpha1.EngineGroup) bool { return e.Name == at.Group.GetName() })
}

// owner says whose a volume is. What the engine says of a copy are names at the other site. What it says of a primary
// are such names too from the promotion here until the operator has told the engine of the claims here. A
// PersistentVolume of the volume decides then.
func (in *Input) owner(g *v1alpha1.ConsistencyGroup, group *sidecarpb.GroupStatus,
	v *sidecarpb.VolumeStatus) ownership {
	there := v.GetClaimNamespace()
	here, known := there, true // what the name means if it is one of the other site
	if group.GetPeer() != "" {
		var site *v1alpha1.RemoteSite
		if site, known = in.Sites[group.GetPeer()]; known {
			here = site.Spec.Map.Namespace(there)
		}
	}
	copied := group.GetRole() == sidecarpb.Role_ROLE_SECONDARY
	switch {
	case known && (copied || here == there):
		if here == g.Namespace {
			return ours
		}
		return theirs
	case known && here != g.Namespace && there != g.Namespace:
		return theirs
	case in.hasVolume(v.GetVolumeId()):
		return ours
	}
	return unknown
}

// hasVolume reports whether a PersistentVolume of a claim of this namespace has a volume. An administrator or the
// operator has made it.
func (in *Input) hasVolume(id string) bool {
	for _, pv := range in.Volumes {
		if csi := pv.Spec.CSI; csi != nil && csi.Driver == plugin.Name && csi.VolumeHandle == id {
			return true
		}
	}
	return false
}

// shardOfOurs reports that a shard without volumes is of this namespace, as all other shards of its group that say
// whose they are; one has to.
func (in *Input) shardOfOurs(g *v1alpha1.ConsistencyGroup, group string) bool {
	found := false
	for _, other := range in.View.Shards(group) {
		switch {
		case len(other.Group.GetVolumes()) == 0 && !in.recorded(g, other):
		case in.notOurs(g, other) != nil:
			return false
		default:
			found = true
		}
	}
	return found
}
