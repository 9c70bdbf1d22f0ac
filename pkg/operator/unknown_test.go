package operator

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// unlabel takes the label off a namespace, so that its group is deleted.
func (s *site) unlabel(namespace string) {
	s.T.Helper()
	ns := &corev1.Namespace{}
	s.Get(ns, "", namespace)
	ns.Labels = nil
	s.Update(ns)
	s.Settle(namespace)
}

// wantGone wants that a group was deleted, or that its deletion waits.
func (s *site) wantGone(gone bool) {
	s.T.Helper()
	g := &v1alpha1.ConsistencyGroup{}
	err := s.Client.Get(context.Background(), types.NamespacedName{Namespace: "shop", Name: "shop"}, g)
	if client.IgnoreNotFound(err) != nil {
		s.T.Fatal(err)
	}
	if (err != nil) != gone || !gone && (g.DeletionTimestamp.IsZero() || len(g.Finalizers) == 0) {
		s.T.Errorf("the group is gone: %v, want %v: %+v", err != nil, gone, g.ObjectMeta)
	}
}

// TestRollsBack: a group whose images are restored takes no calls, whatever its list of volumes says, and its object
// stays until it is known what it becomes.
func TestRollsBack(t *testing.T) {
	for _, c := range []struct {
		name         string
		during, then sidecarpb.Role
	}{
		{"a trial is taken back", sidecarpb.Role_ROLE_PRIMARY, sidecarpb.Role_ROLE_SECONDARY},
		{"a copy is promoted", sidecarpb.Role_ROLE_SECONDARY, sidecarpb.Role_ROLE_PRIMARY},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSite(t, "a")
			s.Shop("a")
			volumes := map[string][]*sidecarpb.VolumeStatus{}
			s.Change(func(g *sidecarpb.GroupStatus) {
				volumes[g.GetName()] = g.GetVolumes()
				g.Role, g.State, g.Volumes = c.during, sidecarpb.GroupState_GROUP_STATE_CONNECTING, nil
				g.Connected, g.RollingBack = false, true
			})
			s.Nodes["a"].Took()
			s.Settle("shop")
			s.unlabel("shop")
			s.wantGone(false)
			if calls := s.Nodes["a"].Took(); len(calls) > 0 {
				t.Errorf("calls: %v", calls)
			}
			s.Change(func(g *sidecarpb.GroupStatus) {
				g.Role, g.Volumes, g.RollingBack = c.then, volumes[g.GetName()], false
			})
			s.Settle("shop")
			s.wantGone(true)
			want := map[string][]string{}
			if c.then == sidecarpb.Role_ROLE_SECONDARY {
				want["a/shop"] = []string{"vol-shop-one"}
			}
			s.WantEngine(want)
		})
	}
}
