package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

const topologyKey = "topology.slipstream.dev/node"

var (
	volumes    = corev1.SchemeGroupVersion.WithResource("persistentvolumes")
	claims     = corev1.SchemeGroupVersion.WithResource("persistentvolumeclaims")
	capacities = storagev1.SchemeGroupVersion.WithResource("csistoragecapacities")
	snapshots  = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1", Resource: "volumesnapshots"}
	contents   = schema.GroupVersionResource{Group: "snapshot.storage.k8s.io", Version: "v1",
		Resource: "volumesnapshotcontents"}
)

// with returns a copy of an object that was changed.
func with[T runtime.Object](o T, changes ...func(T)) T {
	c := o.DeepCopyObject().(T)
	for _, change := range changes {
		change(c)
	}
	return c
}

// volume is one as csi-provisioner makes it.
func volume(driver string, nodes ...string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		TypeMeta:   metav1.TypeMeta{Kind: "PersistentVolume", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: "pvc-1", Finalizers: []string{"kubernetes.io/pv-protection"}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver,
				VolumeHandle: "vol-1"}},
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "orders"},
			NodeAffinity: &corev1.VolumeNodeAffinity{
				Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: topologyKey,
						Operator: corev1.NodeSelectorOpIn, Values: nodes}}}}}},
		},
	}
}

func claim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		TypeMeta: metav1.TypeMeta{Kind: "PersistentVolumeClaim", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders", Finalizers: []string{"kubernetes.io/pvc-protection"},
			Annotations: map[string]string{"volume.kubernetes.io/selected-node": "node-a",
				"volume.kubernetes.io/storage-provisioner": "csi.slipstream.dev"}},
		Spec:   corev1.PersistentVolumeClaimSpec{VolumeName: "pvc-1"},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
}

func capacity(node string) *storagev1.CSIStorageCapacity {
	return &storagev1.CSIStorageCapacity{
		TypeMeta:     metav1.TypeMeta{Kind: "CSIStorageCapacity", APIVersion: "storage.k8s.io/v1"},
		ObjectMeta:   metav1.ObjectMeta{Namespace: testRelease.Namespace, Name: "c"},
		NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{topologyKey: node}},
	}
}

func content(driver, node string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
		"metadata": map[string]any{"name": "c", "labels": map[string]any{"snapshot.storage.kubernetes.io/managed-by": node}},
		"spec":     map[string]any{"driver": driver, "deletionPolicy": "Delete"},
	}}
}

func snapshot(class string, finalizers ...any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
		"metadata": map[string]any{"name": "s", "namespace": "shop", "finalizers": finalizers},
		"spec":     map[string]any{"volumeSnapshotClassName": class},
	}}
}

