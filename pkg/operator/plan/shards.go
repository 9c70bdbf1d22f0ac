package plan

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
)

// Shards is what is decided of a ConsistencyGroup as one group over several nodes.
//
// The operator chooses the numbers: it alone sees all nodes and all claims of the group, and there is one leader. A
// number is in the status of the ConsistencyGroup before its shard is made. It is written under the version of the
// object that it was decided from, so of two operators one fails, and after a crash the next one makes the same shard.
// What the nodes tell goes before the record, which may come from an older backup. For the same reason no number is
// chosen while a node is silent: it may have a shard that nothing else tells of.
type Shards struct {
	// Record has the numbers, those of the status and those that the nodes tell of; nil for none.
	Record *v1alpha1.Shards
	// Added: there are numbers that the status does not have yet. Nodes are those of the group, with the new ones.
	Added bool
	Nodes []string
	// refusal is why a group at the engine that should be a shard is none.
	refusal string
}

// knownShards returns the record with what the nodes tell, or why this cannot be one group.
func knownShards(recorded *v1alpha1.Shards, places []engine.Place) (known *v1alpha1.Shards, conflict string) {
	known = recorded.DeepCopy()
	told := ""
	for _, at := range places {
		shard := at.Group.GetShard()
		switch {
		case shard == nil:
			continue
		case told == "" && (known == nil || known.Name != shard.GetGroup()):
			known = &v1alpha1.Shards{Name: shard.GetGroup()}
		case told != "" && told != shard.GetGroup():
			return known, fmt.Sprintf("the groups at the engine are shards of two groups, %s and %s", told, shard.GetGroup())
		}
		told = shard.GetGroup()
	}
	numbers := map[int32]string{}
	if known != nil {
		for _, n := range known.Numbers {
			numbers[n.Number] = n.EngineGroup
		}
	}
	mark := func(number uint32, group string) {
		n := int32(min(number, maxShardNumber))
		if _, there := numbers[n]; group == "" && there {
			return
		}
		for other, has := range numbers {
			if group != "" && has == group {
				numbers[other] = ""
			}
		}
		numbers[n] = group
	}
	seen := map[uint32]string{}
	for _, at := range places {
		shard := at.Group.GetShard()
		if shard == nil {
			continue
		}
		if other, twice := seen[shard.GetId()]; twice {
			conflict = fmt.Sprintf("groups %s and %s at the engine both have the number %d", other, at.Group.GetName(),
				shard.GetId())
		}
		seen[shard.GetId()] = at.Group.GetName()
		mark(shard.GetId(), at.Group.GetName())
		for _, number := range shard.GetNumbers() {
			mark(number, "")
		}
		for _, p := range shard.GetShards() {
			mark(p.GetId(), "")
		}
	}
	if known == nil {
		return nil, conflict
	}
	known.Numbers = nil
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		known.Numbers = append(known.Numbers, v1alpha1.ShardNumber{Number: n, EngineGroup: numbers[n]})
	}
	return known, conflict
}

// maxShardNumber is the largest number that the engine has.
const maxShardNumber = 1<<16 - 1

// numbered returns the number of a group at the engine.
func numbered(record *v1alpha1.Shards, group string) (int32, bool) {
	for _, n := range record.Numbers {
		if n.EngineGroup == group {
			return n.Number, true
		}
	}
	return 0, false
}

