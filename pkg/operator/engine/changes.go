package engine

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// NodeKey is the name of a node among changes.
func NodeKey(node string) string { return fmt.Sprintf("node %s", node) }

// Changes names the groups that differ between two views, and the nodes that fell silent or are back (NodeKey).
func Changes(before, now *View) map[string]bool {
	changed := map[string]bool{}
	for name, places := range now.groups {
		old := before.groups[name]
		if len(old) != len(places) {
			changed[name] = true
			continue
		}
		for i := range places {
			if !same(old[i], places[i], before.Nodes, now.Nodes) {
				changed[name] = true
			}
		}
	}
	for name := range before.groups {
		if len(now.groups[name]) == 0 {
			changed[name] = true
		}
	}
	for name, node := range now.Nodes {
		if old := before.Nodes[name]; old == nil || old.Silent() != node.Silent() || old.Without != node.Without {
			changed[NodeKey(name)] = true
		}
	}
	return changed
}

// same reports whether a group and what is known of its node are as they were, apart from figures that change with
// every write.
func same(a, b Place, nodesA, nodesB map[string]*Node) bool {
	if a.Node != b.Node || nodesA[a.Node].Silent() != nodesB[b.Node].Silent() {
		return false
	}
	x, y := proto.CloneOf(a.Group), proto.CloneOf(b.Group)
	for _, g := range []*sidecarpb.GroupStatus{x, y} {
		g.HeadOrdinal, g.DurableOrdinal, g.AppliedOrdinal, g.AcknowledgedOrdinal = 0, 0, 0, nil
		g.LagOrdinals, g.LagBytes, g.LagSeconds, g.LastReplicatedUnixNanos = nil, nil, nil, nil
		g.JournalUsedBytes, g.ChangeMapBytes, g.SyncDoneBytes, g.SyncTotalBytes = 0, 0, nil, nil
		g.ClockDifferenceSeconds, g.ClockDifferenceErrorSeconds, g.PeerSilentSeconds = nil, nil, nil
		for _, v := range g.Volumes {
			v.UnappliedBytes, v.ChangeMapBytes = 0, 0
		}
	}
	return proto.Equal(x, y)
}

// Serves reports that a group takes writes here.
func Serves(g *sidecarpb.GroupStatus) bool {
	return g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && !g.GetRollingBack() &&
		g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED
}

// Empty reports that a group has no volumes. Volumes that are not known are not none.
func Empty(g *sidecarpb.GroupStatus) bool {
	return len(g.GetVolumes()) == 0 && !g.Unreadable() && !g.GetRollingBack()
}
