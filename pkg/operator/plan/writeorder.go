package plan

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

// Reasons of ConditionWriteOrder. Group: there is one order. Node: each node has its own. NodeUnable: a node cannot
// have a shard. Joining: a shard is not in the epochs yet. ShardAway: a shard is on no node that answers, or its
// replicator does not reach the others; there are no new epochs. NodeSilent: not known. ShardConflict: what the nodes
// have is not one group.
const (
	reasonOrderGroup      = "Group"
	reasonOrderNode       = "Node"
	reasonOrderUnable     = "NodeUnable"
	reasonOrderJoining    = "Joining"
	reasonOrderShardAway  = "ShardAway"
	reasonOrderNodeSilent = "NodeSilent"
	reasonOrderConflict   = "ShardConflict"
)

// writeOrder says whether all members have one order of writes.
func (gp *Group) writeOrder(in *Input) metav1.Condition {
	is := func(status metav1.ConditionStatus, reason, format string, args ...any) metav1.Condition {
		return kube.Condition(v1alpha1.ConditionWriteOrder, status, reason, format, args...)
	}
	nodes := gp.nodes()
	shards := slices.ContainsFunc(gp.Places, func(at engine.Place) bool { return at.Group.GetShard() != nil })
	_, conflict := knownShards(nil, gp.Places)
	switch {
	case conflict != "":
		return is(metav1.ConditionFalse, reasonOrderConflict, "%s: see slipctl group status on their nodes", conflict)
	case shards:
		return gp.shardOrder(in, is)
	case len(nodes) <= 1:
		return is(metav1.ConditionTrue, reasonOrderGroup, "all members have one order of writes")
	}
	where := fmt.Sprintf("members are on nodes %s, with one group at the engine for each: order is kept between claims "+
		"of one node only, and a failover takes each node's claims to an instant of its own. ", strings.Join(nodes, ", "))
	if gp.Shards.refusal != "" {
		return is(metav1.ConditionFalse, reasonOrderUnable, "%sThey cannot have one order: %s", where,
			gp.Shards.refusal)
	}
	return is(metav1.ConditionFalse, reasonOrderNode, "%sTo give them one order, at the primary site: kubectl -n %s "+
		"patch cg %s --type merge -p '{\"spec\":{\"writeOrder\":\"Group\"}}'", where, gp.Group.Namespace, gp.Group.Name)
}

// shardOrder is writeOrder of a group that has shards.
func (gp *Group) shardOrder(in *Input,
	is func(metav1.ConditionStatus, string, string, ...any) metav1.Condition) metav1.Condition {
	const stays = "until then there are no new epochs, and the copy stays at the last one that is complete"
	name, seen, nodes := "", map[uint32]bool{}, map[string]bool{}
	for _, at := range gp.Places {
		nodes[at.Node] = true
		if in.View.Nodes[at.Node].Silent() {
			return is(metav1.ConditionUnknown, reasonOrderNodeSilent, "node %s, which has group %s at the engine, does not "+
				"answer; if its replicator is away, there are no new epochs, and the copy stays at the last one that is complete",
				at.Node, at.Group.GetName())
		}
		if s := at.Group.GetShard(); s != nil {
			name, seen[s.GetId()] = s.GetGroup(), true
		}
	}
	for _, at := range gp.Places {
		s := at.Group.GetShard()
		switch {
		case s == nil && gp.Shards.refusal != "":
			return is(metav1.ConditionFalse, reasonOrderUnable, "group %s at the engine of node %s is no shard of %s: %s",
				at.Group.GetName(), at.Node, name, gp.Shards.refusal)
		case s == nil:
			return is(metav1.ConditionFalse, reasonOrderJoining, "group %s at the engine of node %s is no shard of %s yet",
				at.Group.GetName(), at.Node, name)
		case len(s.GetSilentNodes()) > 0:
			return is(metav1.ConditionFalse, reasonOrderShardAway, "the replicator of node %s gets no answer from %s; see that "+
				"the replicators of all nodes run and reach each other; %s", at.Node, strings.Join(s.GetSilentNodes(), ", "), stays)
		}
		for _, number := range s.GetNumbers() {
			if !seen[number] {
				return is(metav1.ConditionFalse, reasonOrderShardAway, "shard %d of %s is on no node that answers; bring its "+
					"node back; %s", number, name, stays)
			}
		}
		i := slices.IndexFunc(s.GetShards(), func(p *sidecarpb.ShardPlace) bool { return p.GetId() == s.GetId() })
		if at.Group.GetRole() == sidecarpb.Role_ROLE_PRIMARY && (i < 0 || !s.GetShards()[i].GetJoined()) {
			return is(metav1.ConditionFalse, reasonOrderJoining, "shard %d of %s, group %s on node %s, has not joined yet: "+
				"epochs do not include it", s.GetId(), name, at.Group.GetName(), at.Node)
		}
	}
	if gp.Shards.refusal != "" {
		return is(metav1.ConditionFalse, reasonOrderUnable, "the group cannot grow to another node yet: %s",
			gp.Shards.refusal)
	}
	return is(metav1.ConditionTrue, reasonOrderGroup, "all members have one order of writes, as %s of group %s on "+
		"%s", words.Count(len(seen), "shard"), name, words.Count(len(nodes), "node"))
}