// orderNodes makes the groups of several nodes shards of one, where that is wanted and possible.
func (gp *Group) orderNodes(in *Input) {
	sp, mode := &gp.Shards, gp.Group.Spec.WriteOrder
	var conflict string
	sp.Record, conflict = knownShards(gp.Group.Status.Shards, gp.Places)
	shards := slices.ContainsFunc(gp.Places, func(at engine.Place) bool { return at.Group.GetShard() != nil })
	var separate, creates []Op
	for _, at := range gp.Places {
		if at.Group.GetShard() == nil && engine.Serves(at.Group) && gp.Refusal == "" &&
			!in.View.Nodes[at.Node].Silent() {
			separate = append(separate, Op{Kind: OpModifyGroup, Node: at.Node, Group: at.Group.GetName(),
				Settings: &sidecarpb.GroupSettings{}})
		}
	}
	for _, op := range gp.Ops {
		if op.Kind == OpCreateGroup {
			creates = append(creates, op)
		}
	}
	groups := len(gp.Places) + len(creates)
	switch {
	case groups == 0 && len(gp.Unseen) == 0 && len(in.View.Silent()) == 0:
		sp.Record = nil // all are gone: the next one is another group
		return
	case gp.Secondary(), len(separate)+len(creates) == 0, !shards && groups == 1:
		return
	case !shards && mode == v1alpha1.WriteOrderNode:
		sp.Record = nil
		return
	case !shards && sp.Record == nil && mode == "" && len(gp.Places) > 1:
		return // separate groups stay separate until a person says otherwise
	}
	insists := shards || sp.Record != nil || mode == v1alpha1.WriteOrderGroup
	for _, op := range slices.Concat(separate, creates) {
		if sp.Record != nil {
			if _, ok := numbered(sp.Record, op.Group); ok {
				continue
			}
		}
		sp.Added = true
	}
	sp.Nodes = gp.nodesWith(creates)
	switch silent := in.View.Silent(); {
	case conflict != "":
		sp.refusal = conflict
	case sp.Added && len(silent) > 0:
		slices.Sort(silent)
		sp.refusal, insists = fmt.Sprintf("nodes %s do not answer, and could have a shard of the group that has the next "+
			"number; bring them back, or name those that are gone for good in controller.retiredNodes",
			strings.Join(silent, ", ")), true
	case sp.Added && gp.unopened() != "":
		sp.refusal, insists = gp.unopened(), true
	case in.Unable[gp.Group.Name] != "":
		sp.refusal = in.Unable[gp.Group.Name]
	default:
		if away := gp.unconnected(); away != "" {
			sp.refusal, insists = away, true
		}
	}
	if sp.refusal != "" {
		sp.Added = false
		if insists {
			gp.hold(creates)
		}
		return
	}
	if sp.Record == nil {
		sp.Record = &v1alpha1.Shards{Name: wholeName(gp.Group)}
	}
	for _, op := range slices.Concat(separate, creates) {
		number, ok := numbered(sp.Record, op.Group)
		if !ok {
			number = next(sp.Record)
			sp.Record.Numbers = append(sp.Record.Numbers, v1alpha1.ShardNumber{Number: number, EngineGroup: op.Group})
		}
		op.Settings.ShardOf, op.Settings.Shard = &sp.Record.Name, new(uint32(number)) // of the call in gp.Ops, too
	}
	gp.Ops = append(separate, gp.Ops...)
}

// unconnected names a group that is to become a shard, and whose copy does not follow. From the time that the copy
// hears that it is one, it can be promoted at complete epochs only, so their marks have to come soon.
func (gp *Group) unconnected() string {
	for _, at := range gp.Places {
		if at.Group.GetShard() == nil && engine.Serves(at.Group) && !at.Group.GetConnected() {
			return fmt.Sprintf("group %s at the engine of node %s becomes a shard when it is connected to %s",
				at.Group.GetName(), at.Node, at.Group.GetPeer())
		}
	}
	return ""
}

// next is a number that no shard has or had, as far as is known.
func next(record *v1alpha1.Shards) (number int32) {
	for _, n := range record.Numbers {
		number = max(number, n.Number+1)
	}
	return number
}

// nodesWith returns the nodes of the groups at the engine, and those of calls.
func (gp *Group) nodesWith(ops []Op) []string {
	seen := map[string]bool{}
	for _, at := range gp.Places {
		seen[at.Node] = true
	}
	for _, op := range ops {
		seen[op.Node] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// hold makes the claims wait whose groups cannot be made.
func (gp *Group) hold(creates []Op) {
	for _, c := range creates {
		gp.Ops = slices.DeleteFunc(gp.Ops, func(op Op) bool { return op.Group == c.Group })
		for i := range gp.Members {
			if m := &gp.Members[i]; m.Node == c.Node && m.State == v1alpha1.MemberJoining {
				m.State, m.Reason = v1alpha1.MemberPending, "the group has one order of writes over several nodes, and cannot "+
					"get a shard on node "+c.Node+" yet: "+gp.Shards.refusal
			}
		}
	}
}

// emptied reports whether it is known that no shard of the group has a volume or gets one. Until then an empty one
// stays: without it the others have no complete epochs anymore.
func (gp *Group) emptied() bool {
	return gp.unopened() == "" && !slices.ContainsFunc(gp.Places, func(at engine.Place) bool {
		return at.Group.GetShard() != nil && !engine.Empty(at.Group)
	}) && !slices.ContainsFunc(gp.Ops, func(op Op) bool { return op.Kind == OpAddVolume })
}

// wholeName is a name for a group over several nodes that no other one has ever had, at no site.
func wholeName(g *v1alpha1.ConsistencyGroup) string {
	readable := g.Namespace
	if g.Name != g.Namespace {
		readable += "." + g.Name
	}
	return readable + "-" + strings.ReplaceAll(uuid.NewString(), "-", "")[:16]
}
