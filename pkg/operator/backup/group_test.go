package backup

import (
	"context"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

func TestGroupName(t *testing.T) {
	for _, c := range []struct{ engine, remote, local, want string }{
		{"shop-szwzr2ucii", "shop", "shop", "shop"},
		{"shop-szwzr2ucii", "shop", "shop-b", "shop-b"},
		{"shop.sales-szwzr2ucii", "shop", "shop-b", "sales"},
		{"billing", "shop", "shop", "billing"},
		{"other-szwzr2ucii", "shop", "shop", "other"},
	} {
		if got := groupName(c.engine, c.remote, c.local); got != c.want {
			t.Errorf("groupName(%q, %q, %q) is %q, want %q", c.engine, c.remote, c.local, got, c.want)
		}
	}
}

// consistencyGroup returns one, nil if there is none.
func (w *world) consistencyGroup(namespace, name string) *v1alpha1.ConsistencyGroup {
	w.t.Helper()
	g := &v1alpha1.ConsistencyGroup{}
	err := w.client.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, g)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return g
}

// A copy has a ConsistencyGroup with the name that it has at the primary. It lists the group of each node, stays when
// this site becomes primary, and goes when the groups are gone.
func TestGroupWaits(t *testing.T) {
	w := newWorld(t, siteA())
	w.group().Name = "shop-szwzr2ucii"
	w.pass()
	g := w.consistencyGroup("shop", "shop")
	if g == nil || g.Spec.RemoteSite != "site-a" || g.Spec.DeletionPolicy != v1alpha1.DeletionKeep ||
		!slices.Equal(g.Spec.EngineGroups, []string{"shop-szwzr2ucii"}) {
		t.Fatalf("the copy has the ConsistencyGroup %+v", g)
	}
	second := shop()
	second.Name, second.Volumes[0].VolumeId = "shop-aaaaaaaaaa", "vol-2"
	second.Volumes[0].Claim.Name, second.Volumes[0].Claim.Volume = "items", "pvc-2"
	w.view.Groups = append(w.view.Groups, Group{Node: "b2", Status: second})
	w.pass()
	if g = w.consistencyGroup("shop", "shop"); !slices.Equal(g.Spec.EngineGroups,
		[]string{"shop-aaaaaaaaaa", "shop-szwzr2ucii"}) {
		t.Errorf("with a group on another node: %v", g.Spec.EngineGroups)
	}
	for _, role := range []sidecarpb.Role{sidecarpb.Role_ROLE_SECONDARY, sidecarpb.Role_ROLE_PRIMARY} {
		w.group().Role = role
		w.now = w.now.Add(2 * removalPatience)
		if n := w.pass(); n > 0 || w.consistencyGroup("shop", "shop") == nil {
			t.Errorf("as %s: %d writes with nothing to do", role, n)
		}
	}
	w.view.Groups = nil
	w.pass()
	if w.consistencyGroup("shop", "shop") == nil {
		t.Error("removed at the first look")
	}
	w.now = w.now.Add(removalPatience + time.Second)
	w.pass()
	if w.consistencyGroup("shop", "shop") != nil {
		t.Error("the ConsistencyGroup of a copy that is gone stays")
	}
}

// What the other site says makes no ConsistencyGroup where it makes no claim, and changes none of this cluster.
func TestGroupRefused(t *testing.T) {
	own := &v1alpha1.ConsistencyGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop-1"},
		Spec: v1alpha1.ConsistencyGroupSpec{RemoteSite: "site-c"}}
	w := newWorld(t, siteA(), own)
	w.pass()
	if g := w.consistencyGroup("shop", "shop-1"); g.Spec.RemoteSite != "site-c" || len(g.Spec.EngineGroups) > 0 {
		t.Errorf("a ConsistencyGroup of this cluster was changed to %+v", g.Spec)
	}
	for name, change := range map[string]func(*sidecarpb.GroupStatus){
		"a namespace that is not accepted": func(g *sidecarpb.GroupStatus) {
			g.Volumes[0].Claim.Namespace = "kube-system"
		},
		"claims in two namespaces": func(g *sidecarpb.GroupStatus) {
			more := shop().GetVolumes()[0]
			more.VolumeId, more.Claim.Namespace, more.Claim.Volume = "vol-2", "other", "pvc-2"
			g.Volumes = append(g.Volumes, more)
		},
		"no name of an object": func(g *sidecarpb.GroupStatus) { g.Name = "Shop_1" },
		"no claim":             func(g *sidecarpb.GroupStatus) { g.Volumes[0].Claim = nil },
	} {
		w := newWorld(t, siteA(func(s *v1alpha1.RemoteSite) { s.Spec.Accept.Namespaces = []string{"shop", "other"} }))
		change(w.group())
		w.pass()
		list := &v1alpha1.ConsistencyGroupList{}
		w.must(w.client.List(context.Background(), list))
		if len(list.Items) > 0 {
			t.Errorf("%s: %+v", name, list.Items[0].ObjectMeta)
		}
	}
}

// The ConsistencyGroup of a copy stays while its node has no replicator that could tell of the group.
func TestGroupOfUntoldNode(t *testing.T) {
	w := newWorld(t, siteA())
	w.pass()
	list := &v1alpha1.ConsistencyGroupList{}
	w.must(w.client.List(context.Background(), list))
	g := &list.Items[0]
	g.Status.EngineGroups = []v1alpha1.EngineGroup{{Name: "shop-1", Node: "b1"}}
	w.must(w.client.Update(context.Background(), g))
	w.view.Groups, w.view.Untold = nil, map[string]bool{"b1": true}
	gone := func() bool {
		for range 3 {
			w.pass()
			w.now = w.now.Add(removalPatience)
		}
		return w.consistencyGroup(g.Namespace, g.Name) == nil
	}
	if gone() {
		t.Error("removed")
	}
	if w.view.Untold = nil; !gone() {
		t.Error("it stays when the node has no such group")
	}
}
