package plan

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/membership"
)

// Input is what is known of one namespace.
type Input struct {
	*membership.Objects
	View *engine.View
	// Failures are why the last call for a volume failed, by the volume's id.
	Failures map[string]error
	// Unable are why the nodes of a ConsistencyGroup cannot have shards of one group, by its name.
	Unable map[string]string
}

// Read reads the objects of a namespace. View and Failures are empty.
func Read(ctx context.Context, c client.Reader, name string) (*Input, error) {
	objects, err := membership.Read(ctx, c, name)
	if err != nil {
		return nil, err
	}
	return &Input{Objects: objects, View: &engine.View{}}, nil
}

// OpKind is a call of the engine.
type OpKind string

// The kinds of calls.
const (
	OpCreateGroup  OpKind = "CreateGroup"
	OpModifyGroup  OpKind = "ModifyGroup"
	OpAddVolume    OpKind = "AddVolume"
	OpRemoveVolume OpKind = "RemoveVolume"
	OpDeleteGroup  OpKind = "DeleteGroup"
)

// Op is one call of the engine of a node.
type Op struct {
	Kind     OpKind
	Node     string
	Group    string
	Volume   string
	Settings *sidecarpb.GroupSettings
	// Move: out of the group that the volume is in.
	Move bool
	// Force deletes a group with its members; volumes and their content stay.
	Force bool
	// Settle deletes a shard: only some time after its last volume has left, so that its copy hears of that in an epoch.
	// Otherwise the copy would stay as it was, and refuse a later group with its name.
	Settle bool
	// Missing names the PersistentVolume whose claim is missing, if that is the reason of a removal: it has to be missing
	// a second time.
	Missing string
}

// Group is what is decided of one ConsistencyGroup.
type Group struct {
	Group *v1alpha1.ConsistencyGroup
	// Refusal and RefusalText say why the group may not replicate.
	Refusal, RefusalText string
	// Places are its groups at the engine.
	Places []engine.Place
	// Unseen are groups of its status on nodes that do not tell of them.
	Unseen  []v1alpha1.EngineGroup
	Members []v1alpha1.Member
	Ops     []Op
	// NotTaken are groups of spec.engineGroups that are not taken over.
	NotTaken []NotTaken
	// Remote is the site that the engine replicates to although the spec names another one.
	Remote string
	// Gone: the object is being deleted and has nothing at the engine anymore.
	Gone bool

	// Shards is what is decided of it as one group over several nodes.
	Shards Shards
}

// Plan is what is decided of one namespace.
type Plan struct {
	Groups   []*Group
	Excluded []v1alpha1.Excluded
}

// Make decides what belongs where and what is to be done. It reads in only.
func Make(in *Input) *Plan {
	p := &Plan{}
	plans := map[string]*Group{}
	owners := map[string]string{} // ConsistencyGroups by the name of their groups at the engine
	for _, g := range in.Groups {
		gp := &Group{Group: g}
		gp.Places, gp.NotTaken = in.Places(g)
		gp.Unseen = in.Unseen(g, gp.Places)
		if !gp.Secondary() { // of a copy nothing is replicated from here
			gp.Refusal, gp.RefusalText = in.Allowed(g)
		}
		for _, at := range gp.Places {
			owners[at.Group.GetName()] = g.Name
		}
		plans[g.Name] = gp
		p.Groups = append(p.Groups, gp)
	}
	desired := map[string]string{} // ConsistencyGroup or "" by volume, of all claims that are there
	for _, claim := range in.Claims {
		volume := in.VolumeOf(claim)
		at := engine.Place{}
		if volume != nil {
			at, _ = in.View.Volume(volume.Spec.CSI.VolumeHandle)
		}
		v := in.Judge(claim, owners[at.Group.GetName()])
		if volume != nil {
			desired[volume.Spec.CSI.VolumeHandle] = ""
		}
		if v.Group == nil {
			p.Excluded = append(p.Excluded, v1alpha1.Excluded{Claim: claim.Name, Reason: v.Reason, Message: v.Message})
			continue
		}
		if volume != nil {
			desired[volume.Spec.CSI.VolumeHandle] = v.Group.Name
		}
		plans[v.Group.Name].admit(in, claim, volume, owners)
	}
	for _, gp := range p.Groups {
		gp.leave(in, desired)
		gp.finish(in)
	}
	slices.SortFunc(p.Excluded, func(a, b v1alpha1.Excluded) int { return cmp.Compare(a.Claim, b.Claim) })
	return p
}

