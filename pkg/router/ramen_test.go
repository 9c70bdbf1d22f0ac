package router

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/backup"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// ramenSite is a site with a cluster in memory, in which the operator's part for waiting claims runs.
type ramenSite struct {
	*addonsSite
	t      *testing.T
	client client.Client
	waiter *backup.Waiter
	teller *backup.Teller
}

func newRamenSite(t *testing.T, s *addonsSite, peer string) *ramenSite {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	site := &v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: peer, UID: "r"}, Spec: v1alpha1.RemoteSiteSpec{
		Accept: &v1alpha1.Accept{Namespaces: []string{"shop"}, Claims: v1alpha1.AcceptClaimsBound}}}
	c := fake.NewClientBuilder().WithScheme(scheme).WithStatusSubresource(site).WithObjects(site,
		&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}}).Build()
	replicators := s.replicators(s.addresses(), "controller-tls")
	r := &ramenSite{addonsSite: s, t: t, client: c}
	r.waiter = &backup.Waiter{Client: c, Live: c, Events: events.NewFakeRecorder(10000), Namespace: "slipstream-system",
		Now: time.Now}
	r.teller = &backup.Teller{Client: c, Replicator: func(node string) sidecarpb.SidecarClient {
		return replicators.client(t, node)
	}}
	return r
}

func (r *ramenSite) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// operate runs the operator's passes once. What it makes is bound from the beginning.
func (r *ramenSite) operate() {
	r.t.Helper()
	ctx := context.Background()
	view := backup.View{Complete: true}
	for name := range r.nodes {
		list, err := r.teller.Replicator(name).ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
		r.must(err)
		for _, g := range list.GetGroups() {
			view.Groups = append(view.Groups, backup.Group{Node: name, Status: g})
		}
	}
	r.must(r.teller.Pass(ctx, view))
	r.must(r.waiter.Pass(ctx, view))
}

func (r *ramenSite) volumes() []corev1.PersistentVolume {
	r.t.Helper()
	list := &corev1.PersistentVolumeList{}
	r.must(r.client.List(context.Background(), list))
	return list.Items
}

func (r *ramenSite) claim(name string) *corev1.PersistentVolumeClaim {
	r.t.Helper()
	claim := &corev1.PersistentVolumeClaim{}
	err := r.client.Get(context.Background(), client.ObjectKey{Namespace: "shop", Name: name}, claim)
	if apierrors.IsNotFound(err) {
		return nil
	}
	r.must(err)
	return claim
}

// saved are the objects that Ramen keeps in its store.
type saved struct {
	pv    *corev1.PersistentVolume
	claim *corev1.PersistentVolumeClaim
}

// protect is what a VolumeReplicationGroup does at the primary: the volume is retained, and both objects are saved.
func (r *ramenSite) protect(name string) saved {
	r.t.Helper()
	claim := r.claim(name)
	pv := &corev1.PersistentVolume{}
	r.must(r.client.Get(context.Background(), client.ObjectKey{Name: claim.Spec.VolumeName}, pv))
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	r.must(r.client.Update(context.Background(), pv))
	return saved{pv.DeepCopy(), claim.DeepCopy()}
}

// letGo is what happens at the old primary when it is secondary: the reclaim policy is Delete again, the claim goes,
// and the provisioner deletes the volume and the PersistentVolume.
func (r *ramenSite) letGo(name string) {
	r.t.Helper()
	ctx := context.Background()
	claim := r.claim(name)
	pv := &corev1.PersistentVolume{}
	r.must(r.client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, pv))
	pv.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
	r.must(r.client.Update(ctx, pv))
	r.must(r.client.Delete(ctx, claim))
	for range 2 {
		if _, err := r.router.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: pv.Spec.CSI.VolumeHandle}); err != nil {
			r.t.Fatalf("%s: DeleteVolume of a healthy secondary: %v", r.site, err)
		}
	}
	r.must(r.client.Delete(ctx, pv))
}

// restore is what a VolumeReplicationGroup does at the new primary: objects that are there are accepted if they say the
// same in the fields that Ramen compares. Others would be an error that lasts.
func (r *ramenSite) restore(s saved) {
	r.t.Helper()
	pv := &corev1.PersistentVolume{}
	r.must(r.client.Get(context.Background(), client.ObjectKey{Name: s.pv.Name}, pv))
	want, have := s.pv.Spec, pv.Spec
	if have.CSI.Driver != want.CSI.Driver || have.CSI.FSType != want.CSI.FSType ||
		have.ClaimRef.Kind != want.ClaimRef.Kind || have.ClaimRef.Namespace != want.ClaimRef.Namespace ||
		have.ClaimRef.Name != want.ClaimRef.Name || !equality.Semantic.DeepEqual(have.AccessModes, want.AccessModes) ||
		!equality.Semantic.DeepEqual(have.VolumeMode, want.VolumeMode) {
		r.t.Fatalf("%s: Ramen would refuse the PersistentVolume %+v for %+v", r.site, have, want)
	}
	if have.CSI.VolumeHandle != want.CSI.VolumeHandle {
		r.t.Fatalf("%s: volume %s, want %s", r.site, have.CSI.VolumeHandle, want.CSI.VolumeHandle)
	}
	if claim := r.claim(s.claim.Name); claim == nil || claim.Spec.VolumeName != s.pv.Name {
		r.t.Fatalf("%s: the claim is not bound to %s: %v", r.site, s.pv.Name, claim)
	}
}

