package plan

import (
	"cmp"

	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
)

// settings returns what is asked for of a group at the engine; what is not asked for is absent.
func (gp *Group) settings(in *Input) *sidecarpb.GroupSettings {
	site := in.Sites[gp.Group.Spec.RemoteSite]
	asked := Effective(gp.Group, site)
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
	keepTails(s, asked)
	return s
}

// Effective returns the settings of a group with the defaults of its site, which may be nil.
func Effective(g *v1alpha1.ConsistencyGroup, site *v1alpha1.RemoteSite) v1alpha1.ReplicationSettings {
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
	if s.KeepTails == nil {
		s.KeepTails = d.KeepTails
	}
	if s.KeepTailsFor == nil {
		s.KeepTailsFor = d.KeepTailsFor
	}
	return s
}

// modify brings the settings of a group at the engine in line. Another site costs the copy at the present one, so that
// has to be confirmed.
func (gp *Group) modify(in *Input, at engine.Place) {
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
	gp.change(at, want)
}

// change adds the operation that gives a group at the engine those of its settings that differ, if any do. want is
// changed.
func (gp *Group) change(at engine.Place, want *sidecarpb.GroupSettings) {
	have := at.Group
	unless(want.GetRemoteAddress() == have.GetPeerAddress(), &want.RemoteAddress)
	unless(want.GetJournalSizeBytes() == have.GetJournalSizeBytes(), &want.JournalSizeBytes)
	unless(want.GetJournalFull() == have.GetJournalFull(), &want.JournalFull)
	unless(float64(want.GetRpoTargetMillis())/1000 == have.GetRpoTargetSeconds(), &want.RpoTargetMillis)
	unless(want.GetShipBytesPerSecond() == have.GetShipBytesPerSecond(), &want.ShipBytesPerSecond)
	unless(want.GetTailsMost() == have.GetTailsMost(), &want.TailsMost)
	unless(want.GetTailsMillis() == have.GetTailsMillis(), &want.TailsMillis)
	if proto.Equal(want, &sidecarpb.GroupSettings{}) {
		return
	}
	gp.Ops = append(gp.Ops, Op{Kind: OpModifyGroup, Node: at.Node, Group: have.GetName(), Settings: want})
}

// unless takes a field out of what is asked for if it is so already.
func unless[T any](same bool, field **T) {
	if same {
		*field = nil
	}
}

// A tail is what a group wrote at this site and gave up. So how many are kept, and how long, is the only setting that a
// site decides for its copies as well: the tails of a group are at the site that yielded, which is a secondary then.

// keepTails adds to the settings of a group at the engine what is asked for of its tails.
func keepTails(s *sidecarpb.GroupSettings, asked v1alpha1.ReplicationSettings) {
	if asked.KeepTails != nil {
		s.TailsMost = new(uint32(max(*asked.KeepTails, 0)))
	}
	if asked.KeepTailsFor != nil {
		s.TailsMillis = new(asked.KeepTailsFor.Milliseconds())
	}
}

// modifyCopy brings those settings of a copy in line that are of this site.
func (gp *Group) modifyCopy(in *Input, at engine.Place) {
	if at.Group.GetRole() != sidecarpb.Role_ROLE_SECONDARY || !gp.Group.DeletionTimestamp.IsZero() || gp.Refusal != "" ||
		at.Group.GetRollingBack() || in.View.Nodes[at.Node].Silent() {
		return
	}
	want := &sidecarpb.GroupSettings{}
	keepTails(want, Effective(gp.Group, in.Sites[gp.Group.Spec.RemoteSite]))
	gp.change(at, want)
}