// admit makes a claim a member, or says why it is none yet.
func (gp *Group) admit(in *Input, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume,
	owners map[string]string) {
	m := v1alpha1.Member{Claim: claim.Name, State: v1alpha1.MemberPending, Reason: "the claim is not bound"}
	defer func() { gp.Members = append(gp.Members, m) }()
	if volume == nil {
		return
	}
	m.Volume, m.Node = volume.Spec.CSI.VolumeHandle, membership.NodeOf(volume)
	m.State, m.Reason = v1alpha1.MemberJoining, ""
	at, inGroup := in.View.Volume(m.Volume)
	if inGroup {
		m.Node = at.Node
		for _, v := range at.Group.GetVolumes() {
			if v.GetVolumeId() == m.Volume {
				m.SizeBytes = v.GetSizeBytes()
			}
		}
	}
	node := in.View.Nodes[m.Node]
	owner := ""
	if inGroup {
		owner, m.Group = owners[at.Group.GetName()], at.Group.GetName()
	}
	switch {
	case node == nil || node.Silent():
		m.State, m.Reason = v1alpha1.MemberNodeSilent, fmt.Sprintf("node %s does not answer", cmp.Or(m.Node, "of the volume"))
	case owner == gp.Group.Name:
		m.State = v1alpha1.MemberIn
	case !claim.DeletionTimestamp.IsZero():
		m.State, m.Reason = v1alpha1.MemberPending, "the claim is being deleted"
	case gp.Refusal != "":
		m.State, m.Reason = v1alpha1.MemberPending, "the group may not replicate: "+gp.RefusalText
	case inGroup && owner == "":
		m.State, m.Reason = v1alpha1.MemberFailed, fmt.Sprintf("the volume is in group %s at the engine, which was not made "+
			"for this object; add the group to spec.engineGroups, or take the volume out of it (on node %s: slipctl group "+
			"remove %s %s)", m.Group, m.Node, m.Group, m.Volume)
	case node.Without:
		m.State, m.Reason = v1alpha1.MemberNeedsRestage, fmt.Sprintf("the driver of node %s has no replicator: install the "+
			"chart with replication.enabled=true", m.Node)
	default:
		gp.join(in, &m, inGroup)
	}
}

// join asks the engine for a member.
func (gp *Group) join(in *Input, m *v1alpha1.Member, move bool) {
	target, exists := gp.target(in, m.Node)
	if exists.Unreadable() {
		m.State, m.Reason = v1alpha1.MemberFailed, unreadable(target, m.Node, exists.GetStateReason())
		return
	}
	if exists.GetRollingBack() {
		m.State, m.Reason = v1alpha1.MemberPending, fmt.Sprintf("group %s at the engine restores its images: wait until it "+
			"is open (on node %s: slipctl group status %s)", target, m.Node, target)
		return
	}
	if exists != nil && !engine.Serves(exists) || exists == nil && gp.Secondary() {
		m.State, m.Reason = v1alpha1.MemberPending, "the group is not primary here; its members are decided at the primary "+
			"site"
		return
	}
	if err := in.Failures[m.Volume]; err != nil {
		m.State, m.Reason = v1alpha1.MemberFailed, err.Error()
		if sidecarpb.Reason(err) == sidecarpb.ReasonNotReplicable {
			m.State = v1alpha1.MemberNeedsRestage
			m.Reason = fmt.Sprintf("volume %s was made without the parameter slipstream.dev/replicable, so its writes cannot "+
				"be "+
				"seen: make a claim with a StorageClass that has it, copy the data (stop the pods first), and use that claim",
				m.Volume)
			return
		}
	}
	if exists == nil && !slices.ContainsFunc(gp.Ops, func(o Op) bool {
		return o.Kind == OpCreateGroup && o.Group == target
	}) {
		gp.Ops = append(gp.Ops, Op{Kind: OpCreateGroup, Node: m.Node, Group: target, Settings: gp.settings(in)})
	}
	gp.Ops = append(gp.Ops, Op{Kind: OpAddVolume, Node: m.Node, Group: target, Volume: m.Volume, Move: move})
}

