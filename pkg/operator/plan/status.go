package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
)

const (
	// maxMembers and maxEngineGroups are the limits of the schema. What is cut off is still replicated.
	maxMembers      = 2048
	maxEngineGroups = 256
)

// stateUnknown is the state of a group whose node does not answer.
const stateUnknown = "Unknown"

// severity orders states: the status shows the worst.
var severity = []string{"Streaming", "Idle", "Suspended", "Syncing", "Connecting", "Demoted", "Trial", stateUnknown,
	"Diverged", "Failed"}

func worse(a, b string) string {
	if slices.Index(severity, b) > slices.Index(severity, a) {
		return b
	}
	return a
}

func stateOf(v *engine.View, at engine.Place) string {
	if v.Nodes[at.Node].Silent() {
		return stateUnknown
	}
	word := at.Group.GetState().Word()
	if word == "" {
		return stateUnknown
	}
	return strings.ToUpper(word[:1]) + word[1:]
}

// RoleOf returns the role that a node tells of a group; RoleUnknown while the node is silent.
func RoleOf(v *engine.View, at engine.Place) v1alpha1.Role {
	switch {
	case v.Nodes[at.Node].Silent():
	case at.Group.GetRole() == sidecarpb.Role_ROLE_PRIMARY:
		return v1alpha1.RolePrimary
	case at.Group.GetRole() == sidecarpb.Role_ROLE_SECONDARY:
		return v1alpha1.RoleSecondary
	}
	return v1alpha1.RoleUnknown
}

// Status returns the status that follows from a plan. Transition times are those of the present status where a
// condition has not changed.
func Status(in *Input, p *Plan, gp *Group, now time.Time) v1alpha1.ConsistencyGroupStatus {
	g := gp.Group
	s := v1alpha1.ConsistencyGroupStatus{ObservedGeneration: g.Generation,
		RPOTarget: Effective(g, in.Sites[g.Spec.RemoteSite]).RPOTarget}
	lagKnown := len(gp.Places) > 0
	lag := &v1alpha1.Lag{}
	for _, at := range gp.Places {
		role, state := RoleOf(in.View, at), stateOf(in.View, at)
		e := v1alpha1.EngineGroup{Name: at.Group.GetName(), Node: at.Node, Role: role, State: state,
			Reason:     kube.Cut(cmp.Or(at.Group.GetApplyError(), at.Group.GetStateReason())),
			Timeline:   at.Group.GetTimeline(),
			Promotable: at.Group.GetPromotable(), SyncPercent: syncPercent(at.Group), Loss: LossOf(at.Group.GetLoss())}
		if shard := at.Group.GetShard(); shard != nil {
			e.Shard = new(int32(min(shard.GetId(), maxShardNumber)))
		}
		s.EngineGroups = append(s.EngineGroups, e)
		switch {
		case s.Role == "":
			s.Role = role
		case s.Role != role:
			s.Role = v1alpha1.RoleMixed
		}
		s.State = worse(s.State, state)
		lagKnown = addLag(lag, at.Group) && state != stateUnknown && lagKnown
	}
	for _, e := range gp.Unseen {
		_, e.Reason = gp.untold(in, e)
		s.EngineGroups, s.State, lagKnown = append(s.EngineGroups, e), worse(s.State, stateUnknown), false
		if s.Role = cmp.Or(s.Role, e.Role); s.Role != e.Role {
			s.Role = v1alpha1.RoleMixed
		}
	}
	if len(s.EngineGroups) > maxEngineGroups {
		s.EngineGroups = s.EngineGroups[:maxEngineGroups]
	}
	if lagKnown {
		s.Lag = lag
	}
	s.Confirm, s.Shards = Confirmation(gp.Places), gp.Shards.Record
	ready := 0
	for _, m := range gp.Members {
		if m.State == v1alpha1.MemberIn {
			ready++
		}
		m.Reason = kube.Cut(m.Reason)
		if len(s.Members) < maxMembers {
			s.Members = append(s.Members, m)
		}
	}
	s.MembersReady = fmt.Sprintf("%d/%d", ready, len(gp.Members))
	if in.shows(g) {
		s.Excluded = p.Excluded[:min(len(p.Excluded), maxMembers)]
	}
	conditions := gp.conditions(in, &s)
	s.NextStep = kube.Cut(nextStep(conditions))
	s.Conditions = slices.Clone(g.Status.Conditions)
	for _, c := range conditions {
		c.ObservedGeneration, c.LastTransitionTime = g.Generation, metav1.NewTime(now.Truncate(time.Second))
		meta.SetStatusCondition(&s.Conditions, c)
	}
	return s
}

