package backup

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// What the cluster knows of a claim is told once, and again when it changes. Labels that mean something to Kubernetes
// are not told.
func TestTell(t *testing.T) {
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-1"}, Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: plugin.Name,
			VolumeHandle: "vol-1"}},
		ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "orders"}, StorageClassName: "fast"}}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop",
		Labels: map[string]string{"app": "shop", "x.kubernetes.io/y": "z", "slipstream.dev/replicate": "x",
			"app.kubernetes.io/name": "shop"}},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pvc-1", VolumeMode: new(corev1.PersistentVolumeBlock),
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	w := newWorld(t, pv, claim)
	g := shop()
	g.Role, g.Volumes[0].Claim = sidecarpb.Role_ROLE_PRIMARY, nil
	g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: "vol-2"}) // not of Kubernetes
	replicator := &fakeReplicator{group: g}
	teller := &Teller{Client: w.client, Replicator: func(node string) sidecarpb.SidecarClient {
		if node != "a1" {
			return nil
		}
		return replicator
	}}
	view := View{Complete: true, Groups: []Group{{Node: "a1", Status: g}}}
	pass := func() int {
		t.Helper()
		before := replicator.calls
		if err := teller.Pass(context.Background(), view); err != nil {
			t.Fatal(err)
		}
		return replicator.calls - before
	}
	replicator.fail = errors.New("away")
	if n := pass(); n != 1 {
		t.Errorf("%d calls", n)
	}
	replicator.fail = nil
	if n := pass(); n != 1 {
		t.Errorf("%d calls after one that failed", n)
	}
	want := &sidecarpb.Claim{Name: "orders", Namespace: "shop", Volume: "pvc-1", Block: true, StorageClass: "fast",
		AccessModes: []string{"ReadWriteOncePod"}, RequestBytes: 1 << 30,
		Labels: map[string]string{"app": "shop", "app.kubernetes.io/name": "shop"}}
	if diff := cmp.Diff(want, g.Volumes[0].Claim, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if n := pass(); n > 0 {
		t.Errorf("%d calls with nothing to tell", n)
	}
	claim = w.claim("shop", "orders")
	claim.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("2Gi")
	w.must(w.client.Update(context.Background(), claim))
	if n := pass(); n != 1 || g.Volumes[0].Claim.RequestBytes != 2<<30 {
		t.Errorf("%d calls, %v", n, g.Volumes[0].Claim)
	}
	// A demoted group and a secondary are the other site's to tell.
	claim = w.claim("shop", "orders")
	claim.Labels["app"] = "store"
	w.must(w.client.Update(context.Background(), claim))
	g.State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
	n := pass()
	g.State, g.Role = 0, sidecarpb.Role_ROLE_SECONDARY
	if n += pass(); n > 0 {
		t.Errorf("%d calls where the group takes no writes", n)
	}
	// A claim that is not there any more: the copy keeps what it was told.
	g.Role = sidecarpb.Role_ROLE_PRIMARY
	w.must(w.client.Delete(context.Background(), w.claim("shop", "orders")))
	if n := pass(); n > 0 {
		t.Errorf("%d calls for a claim that is gone", n)
	}
}