// target returns the group at the engine of a node that new members join: one of the spec that is primary there, or the
// one with the name for the node.
func (gp *Group) target(in *Input, node string) (string, *sidecarpb.GroupStatus) {
	own := in.ownName(gp.Group, node)
	var found *sidecarpb.GroupStatus
	for _, at := range gp.Places {
		if at.Node != node {
			continue
		}
		if at.Group.GetName() == own {
			return own, at.Group
		}
		if found == nil || at.Group.GetRole() == sidecarpb.Role_ROLE_PRIMARY {
			found = at.Group
		}
	}
	if found != nil {
		return found.GetName(), found
	}
	return own, nil
}

// Secondary reports whether everything that the group has at the engine is a copy.
func (gp *Group) Secondary() bool {
	return len(gp.Places) > 0 && !slices.ContainsFunc(gp.Places, func(at engine.Place) bool {
		return at.Group.GetRole() == sidecarpb.Role_ROLE_PRIMARY
	})
}

// leave takes volumes out of the group that do not belong to it.
func (gp *Group) leave(in *Input, desired map[string]string) {
	if !gp.Group.DeletionTimestamp.IsZero() {
		return // finish does it
	}
	handles := map[string]*corev1.PersistentVolume{}
	for _, volume := range in.Volumes {
		handles[volume.Spec.CSI.VolumeHandle] = volume
	}
	claims := map[string]*corev1.PersistentVolumeClaim{}
	for _, claim := range in.Claims {
		claims[claim.Name] = claim
	}
	for _, at := range gp.Places {
		for _, v := range at.Group.GetVolumes() {
			group, judged := desired[v.GetVolumeId()]
			if judged && group == gp.Group.Name {
				continue
			}
			remove := gp.Group.Spec.DeletionPolicy != v1alpha1.DeletionKeep && gp.Refusal == "" &&
				engine.Serves(at.Group) && !in.View.Nodes[at.Node].Silent()
			op := Op{Kind: OpRemoveVolume, Node: at.Node, Group: at.Group.GetName(), Volume: v.GetVolumeId()}
			if judged {
				// The claim is there, and says no. One that belongs to another group moves there by being added.
				if remove && group == "" {
					gp.Ops = append(gp.Ops, op)
				}
				continue
			}
			m := v1alpha1.Member{Claim: cmp.Or(v.GetClaimName(), v.GetVolumeId()), Volume: v.GetVolumeId(), Node: at.Node,
				Group: at.Group.GetName(), SizeBytes: v.GetSizeBytes(), State: v1alpha1.MemberIn}
			if slices.ContainsFunc(gp.Members, func(other v1alpha1.Member) bool { return other.Claim == m.Claim }) {
				m.Claim = v.GetVolumeId() // a new claim has the old one's name
			}
			volume := handles[v.GetVolumeId()]
			switch {
			case at.Group.GetRole() != sidecarpb.Role_ROLE_PRIMARY:
				m.Reason = "a copy without a claim here"
			case volume == nil:
				m.Reason = "there is no PersistentVolume of the volume; it stays in its group"
			case volume.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRetain &&
				volume.DeletionTimestamp.IsZero() && remove:
				// With Delete, the driver takes the volume out of its group when it deletes it.
				op.Missing = volume.Name
				gp.Ops = append(gp.Ops, op)
				m.Reason = "its claim was deleted; it leaves the group"
			default:
				m.Reason = "its claim was deleted"
			}
			gp.Members = append(gp.Members, m)
		}
	}
}