// shows reports whether a group's status has the excluded claims of the namespace: one group of each namespace has
// them.
func (in *Input) shows(g *v1alpha1.ConsistencyGroup) bool {
	for _, other := range in.Groups {
		if other.Name == other.Namespace {
			return g == other
		}
	}
	first := slices.MinFunc(in.Groups, func(a, b *v1alpha1.ConsistencyGroup) int { return cmp.Compare(a.Name, b.Name) })
	return g == first
}

// syncPercent is in steps of five, so that a status is not written for every extent.
func syncPercent(g *sidecarpb.GroupStatus) *int32 {
	if g.GetState() != sidecarpb.GroupState_GROUP_STATE_SYNCING || g.SyncTotalBytes == nil || g.GetSyncTotalBytes() == 0 {
		return nil
	}
	percent := int32(min(g.GetSyncDoneBytes()*100/g.GetSyncTotalBytes(), 100)) / 5 * 5
	return &percent
}

// addLag makes the worse of both of a lag, and reports whether the lag of the group is known.
func addLag(lag *v1alpha1.Lag, g *sidecarpb.GroupStatus) bool {
	if g.LagSeconds == nil {
		return false
	}
	d := metav1.Duration{Duration: time.Duration(math.Ceil(min(g.GetLagSeconds(), 1e9))) * time.Second}
	if lag.Time == nil || lag.Time.Duration < d.Duration {
		lag.Time, lag.EngineGroup = &d, g.GetName()
	}
	larger := func(have *int64, figure *uint64) *int64 {
		if figure == nil {
			return have
		}
		n := int64(min(*figure, math.MaxInt64))
		if have == nil || *have < n {
			return &n
		}
		return have
	}
	lag.Bytes, lag.Writes = larger(lag.Bytes, g.LagBytes), larger(lag.Writes, g.LagOrdinals)
	return true
}

// LossOf returns what the engine says that a failover lost; nil for nothing.
func LossOf(l *sidecarpb.LossReport) *v1alpha1.Loss {
	if l == nil {
		return nil
	}
	loss := &v1alpha1.Loss{Exact: l.GetExact(), Text: kube.Cut(l.GetText())}
	count := func(n *uint64) *int64 {
		if n == nil {
			return nil
		}
		c := int64(min(*n, math.MaxInt64))
		return &c
	}
	loss.Writes, loss.Bytes = count(l.LostWrites), count(l.LostBytes)
	if l.LostSeconds != nil {
		loss.Time = &metav1.Duration{Duration: time.Duration(min(l.GetLostSeconds(), 1e9) * float64(time.Second))}
	}
	return loss
}

// Confirmation changes with the history of any of the groups: a forced promotion begins a new timeline. It is empty
// without groups.
func Confirmation(places []engine.Place) string {
	if len(places) == 0 {
		return ""
	}
	digest := sha256.New()
	for _, at := range places { // in order of their names
		fmt.Fprintf(digest, "%s\x00%s\x00%s\n", at.Group.GetName(), at.Group.GetTimeline(), at.Group.GetRole())
	}
	return hex.EncodeToString(digest.Sum(nil))[:12]
}

// conditions are the group's, Ready first.
func (gp *Group) conditions(in *Input, s *v1alpha1.ConsistencyGroupStatus) []metav1.Condition {
	all := []metav1.Condition{gp.allowed(), gp.membersReady(), gp.remoteAsDeclared(), gp.writeOrder(in),
		gp.converged(in, s), gp.peerReachable(in, s), gp.promotable(in, s), gp.withinRPO(in, s)}
	ready := metav1.Condition{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Protected",
		Message: "every claim of the group is replicated, and the copy can be promoted"}
	first := func(status metav1.ConditionStatus) int {
		return slices.IndexFunc(all, func(c metav1.Condition) bool {
			return c.Status == status && c.Type != v1alpha1.ConditionWriteOrder
		})
	}
	i := first(metav1.ConditionFalse)
	if i < 0 { // what is known to be wrong goes before what is not known
		i = first(metav1.ConditionUnknown)
	}
	switch {
	case i >= 0 && all[i].Reason == reasonNoMembers:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, reasonNoMembers, noMembers
	case i >= 0:
		ready.Status, ready.Reason, ready.Message = metav1.ConditionFalse, all[i].Reason, all[i].Type+": "+all[i].Message
	}
	all = append([]metav1.Condition{ready}, all...)
	for i := range all {
		all[i].Message = kube.Cut(all[i].Message)
	}
	return all
}

