package operator

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

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
	// Missing names the PersistentVolume whose claim is missing, if that is the reason of a removal: it has to be missing
	// a second time.
	Missing string
}

// GroupPlan is what is decided of one ConsistencyGroup.
type GroupPlan struct {
	Group *v1alpha1.ConsistencyGroup
	// Refusal and RefusalText say why the group may not replicate.
	Refusal, RefusalText string
	// Places are its groups at the engine.
	Places  []Place
	Members []v1alpha1.Member
	Ops     []Op
	// Foreign are groups of spec.engineGroups that are not taken over, with the reason.
	Foreign []string
	// Remote is the site that the engine replicates to although the spec names another one.
	Remote string
	// Gone: the object is being deleted and has nothing at the engine anymore.
	Gone bool
}

// Plan is what is decided of one namespace.
type Plan struct {
	Groups   []*GroupPlan
	Excluded []v1alpha1.Excluded
}

// MakePlan decides what belongs where and what is to be done. It reads in only.
func MakePlan(in *Input) *Plan {
	p := &Plan{}
	plans := map[string]*GroupPlan{}
	owners := map[string]string{} // ConsistencyGroups by the name of their groups at the engine
	for _, g := range in.Groups {
		gp := &GroupPlan{Group: g}
		gp.Places, gp.Foreign = in.places(g)
		if !gp.secondary() { // of a copy nothing is replicated from here
			gp.Refusal, gp.RefusalText = in.allowed(g)
		}
		for _, at := range gp.Places {
			owners[at.Group.GetName()] = g.Name
		}
		plans[g.Name] = gp
		p.Groups = append(p.Groups, gp)
	}
	desired := map[string]string{} // ConsistencyGroup or "" by volume, of all claims that are there
	for _, claim := range in.Claims {
		volume := in.volumeOf(claim)
		at, replicated := Place{}, false
		if volume != nil {
			at, replicated = in.View.Volume(volume.Spec.CSI.VolumeHandle)
		}
		v := in.judge(claim, replicated && owners[at.Group.GetName()] != "")
		if volume != nil {
			desired[volume.Spec.CSI.VolumeHandle] = ""
		}
		if v.group == nil {
			p.Excluded = append(p.Excluded, v1alpha1.Excluded{Claim: claim.Name, Reason: v.reason, Message: v.message})
			continue
		}
		if volume != nil {
			desired[volume.Spec.CSI.VolumeHandle] = v.group.Name
		}
		plans[v.group.Name].admit(in, claim, volume, owners)
	}
	for _, gp := range p.Groups {
		gp.leave(in, desired)
		gp.finish(in)
	}
	slices.SortFunc(p.Excluded, func(a, b v1alpha1.Excluded) int { return cmp.Compare(a.Claim, b.Claim) })
	return p
}

// places returns the groups at the engine that belong to a ConsistencyGroup: those with its name for their node, and
// those that its spec names if all of their volumes are of this namespace.
func (in *Input) places(g *v1alpha1.ConsistencyGroup) (places []Place, foreign []string) {
	if in.Namespace != nil {
		for node := range in.View.Nodes {
			for _, at := range in.View.Group(engineGroupName(g.Namespace, in.Namespace.UID, g.Name, node)) {
				if at.Node == node {
					places = append(places, at)
				}
			}
		}
	}
	for _, name := range g.Spec.EngineGroups {
		for _, at := range in.View.Group(name) {
			if why := in.notOurs(g, at.Group); why != "" {
				foreign = append(foreign, why)
			} else if !slices.ContainsFunc(places, func(p Place) bool { return p.Group == at.Group }) {
				places = append(places, at)
			}
		}
	}
	slices.SortFunc(places, func(a, b Place) int {
		return cmp.Or(cmp.Compare(a.Group.GetName(), b.Group.GetName()), cmp.Compare(a.Node, b.Node))
	})
	return places, foreign
}