// finish completes the plan of a group: settings, empty groups, deletion.
func (gp *Group) finish(in *Input) {
	g := gp.Group
	slices.SortFunc(gp.Members, func(a, b v1alpha1.Member) int { return cmp.Compare(a.Claim, b.Claim) })
	deleting := !g.DeletionTimestamp.IsZero()
	if deleting && g.Spec.DeletionPolicy == v1alpha1.DeletionKeep {
		gp.Ops, gp.Gone = nil, true
		return
	}
	if deleting {
		gp.Ops, gp.Shards.Record = nil, g.Status.Shards
	} else {
		gp.orderNodes(in)
	}
	left := 0
	for _, at := range gp.Places {
		node := in.View.Nodes[at.Node]
		gp.modifyCopy(in, at)
		// What is a copy here belongs to its primary, and a node that is gone for good is not asked.
		if !mayServe(at.Group) || node.Retired && node.Err != nil {
			continue
		}
		left++
		if node.Silent() {
			continue
		}
		switch {
		case at.Group.GetRollingBack(), at.Group.Unreadable(): // it takes no calls until it is open
		case deleting && !engine.Serves(at.Group):
			// Nothing can be taken out of a group that takes no writes.
			gp.Ops = append(gp.Ops, Op{Kind: OpDeleteGroup, Node: at.Node, Group: at.Group.GetName(), Force: true})
		case deleting:
			for _, v := range at.Group.GetVolumes() {
				gp.Ops = append(gp.Ops, Op{Kind: OpRemoveVolume, Node: at.Node, Group: at.Group.GetName(),
					Volume: v.GetVolumeId()})
			}
			if at.Group.GetShard() == nil || gp.emptied() {
				gp.Ops = append(gp.Ops, deletion(at))
			}
		case gp.Refusal != "" || !engine.Serves(at.Group):
		case engine.Empty(at.Group) && !slices.Contains(g.Spec.EngineGroups, at.Group.GetName()) &&
			!slices.ContainsFunc(gp.Ops, func(o Op) bool { return o.Kind == OpAddVolume && o.Group == at.Group.GetName() }) &&
			(at.Group.GetShard() == nil || gp.emptied()):
			gp.Ops = append(gp.Ops, deletion(at))
		default:
			gp.modify(in, at)
		}
	}
	gp.Gone = deleting && left+len(gp.Unseen) == 0 && in.View.Known && len(in.View.Silent()) == 0
}

// mayServe reports that a group at the engine is primary here, becomes it, or could be it: it ends with the object.
func mayServe(g *sidecarpb.GroupStatus) bool {
	return g.GetRole() != sidecarpb.Role_ROLE_SECONDARY || g.GetRollingBack()
}

// Holds reports that the group has something at the engine that ends with the object, or gets it.
func (gp *Group) Holds() bool {
	return len(gp.Places) == 0 && len(gp.Ops) > 0 ||
		slices.ContainsFunc(gp.Places, func(at engine.Place) bool { return mayServe(at.Group) })
}

// deletion deletes an empty group.
func deletion(at engine.Place) Op {
	return Op{Kind: OpDeleteGroup, Node: at.Node, Group: at.Group.GetName(), Settle: at.Group.GetShard() != nil}
}

// nodes returns the nodes that have members, sorted.
func (gp *Group) nodes() []string {
	seen := map[string]bool{}
	for _, m := range gp.Members {
		if m.Node != "" {
			seen[m.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