func (gp *Group) allowed() metav1.Condition {
	if gp.Refusal != "" {
		return kube.Condition(v1alpha1.ConditionAllowed, metav1.ConditionFalse, gp.Refusal, "%s", gp.RefusalText)
	}
	if len(gp.NotTaken) > 0 {
		var texts []string
		for _, not := range gp.NotTaken {
			texts = append(texts, not.Text)
		}
		return kube.Condition(v1alpha1.ConditionAllowed, metav1.ConditionFalse, gp.NotTaken[0].Reason, "%s",
			strings.Join(texts, "; "))
	}
	return kube.Condition(v1alpha1.ConditionAllowed, metav1.ConditionTrue, "Admitted",
		"RemoteSite %s admits the namespace", gp.Group.Spec.RemoteSite)
}

func (gp *Group) membersReady() metav1.Condition {
	var not []string
	reason := ""
	for _, m := range gp.Members {
		if m.State != v1alpha1.MemberIn {
			not = append(not, fmt.Sprintf("%s is %s (%s)", m.Claim, m.State, cmp.Or(m.Reason, "asked for")))
			// The state that needs a person is the one to name.
			if reason == "" || m.State == v1alpha1.MemberNeedsRestage || m.State == v1alpha1.MemberFailed {
				reason = string(m.State)
			}
		}
	}
	if len(not) == 0 {
		return kube.Condition(v1alpha1.ConditionMembersReady, metav1.ConditionTrue, "AllMembers",
			"%d of %s %s", len(gp.Members), words.Count(len(gp.Members), "claim"),
			words.Choose(len(gp.Members), "is a member", "are members"))
	}
	return kube.Condition(v1alpha1.ConditionMembersReady, metav1.ConditionFalse, reason,
		"%d of %s %s: %s", len(not), words.Count(len(gp.Members), "claim"),
		words.Choose(len(not), "is not a member", "are not members"), strings.Join(not, "; "))
}

func (gp *Group) remoteAsDeclared() metav1.Condition {
	if gp.Remote != "" {
		to := gp.Group.Spec.RemoteSite
		return kube.Condition(v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionFalse, "ConfirmationNeeded",
			"the group replicates to %s and is to replicate to %s: that copies everything anew, and the copy at %s "+
				"stays behind; confirm with: kubectl -n %s annotate cg %s "+
				"%s=%s", gp.Remote, to, gp.Remote, gp.Group.Namespace, gp.Group.Name,
			v1alpha1.AnnotationConfirmRemote, to)
	}
	return kube.Condition(v1alpha1.ConditionRemoteAsDeclared, metav1.ConditionTrue, "AsDeclared",
		"the engine replicates to %s", gp.Group.Spec.RemoteSite)
}

func (gp *Group) converged(in *Input, s *v1alpha1.ConsistencyGroupStatus) metav1.Condition {
	result := gp.known(in, s, kube.Condition(v1alpha1.ConditionConverged, metav1.ConditionTrue, "OneHistory",
		"both sites have one history"))
	for _, e := range s.EngineGroups {
		if e.State == "Diverged" {
			return kube.Condition(v1alpha1.ConditionConverged, metav1.ConditionFalse, "Diverged",
				"group %s at the engine: both sites took writes; neither overwrites the other until a person decides: "+
					"%s", e.Name, kube.Words(e.Reason, gp.Group.Namespace, gp.Group.Name))
		}
	}
	for _, at := range gp.Places {
		if peer := at.Group.GetPeer(); result.Status == metav1.ConditionTrue && peer != "" && !at.Group.GetConnected() {
			return kube.Condition(v1alpha1.ConditionConverged, metav1.ConditionUnknown, reasonPeerNotHeard,
				"group %s is not connected to %s, so what was written there is not known here", at.Group.GetName(), peer)
		}
	}
	return result
}