// notOurs returns why a group at the engine is not one of this namespace. What the engine says of the claims of a copy
// are names at the other site.
func (in *Input) notOurs(g *v1alpha1.ConsistencyGroup, group *sidecarpb.GroupStatus) string {
	for _, volume := range group.GetVolumes() {
		local := volume.GetClaimNamespace()
		if site := in.Sites[group.GetPeer()]; site != nil {
			for _, m := range site.Spec.Map.Namespaces {
				if m.Remote == local && m.Local == g.Namespace {
					local = m.Local
				}
			}
		}
		if local != g.Namespace {
			return fmt.Sprintf("group %s at the engine has volume %s of namespace %q", group.GetName(), volume.GetVolumeId(),
				volume.GetClaimNamespace())
		}
	}
	return ""
}

// admit makes a claim a member, or says why it is none yet.
func (gp *GroupPlan) admit(in *Input, claim *corev1.PersistentVolumeClaim, volume *corev1.PersistentVolume,
	owners map[string]string) {
	m := v1alpha1.Member{Claim: claim.Name, State: v1alpha1.MemberPending, Reason: "the claim is not bound"}
	defer func() { gp.Members = append(gp.Members, m) }()
	if volume == nil {
		return
	}
	m.Volume, m.Node = volume.Spec.CSI.VolumeHandle, nodeOf(volume)
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
func (gp *GroupPlan) join(in *Input, m *v1alpha1.Member, move bool) {
	target, exists := gp.target(in, m.Node)
	if exists != nil && !serves(exists) || exists == nil && gp.secondary() {
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
func (gp *GroupPlan) target(in *Input, node string) (string, *sidecarpb.GroupStatus) {
	own := engineGroupName(gp.Group.Namespace, in.Namespace.UID, gp.Group.Name, node)
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

// secondary reports whether everything that the group has at the engine is a copy.
func (gp *GroupPlan) secondary() bool {
	return len(gp.Places) > 0 && !slices.ContainsFunc(gp.Places, func(at Place) bool {
		return at.Group.GetRole() == sidecarpb.Role_ROLE_PRIMARY
	})
}

// settings returns what is asked for of a group at the engine; what is not asked for is absent.
func (gp *GroupPlan) settings(in *Input) *sidecarpb.GroupSettings {
	site := in.Sites[gp.Group.Spec.RemoteSite]
	asked := effective(gp.Group, site)
	s := &sidecarpb.GroupSettings{Remote: &gp.Group.Spec.RemoteSite}
	if site.Spec.Address != "" {
		s.RemoteAddress = &site.Spec.Address
	}
	if asked.JournalSize != nil {
		size := asked.JournalSize.Value()
		s.JournalSizeBytes = &size
	}
	if asked.JournalFull != "" {
		full := sidecarpb.JournalFull_JOURNAL_FULL_TRACK
		if asked.JournalFull == v1alpha1.JournalFullStall {
			full = sidecarpb.JournalFull_JOURNAL_FULL_STALL
		}
		s.JournalFull = &full
	}
	if asked.RPOTarget != nil {
		target := asked.RPOTarget.Milliseconds()
		s.RpoTargetMillis = &target
	}
	if asked.ShipRate != nil {
		rate := asked.ShipRate.Value()
		s.ShipBytesPerSecond = &rate
	}
	return s
}

// effective returns the settings of a group with the defaults of its site, which may be nil.
func effective(g *v1alpha1.ConsistencyGroup, site *v1alpha1.RemoteSite) v1alpha1.ReplicationSettings {
	s := g.Spec.Settings
	if site == nil {
		return s
	}
	d := site.Spec.Defaults
	if s.RPOTarget == nil {
		s.RPOTarget = d.RPOTarget
	}
	if s.RTOTarget == nil {
		s.RTOTarget = d.RTOTarget
	}
	if s.JournalSize == nil {
		s.JournalSize = d.JournalSize
	}
	s.JournalFull = cmp.Or(s.JournalFull, d.JournalFull)
	if s.ShipRate == nil {
		s.ShipRate = d.ShipRate
	}
	return s
}

// leave takes volumes out of the group that do not belong to it.
func (gp *GroupPlan) leave(in *Input, desired map[string]string) {
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
				serves(at.Group) && !in.View.Nodes[at.Node].Silent()
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
func (gp *GroupPlan) finish(in *Input) {
	g := gp.Group
	slices.SortFunc(gp.Members, func(a, b v1alpha1.Member) int { return cmp.Compare(a.Claim, b.Claim) })
	deleting := !g.DeletionTimestamp.IsZero()
	if deleting && g.Spec.DeletionPolicy == v1alpha1.DeletionKeep {
		gp.Ops, gp.Gone = nil, true
		return
	}
	if deleting {
		gp.Ops = nil
	}
	left := 0
	for _, at := range gp.Places {
		node := in.View.Nodes[at.Node]
		// What is a copy here belongs to its primary, and a node that is gone for good is not asked.
		if at.Group.GetRole() != sidecarpb.Role_ROLE_PRIMARY || node.Retired && node.Err != nil {
			continue
		}
		left++
		if node.Silent() {
			continue
		}
		switch {
		case deleting && !serves(at.Group):
			// Nothing can be taken out of a group that takes no writes.
			gp.Ops = append(gp.Ops, Op{Kind: OpDeleteGroup, Node: at.Node, Group: at.Group.GetName(), Force: true})
		case deleting:
			for _, v := range at.Group.GetVolumes() {
				gp.Ops = append(gp.Ops, Op{Kind: OpRemoveVolume, Node: at.Node, Group: at.Group.GetName(),
					Volume: v.GetVolumeId()})
			}
			gp.Ops = append(gp.Ops, Op{Kind: OpDeleteGroup, Node: at.Node, Group: at.Group.GetName()})
		case gp.Refusal != "" || !serves(at.Group):
		case len(at.Group.GetVolumes()) == 0 && !slices.Contains(g.Spec.EngineGroups, at.Group.GetName()) &&
			!slices.ContainsFunc(gp.Ops, func(o Op) bool { return o.Kind == OpAddVolume && o.Group == at.Group.GetName() }):
			gp.Ops = append(gp.Ops, Op{Kind: OpDeleteGroup, Node: at.Node, Group: at.Group.GetName()})
		default:
			gp.modify(in, at)
		}
	}
	gp.Gone = deleting && left == 0 && in.View.Known && len(in.View.Silent()) == 0
}

// modify brings the settings of a group at the engine in line. Another site costs the copy at the present one, so that
// has to be confirmed.
func (gp *GroupPlan) modify(in *Input, at Place) {
	want := gp.settings(in)
	have := at.Group
	if have.GetPeer() != "" && have.GetPeer() != want.GetRemote() &&
		gp.Group.Annotations[v1alpha1.AnnotationConfirmRemote] != want.GetRemote() {
		gp.Remote = have.GetPeer()
		return
	}
	if have.GetPeer() == want.GetRemote() {
		want.Remote = nil
	}
	drop := func(differs bool, field any) {
		if differs {
			return
		}
		switch f := field.(type) {
		case **string:
			*f = nil
		case **int64:
			*f = nil
		case **sidecarpb.JournalFull:
			*f = nil
		}
	}
	drop(want.GetRemoteAddress() != have.GetPeerAddress(), &want.RemoteAddress)
	drop(want.GetJournalSizeBytes() != have.GetJournalSizeBytes(), &want.JournalSizeBytes)
	drop(want.GetJournalFull() != have.GetJournalFull(), &want.JournalFull)
	drop(float64(want.GetRpoTargetMillis())/1000 != have.GetRpoTargetSeconds(), &want.RpoTargetMillis)
	drop(want.GetShipBytesPerSecond() != have.GetShipBytesPerSecond(), &want.ShipBytesPerSecond)
	if want.Remote == nil && want.RemoteAddress == nil && want.JournalSizeBytes == nil && want.JournalFull == nil &&
		want.RpoTargetMillis == nil && want.ShipBytesPerSecond == nil {
		return
	}
	gp.Ops = append(gp.Ops, Op{Kind: OpModifyGroup, Node: at.Node, Group: have.GetName(), Settings: want})
}

// nodes returns the nodes that have members, sorted.
func (gp *GroupPlan) nodes() []string {
	seen := map[string]bool{}
	for _, m := range gp.Members {
		if m.Node != "" {
			seen[m.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}