// TestAccounts: what the sidecars' account may do to whose objects. Each line is allowed where the sidecars are in the
// nodes' pods, with the token of a pod on node-a; and where they are in one place. Empty is allowed.
func TestAccounts(t *testing.T) {
	const driver, other = "csi.slipstream.dev", "csi.example.com"
	const clone = "provisioner.storage.kubernetes.io/cloning-protection"
	const source = "provisioner.storage.kubernetes.io/volumesnapshot-as-source-protection"
	grow := func(v *corev1.PersistentVolume) {
		v.Spec.Capacity[corev1.ResourceStorage] = resource.MustParse("2Gi")
		v.Annotations = map[string]string{"volume.alpha.kubernetes.io/pre-resize-capacity": "1Gi"}
	}
	unprotect := func(v *corev1.PersistentVolume) { v.Finalizers = nil }
	annotate := func(key, value string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Annotations[key] = value }
	}
	finalize := func(names ...string) func(*corev1.PersistentVolumeClaim) {
		return func(c *corev1.PersistentVolumeClaim) { c.Finalizers = names }
	}
	forget := func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, "volume.kubernetes.io/selected-node") }
	elsewhere := annotate("volume.kubernetes.io/selected-node", "node-b")
	foreign := annotate("volume.kubernetes.io/storage-provisioner", other)
	resized := func(c *corev1.PersistentVolumeClaim) {
		c.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("2Gi")}
	}
	const ownOnly, onlyGrown, stays = "of that node only", "only change the capacity", "stays on its node"
	const ofDriver, claimOf, snapshotOf = "volumes of " + driver, "claims of " + driver, "snapshots of " + driver
	const fields, take, bind = "selected node, its protection", "take none", "bind claims"
	for _, tt := range []struct {
		name          string
		resource      schema.GroupVersionResource
		sub           string
		old, new      runtime.Object
		node, central string // what the refusal says
	}{
		{"make its volume", volumes, "", nil, volume(driver, "node-a"), "", ""},
		{"make another node's volume", volumes, "", nil, volume(driver, "node-b"), ownOnly, ""},
		{"make a volume of two nodes", volumes, "", nil, volume(driver, "node-a", "node-b"), ownOnly, ""},
		{"make a volume of no node", volumes, "", nil, with(volume(driver), func(v *corev1.PersistentVolume) {
			v.Spec.NodeAffinity = nil
		}), ownOnly, ""},
		{"make a volume with another term", volumes, "", nil,
			with(volume(driver, "node-a"), func(v *corev1.PersistentVolume) {
				terms := &v.Spec.NodeAffinity.Required.NodeSelectorTerms
				*terms = append(*terms, volume(driver, "node-b").Spec.NodeAffinity.Required.NodeSelectorTerms...)
			}), ownOnly, ""},
		{"make another driver's volume", volumes, "", nil, volume(other, "node-a"), ofDriver, ofDriver},
		{"make a volume of the host's files", volumes, "", nil,
			with(volume(driver, "node-a"), func(v *corev1.PersistentVolume) {
				v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
			}), ofDriver, ofDriver},
		{"delete its volume", volumes, "", volume(driver, "node-a"), nil, "", ""},
		{"delete another node's volume", volumes, "", volume(driver, "node-b"), nil, ownOnly, ""},
		{"delete another driver's volume", volumes, "", volume(other, "node-a"), nil, ofDriver, ofDriver},
		{"unprotect its volume", volumes, "", volume(driver, "node-a"), with(volume(driver, "node-a"), unprotect), "", ""},
		{"unprotect another node's volume", volumes, "", volume(driver, "node-b"),
			with(volume(driver, "node-b"), unprotect), onlyGrown, ""},
		{"unprotect another driver's volume", volumes, "", volume(other, "node-a"),
			with(volume(other, "node-a"), unprotect), ofDriver, ofDriver},
		{"grow another node's volume", volumes, "", volume(driver, "node-b"), with(volume(driver, "node-b"), grow), "", ""},
		{"grow another node's volume, and keep it no longer", volumes, "", volume(driver, "node-b"),
			with(volume(driver, "node-b"), grow, func(v *corev1.PersistentVolume) {
				v.Spec.PersistentVolumeReclaimPolicy = "Delete"
			}), onlyGrown, ""},
		{"annotate another node's volume", volumes, "", volume(driver, "node-b"),
			with(volume(driver, "node-b"), func(v *corev1.PersistentVolume) {
				v.Annotations = map[string]string{"a": "b"}
			}), onlyGrown, ""},
		{"take over another node's volume", volumes, "", volume(driver, "node-b"), volume(driver, "node-a"), stays, ""},
		{"take over another driver's volume", volumes, "", volume(other, "node-a"), volume(driver, "node-a"), ofDriver,
			ofDriver},

		{"give a claim back", claims, "", claim(), with(claim(), forget), "", ""},
		{"give another node's claim back", claims, "", with(claim(), elsewhere), with(claim(), forget), take, ""},
		{"take a claim", claims, "", with(claim(), elsewhere), claim(), take, take},
		{"take a claim without an owner", claims, "", with(claim(), forget), claim(), take, take},
		{"protect a claim that is cloned", claims, "", claim(),
			with(claim(), finalize("kubernetes.io/pvc-protection", clone)), "", ""},
		{"unprotect it again", claims, "", with(claim(), finalize("kubernetes.io/pvc-protection", clone)), claim(), "", ""},
		{"unprotect a claim", claims, "", claim(), with(claim(), finalize()), fields, fields},
		{"change a claim", claims, "", claim(), with(claim(), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName = "pvc-2"
		}), fields, fields},
		{"label a claim", claims, "", claim(), with(claim(), func(c *corev1.PersistentVolumeClaim) {
			c.Labels = map[string]string{"a": "b"}
		}), fields, fields},
		{"annotate a claim", claims, "", claim(), with(claim(), annotate("a", "b")), fields, fields},
		{"remove an annotation", claims, "", with(claim(), annotate("a", "b")), claim(), fields, fields},
		{"another driver's claim", claims, "", with(claim(), foreign), with(claim(), foreign, forget), claimOf, claimOf},
		{"make a claim its own", claims, "", with(claim(), foreign), claim(), claimOf, claimOf},
		{"status of a claim", claims, "status", claim(), with(claim(), resized), "", ""},
		{"status of another driver's claim", claims, "status", with(claim(), foreign), with(claim(), foreign, resized),
			claimOf, claimOf},
		{"status of a claim without a provisioner", claims, "status",
			with(claim(), func(c *corev1.PersistentVolumeClaim) { c.Annotations = nil }),
			with(claim(), func(c *corev1.PersistentVolumeClaim) { c.Annotations = nil }, resized), "", ""},
		{"phase of a claim", claims, "status", claim(), with(claim(), func(c *corev1.PersistentVolumeClaim) {
			c.Status.Phase = corev1.ClaimLost
		}), bind, bind},
		{"finalizers of a claim, by its status", claims, "status", claim(), with(claim(), finalize()), fields, fields},

		{"protect a snapshot", snapshots, "", snapshot("x", "a"), snapshot("x", "a", source), "", ""},
		{"unprotect a snapshot", snapshots, "", snapshot("x", "a"), snapshot("x"), "snapshot's protection",
			"snapshot's protection"},
		{"change a snapshot", snapshots, "", snapshot("x"), snapshot("y"), "snapshot's protection", "snapshot's protection"},
		{"its snapshot's status", contents, "status", content(driver, "node-a"), content(driver, "node-a"), "", ""},
		{"its snapshot", contents, "", content(driver, "node-a"), content(driver, "node-a"), "", ""},
		{"another node's snapshot", contents, "", content(driver, "node-b"), content(driver, "node-b"), ownOnly, ""},
		{"take over another node's snapshot", contents, "", content(driver, "node-b"), content(driver, "node-a"),
			ownOnly, ""},
		{"another driver's snapshot", contents, "", content(other, "node-a"), content(other, "node-a"), snapshotOf,
			snapshotOf},

		{"publish its capacity", capacities, "", nil, capacity("node-a"), "", ""},
		{"publish another node's capacity", capacities, "", nil, capacity("node-b"), ownOnly, ""},
		{"take over another node's capacity", capacities, "", capacity("node-b"), capacity("node-a"), ownOnly, ""},
		{"delete its capacity", capacities, "", capacity("node-a"), nil, "", ""},
		{"delete another node's capacity", capacities, "", capacity("node-b"), nil, ownOnly, ""},
		{"publish the capacity of no node", capacities, "", nil,
			with(capacity(""), func(c *storagev1.CSIStorageCapacity) { c.NodeTopology = nil }), ownOnly, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for mode, want := range map[string]string{"node": tt.node, "controller": tt.central} {
				objects := rendered(t, mode)
				check := func(account, node, want string) {
					t.Helper()
					r := request{account: "slipstream-" + account, node: node, resource: tt.resource, sub: tt.sub,
						old: tt.old, new: tt.new}
					if got := refusal(t, objects, r); (got == "") != (want == "") || !strings.Contains(got, want) {
						t.Errorf("mode %s, account %s on %q: %q, want %q", mode, account, node, got, want)
					}
				}
				check(mode, "node-a", want)
				check("stranger", "node-a", "")
			}
		})
	}
}

// rendered has everything that the policies are about.
func rendered(t *testing.T, mode string) []object {
	t.Helper()
	return renderText(t, "site: {name: site-a}\nsidecars: {snapshotter: {enabled: true}}\ncontroller: {mode: "+mode+"}\n")
}

// TestTokenWithoutNode: a token of a node's account that was not made for a pod makes, changes and deletes nothing of a
// node.
func TestTokenWithoutNode(t *testing.T) {
	objects := rendered(t, "node")
	for _, r := range []request{
		{resource: volumes, new: volume("csi.slipstream.dev", "")},
		{resource: volumes, old: volume("csi.slipstream.dev", "node-a")},
		{resource: contents, old: content("csi.slipstream.dev", ""), new: content("csi.slipstream.dev", "")},
		{resource: capacities, new: capacity("")},
	} {
		r.account = "slipstream-node"
		if refusal(t, objects, r) == "" {
			t.Errorf("%s: %v is allowed", r.operation(), r.resource.Resource)
		}
	}
}