func (gp *Group) peerReachable(in *Input, s *v1alpha1.ConsistencyGroupStatus) metav1.Condition {
	for i, e := range s.EngineGroups {
		reason, message := gp.untold(in, e)
		if reason == reasonGroupUnreadable { // what is not open has no connection
			return kube.Condition(v1alpha1.ConditionPeerReachable, metav1.ConditionFalse, reason, "%s", message)
		}
		if reason == "" && i < len(gp.Places) && !gp.Places[i].Group.GetConnected() {
			return kube.Condition(v1alpha1.ConditionPeerReachable, metav1.ConditionFalse, "NotConnected",
				"group %s at the engine of node %s is not connected to %s: %s; on the node: slipctl group status "+
					"%s", e.Name, e.Node,
				gp.Places[i].Group.GetPeer(), cmp.Or(e.Reason, "see that the link of the site is reachable"), e.Name)
		}
	}
	return gp.known(in, s, kube.Condition(v1alpha1.ConditionPeerReachable, metav1.ConditionTrue, "Connected",
		"the engine is connected to the peer"))
}

func (gp *Group) promotable(in *Input, s *v1alpha1.ConsistencyGroupStatus) metav1.Condition {
	result := gp.known(in, s, kube.Condition(v1alpha1.ConditionPromotable, metav1.ConditionTrue, "WholeCopy",
		"the copy is one instant of its primary"))
	for _, e := range s.EngineGroups {
		switch {
		case e.Role == v1alpha1.RoleSecondary && !e.Promotable:
			return kube.Condition(v1alpha1.ConditionPromotable, metav1.ConditionFalse, "NotWhole",
				"the copy of group %s is not whole: %s",
				e.Name, cmp.Or(e.Reason, "wait for the end of the sync"))
		case e.Role == v1alpha1.RolePrimary && e.State == "Syncing":
			return kube.Condition(v1alpha1.ConditionPromotable, metav1.ConditionFalse, "Syncing",
				"group %s is being copied to the peer: wait for the end of the sync", e.Name)
		case e.Role == v1alpha1.RolePrimary && e.State != "Streaming":
			result = kube.Condition(v1alpha1.ConditionPromotable, metav1.ConditionUnknown, reasonPeerNotHeard,
				"group %s is %s, so the state of the copy is not known here; ask at the other "+
					"site", e.Name, strings.ToLower(e.State))
		}
	}
	return result
}

func (gp *Group) withinRPO(in *Input, s *v1alpha1.ConsistencyGroupStatus) metav1.Condition {
	for _, at := range gp.Places {
		if at.Group.GetLagging() { // also as a silent node said last: nothing says that the copy has caught up
			return kube.Condition(v1alpha1.ConditionWithinRPO, metav1.ConditionFalse, "Lagging",
				"the copy of group %s lags more than its target of %v, or its lag is not known", at.Group.GetName(),
				time.Duration(at.Group.GetRpoTargetSeconds()*float64(time.Second)))
		}
	}
	if s.RPOTarget == nil || s.RPOTarget.Duration == 0 {
		return kube.Condition(v1alpha1.ConditionWithinRPO, metav1.ConditionTrue, "NoTarget", "the group has no target")
	}
	result := gp.known(in, s, kube.Condition(v1alpha1.ConditionWithinRPO, metav1.ConditionTrue, "WithinTarget",
		"the copy lags less than %v", s.RPOTarget.Duration))
	for _, at := range gp.Places {
		if result.Status == metav1.ConditionTrue && at.Group.LagSeconds == nil {
			return kube.Condition(v1alpha1.ConditionWithinRPO, metav1.ConditionUnknown, "LagUnknown",
				"the node of group %s does not say how far the copy lags: see slipctl group status %s on node %s",
				at.Group.GetName(), at.Group.GetName(), at.Node)
		}
	}
	return result
}

// nextStep is the text of the first condition that is False; its text names the command.
func nextStep(conditions []metav1.Condition) string {
	for _, c := range conditions {
		if c.Type != v1alpha1.ConditionReady && c.Status == metav1.ConditionFalse {
			return c.Type + ": " + c.Message
		}
	}
	return ""
}
