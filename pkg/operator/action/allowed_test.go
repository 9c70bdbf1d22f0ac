package action_test

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// notAdmitted is a site with a group on two nodes that an object made by hand stands for, in a namespace that its
// RemoteSite does not admit.
func notAdmitted(t *testing.T, roles ...sidecarpb.Role) *site {
	t.Helper()
	s := newSite(t, "a", "b")
	s.Create(operatortest.Remote("site-b"), operatortest.Namespace("shop", nil), &v1alpha1.ConsistencyGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"},
		Spec:       v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", EngineGroups: []string{"of-a", "of-b"}}})
	state := map[sidecarpb.Role]sidecarpb.GroupState{
		sidecarpb.Role_ROLE_PRIMARY:   sidecarpb.GroupState_GROUP_STATE_STREAMING,
		sidecarpb.Role_ROLE_SECONDARY: sidecarpb.GroupState_GROUP_STATE_DEMOTED} // of the primary, so nothing is lost
	for i, node := range []string{"a", "b"} {
		s.Nodes[node].Groups["of-"+node] = &sidecarpb.GroupStatus{Name: "of-" + node, Role: roles[i], Timeline: "t",
			State: state[roles[i]], Peer: "site-b",
			Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "vol-" + node, ClaimNamespace: "shop"}}}
	}
	s.Settle("shop")
	for _, n := range s.Nodes {
		n.Took()
	}
	return s
}

// TestNotAllowed: nothing is done for an object that may not replicate from here. A failover of a copy is not that: it
// begins, goes on after an interruption, and is decided.
func TestNotAllowed(t *testing.T) {
	const primaryRole, copyRole = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.Role_ROLE_SECONDARY
	for _, tc := range []struct {
		kind    v1alpha1.ActionType
		roles   []sidecarpb.Role
		trial   bool
		refused bool
	}{
		{kind: v1alpha1.ActionDemote, roles: []sidecarpb.Role{primaryRole, primaryRole}, refused: true},
		{kind: v1alpha1.ActionSuspend, roles: []sidecarpb.Role{primaryRole, primaryRole}, refused: true},
		{kind: v1alpha1.ActionRelocate, roles: []sidecarpb.Role{primaryRole, primaryRole}, refused: true},
		{kind: v1alpha1.ActionBookmark, roles: []sidecarpb.Role{primaryRole, primaryRole}, refused: true},
		{kind: v1alpha1.ActionTestFailover, roles: []sidecarpb.Role{primaryRole, primaryRole}, refused: true},
		{kind: v1alpha1.ActionCommit, roles: []sidecarpb.Role{primaryRole, primaryRole}, trial: true},
		{kind: v1alpha1.ActionRollback, roles: []sidecarpb.Role{primaryRole, primaryRole}, trial: true},
		{kind: v1alpha1.ActionFailover, roles: []sidecarpb.Role{copyRole, copyRole}},
		{kind: v1alpha1.ActionFailover, roles: []sidecarpb.Role{primaryRole, copyRole}},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			s := notAdmitted(t, tc.roles...)
			if tc.trial {
				s.Change(func(g *sidecarpb.GroupStatus) {
					g.State, g.Trial = sidecarpb.GroupState_GROUP_STATE_TRIAL, &sidecarpb.TrialStatus{Ordinal: 42}
				})
			}
			spec := v1alpha1.GroupActionSpec{Group: "shop", Type: tc.kind}
			a := s.Act("x", spec)
			var calls []string
			for _, n := range s.Nodes {
				calls = append(calls, n.Took()...)
			}
			if !tc.refused {
				wantAction(t, a, v1alpha1.ActionSucceeded)
				if n := len(slices.DeleteFunc(slices.Clone(tc.roles), func(r sidecarpb.Role) bool {
					return r == primaryRole && !tc.trial
				})); len(calls) != n {
					t.Errorf("calls %q, want %d", calls, n)
				}
				return
			}
			wantAction(t, a, v1alpha1.ActionFailed, "condition Allowed", "NamespaceNotAdmitted", "kubectl label namespace shop")
			if len(calls) > 0 {
				t.Errorf("calls: %q", calls)
			}
			if g := s.Group("shop", "shop"); !strings.Contains(g.Status.NextStep, "does not admit") {
				t.Errorf("next step of the group: %q", g.Status.NextStep)
			}
		})
	}
}
