package backup

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

// promoted is a cluster with a group of two volumes that became primary here before the operator saw it.
func promoted(t *testing.T) *world {
	w := newWorld(t, siteA())
	more := shop().GetVolumes()[0]
	more.VolumeId, more.Claim.Name, more.Claim.Volume, more.Claim.StorageClass = "vol-2", "stock", "pvc-2", "slow"
	w.group().Volumes = append(w.group().Volumes, more)
	w.group().Role = sidecarpb.Role_ROLE_PRIMARY
	return w
}

// TestPromotedUnseen: a group that was promoted before this cluster knew it gets claims and a ConsistencyGroup once. A
// pass that was interrupted is completed. What is deleted afterwards stays deleted.
func TestPromotedUnseen(t *testing.T) {
	w := promoted(t)
	w.pass()
	w.wantReason(v1alpha1.ReasonStorageClassMissing, "slow")
	if w.claim("shop", "orders") == nil || w.claim("shop", "stock") != nil || w.consistencyGroup("shop", "shop-1") != nil {
		t.Errorf("half: claims %v, %v, group %v", w.claim("shop", "orders"), w.claim("shop", "stock"),
			w.consistencyGroup("shop", "shop-1"))
	}
	w.must(w.client.Create(context.Background(), &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "slow"}}))
	w.pass()
	if w.claim("shop", "stock") == nil || w.pv("pvc-2") == nil || w.consistencyGroup("shop", "shop-1") == nil {
		t.Error("the second pass did not complete the first one")
	}
	w.wantReason(v1alpha1.ReasonAllPresent, "")
	for len(w.events.Events) > 0 {
		if e := <-w.events.Events; strings.Contains(e, "WaitsForFailover") {
			t.Errorf("event of a primary: %s", e)
		}
	}
	w.must(w.client.Delete(context.Background(), w.claim("shop", "stock")))
	w.must(w.client.Delete(context.Background(), w.pv("pvc-2")))
	if n := w.pass(); n > 0 || w.claim("shop", "stock") != nil {
		t.Errorf("%d writes: what was deleted at the primary came back", n)
	}
}

// TestNamedElsewhere: that an object of another namespace names the group does not keep its claims from being made.
func TestNamedElsewhere(t *testing.T) {
	w := promoted(t)
	w.must(w.client.Create(context.Background(), &v1alpha1.ConsistencyGroup{
		ObjectMeta: metav1.ObjectMeta{Namespace: "bank", Name: "mine"},
		Spec:       v1alpha1.ConsistencyGroupSpec{EngineGroups: []string{"shop-1"}}}))
	w.pass()
	if w.claim("shop", "orders") == nil {
		t.Error("no claim was made")
	}
}

// TestPrimaryIsLeftAlone: of a group that this cluster has something of already, nothing is made.
func TestPrimaryIsLeftAlone(t *testing.T) {
	for name, prepare := range map[string]func(*world){
		"its own volume": func(w *world) {
			w.must(w.client.Create(context.Background(), &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"},
				Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{
					CSI: &corev1.CSIPersistentVolumeSource{Driver: "csi.slipstream.dev", VolumeHandle: "vol-1"}}}}))
		},
		"a group for the label": func(w *world) {
			w.must(w.client.Create(context.Background(), &v1alpha1.ConsistencyGroup{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"},
				Status:     v1alpha1.ConsistencyGroupStatus{EngineGroups: []v1alpha1.EngineGroup{{Name: "shop-1"}}}}))
		},
		"a group by hand": func(w *world) {
			w.must(w.client.Create(context.Background(), &v1alpha1.ConsistencyGroup{
				ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "shop"},
				Spec:       v1alpha1.ConsistencyGroupSpec{EngineGroups: []string{"shop-1"}}}))
		},
		"nothing accepted": func(w *world) {
			site := &v1alpha1.RemoteSite{}
			w.must(w.client.Get(context.Background(), client.ObjectKey{Name: "site-a"}, site))
			site.Spec.Accept = nil
			w.must(w.client.Update(context.Background(), site))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := promoted(t)
			prepare(w)
			w.pass()
			if w.claim("shop", "orders") != nil || w.claim("shop", "stock") != nil || w.pv("pvc-2") != nil {
				t.Error("claims were made for a group that belongs to the cluster")
			}
		})
	}
}
