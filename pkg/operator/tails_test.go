package operator

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/operatortest"
)

// TestKeepTails: how many tails are kept, and how long, comes from the group or the defaults of its site, for groups
// that are primary here and for copies. Nothing else of a copy is changed, and nothing is asked for twice.
func TestKeepTails(t *testing.T) {
	s := newSite(t, "a")
	site := operatortest.Remote("site-b")
	site.Spec.Accept = &v1alpha1.Accept{Namespaces: []string{"shop"}}
	site.Spec.Defaults = v1alpha1.ReplicationSettings{KeepTails: new(int32(5)),
		KeepTailsFor: &metav1.Duration{Duration: 720 * time.Hour}, RPOTarget: &metav1.Duration{Duration: time.Minute}}
	s.Create(site, operatortest.Namespace("shop", nil), &v1alpha1.ConsistencyGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop",
			Labels: map[string]string{v1alpha1.LabelRemoteSite: "site-b"}},
		Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-b", EngineGroups: []string{"shop-1"}}})
	engine := &sidecarpb.GroupStatus{Name: "shop-1", Role: sidecarpb.Role_ROLE_SECONDARY, Peer: "site-b",
		Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "v", ClaimNamespace: "shop"}}}
	s.Nodes["a"].Groups["shop-1"] = engine
	check := func(what string, most uint32, kept time.Duration, rpo float64) {
		t.Helper()
		s.Settle("shop")
		if engine.GetTailsMost() != most || engine.GetTailsMillis() != kept.Milliseconds() ||
			engine.GetRpoTargetSeconds() != rpo {
			t.Errorf("%s: %v", what, engine)
		}
		s.Nodes["a"].Took()
		s.Settle("shop")
		if calls := s.Nodes["a"].Took(); len(calls) > 0 {
			t.Errorf("%s: calls without a change: %v", what, calls)
		}
	}
	check("a copy", 5, 720*time.Hour, 0)
	if g := s.Group("shop", "shop"); slices.Contains(g.Finalizers, v1alpha1.FinalizerGroup) {
		t.Errorf("the object of a copy has finalizers %v", g.Finalizers)
	}
	g := s.Group("shop", "shop")
	g.Spec.Settings.KeepTails = new(int32(0))
	s.Update(g)
	check("a copy, all", 0, 720*time.Hour, 0)

	engine.Role = sidecarpb.Role_ROLE_PRIMARY
	g = s.Group("shop", "shop")
	g.Spec.Settings.KeepTails, g.Spec.Settings.KeepTailsFor = new(int32(2)), &metav1.Duration{Duration: time.Hour}
	s.Update(g)
	check("a primary", 2, time.Hour, 60)
}