// provisioned makes a volume with its objects as the provisioner does.
func (r *ramenSite) provisioned(name, node string) string {
	r.t.Helper()
	req := createReq("pvc-"+name, on(node), map[string]string{"slipstream.dev/replicable": "true",
		"csi.storage.k8s.io/pvc/name": name, "csi.storage.k8s.io/pvc/namespace": "shop",
		"csi.storage.k8s.io/pv/name": "pvc-" + name})
	id, _ := r.router.create(r.t, req)
	block, size := corev1.PersistentVolumeBlock, corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", UID: "original"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, VolumeMode: &block, StorageClassName: new("fast"),
			VolumeName: "pvc-" + name, Resources: corev1.VolumeResourceRequirements{Requests: size}}}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pvc-" + name},
		Spec: corev1.PersistentVolumeSpec{Capacity: size, AccessModes: modes, VolumeMode: &block, StorageClassName: "fast",
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: plugin.Name,
				VolumeHandle: id}},
			ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "shop", Name: name,
				UID: "original"}}}
	r.must(r.client.Create(context.Background(), claim))
	r.must(r.client.Create(context.Background(), pv))
	return id
}

// Ramen relocates an application ten times. Its steps are replayed in its order: objects are saved, the old primary
// demotes and lets its objects and volumes go, the new primary finds its objects waiting and is promoted. No
// PersistentVolume is left over, and no copy is destroyed.
func TestRamenRelocates(t *testing.T) {
	_, siteA, siteB := pairOfSites(t)
	a, b := newRamenSite(t, siteA, "site-b"), newRamenSite(t, siteB, "site-a")
	r := &replay{t: t, random: newRandom(t)}
	names := []string{"orders", "stock"}
	ids := map[string]string{}
	c := &content{name: "vgrcontent-ramen"}
	for _, name := range names {
		ids[name] = a.provisioned(name, "a1")
		c.volumes = append(c.volumes, ids[name])
	}
	r.group(a.addonsSite, c)
	objects := map[*ramenSite]*object{a: {parameters: toB}, b: {parameters: toA}}
	for _, o := range objects {
		o.source = aboutGroup(c.handle) // restored at the other site with the handle
	}
	r.until(a.addonsSite, objects[a], "primary")
	for _, name := range names {
		a.write(t, ids[name], "first")
	}
	from, to := a, b
	written := "first"
	for round := range 10 {
		for _, name := range names {
			to.waitForCopy(t, ids[name])
		}
		store := map[string]saved{}
		for _, name := range names {
			store[name] = from.protect(name)
		}
		waitFor(t, "the claims to wait at "+to.site, func() bool {
			from.operate()
			to.operate()
			for _, name := range names {
				if claim := to.claim(name); claim == nil || claim.Spec.VolumeName != "pvc-"+name {
					return false
				}
			}
			return true
		})
		r.until(from.addonsSite, objects[from], "secondary")
		r.remove(from.addonsSite, objects[from])
		for _, name := range names {
			from.letGo(name)
		}
		for _, name := range names {
			to.restore(store[name])
		}
		r.group(to.addonsSite, c)
		r.until(to.addonsSite, objects[to], "primary")
		for _, name := range names {
			if got := to.read(t, ids[name]); got != written {
				t.Fatalf("round %d: %s at %s has %q, want %q", round, name, to.site, got, written)
			}
		}
		written = fmt.Sprint("round ", round)
		for _, name := range names {
			to.write(t, ids[name], written)
		}
		for _, s := range []*ramenSite{a, b} {
			for _, pv := range s.volumes() {
				if claim := s.claim(pv.Spec.ClaimRef.Name); claim == nil || claim.Spec.VolumeName != pv.Name {
					t.Errorf("round %d: PersistentVolume %s is left over at %s", round, pv.Name, s.site)
				}
			}
			if n := len(s.volumes()); n > len(names) {
				t.Errorf("round %d: %d PersistentVolumes at %s", round, n, s.site)
			}
		}
		from, to = to, from
	}
	if r.forced > 0 {
		t.Errorf("%d promotions were forced", r.forced)
	}
	for _, s := range []*ramenSite{a, b} {
		if disk := s.onDisk(); len(disk) != len(names) {
			t.Errorf("volumes at %s: %v", s.site, disk)
		}
	}
}

// A StorageClass with volumeBindingMode Immediate names no node: the volume is made on any, and can be replicated.
func TestImmediateBinding(t *testing.T) {
	_, a, b := pairOfSites(t)
	req := createReq("immediate", nil, replicable)
	req.AccessibilityRequirements = nil
	id, node := a.router.create(t, req)
	if node != "a1" && node != "a2" {
		t.Fatalf("on node %q", node)
	}
	r := &replay{t: t}
	o := &object{source: aboutVolume(id), parameters: toB}
	r.until(a, o, "primary")
	if node == "a1" { // the peer reaches this node's replicator only when it is the secondary
		a.write(t, id, "x")
	}
	b.waitForCopy(t, id)
}
