package plan

import (
	"cmp"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

// What is not known of a group at the engine is neither absent nor empty: its node does not answer, the driver of its
// node has no replicator, or the group cannot be opened.

// Unseen returns the groups that the status of a ConsistencyGroup names on nodes that do not tell whether they have
// them.
func (in *Input) Unseen(g *v1alpha1.ConsistencyGroup, places []engine.Place) (unseen []v1alpha1.EngineGroup) {
	for _, e := range g.Status.EngineGroups {
		node := in.View.Nodes[e.Node]
		if node != nil && node.Untold() && !slices.ContainsFunc(places, func(at engine.Place) bool {
			return at.Group.GetName() == e.Name
		}) {
			unseen = append(unseen, v1alpha1.EngineGroup{Name: e.Name, Node: e.Node, Role: v1alpha1.RoleUnknown,
				State: stateUnknown, Shard: e.Shard})
		}
	}
	return unseen
}

// unreadable says what to do about a group that cannot be opened.
func unreadable(group, node, why string) string {
	return fmt.Sprintf("group %s at the engine of node %s cannot be opened: %s; put that right, or give up what its "+
		"journal has, on that node: slipctl group delete %s --force", group, node,
		cmp.Or(why, "see the log of its replicator"), group)
}

// unopened says what keeps a number from being chosen: a group that cannot be opened could have it.
func (gp *Group) unopened() string {
	for _, at := range gp.Places {
		if at.Group.Unreadable() {
			return unreadable(at.Group.GetName(), at.Node, at.Group.GetStateReason())
		}
	}
	for _, e := range gp.Unseen {
		return fmt.Sprintf("node %s does not tell of group %s", e.Node, e.Name)
	}
	return ""
}

// Reasons of conditions that need to know a group at the engine. NodeSilent: its node does not answer. NoReplicator:
// the driver of its node has none, so nothing tells whether the group is there. GroupUnreadable: the group cannot be
// opened. PeerNotHeard: only the other site knows. NoMembers: there is no group at the engine yet.
const (
	reasonNodeSilent      = "NodeSilent"
	reasonNoReplicator    = "NoReplicator"
	reasonGroupUnreadable = "GroupUnreadable"
	reasonPeerNotHeard    = "PeerNotHeard"
	reasonNoMembers       = "NoMembers"
)

const noMembers = "the group has no claims yet"

// untold says why nothing is known of a group at the engine; empty where its node tells of it.
func (gp *Group) untold(in *Input, e v1alpha1.EngineGroup) (reason, message string) {
	node := in.View.Nodes[e.Node]
	switch {
	case node.Silent():
		reason, message = reasonNodeSilent, fmt.Sprintf("node %s does not answer: bring it back, or name it in "+
			"controller.retiredNodes if it is gone for good", e.Node)
	case node.Without:
		reason, message = reasonNoReplicator, fmt.Sprintf("the driver of node %s has no replicator to tell of group %s: "+
			"install the chart with replication.enabled=true", e.Node, e.Name)
	case e.Role == v1alpha1.RoleUnknown:
		reason, message = reasonGroupUnreadable, unreadable(e.Name, e.Node, e.Reason)
	}
	if reason != "" && !gp.Group.DeletionTimestamp.IsZero() {
		message = "the deletion waits: " + message
	}
	return reason, message
}

// known returns a condition that holds if all groups at the engine tell of themselves, or Unknown if one does not, or
// if there is none.
func (gp *Group) known(in *Input, s *v1alpha1.ConsistencyGroupStatus, holds metav1.Condition) metav1.Condition {
	for _, e := range s.EngineGroups {
		if reason, message := gp.untold(in, e); reason != "" {
			return kube.Condition(holds.Type, metav1.ConditionUnknown, reason, "%s", message)
		}
	}
	if len(s.EngineGroups) == 0 {
		return kube.Condition(holds.Type, metav1.ConditionUnknown, reasonNoMembers, noMembers)
	}
	return holds
}
