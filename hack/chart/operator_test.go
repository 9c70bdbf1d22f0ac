package main

import (
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestOperator: the operator reaches the nodes as the controller does, and only with them; what it may write are
// objects of its own kinds, and what waits for copies.
func TestOperator(t *testing.T) {
	const site = "site: {name: site-a}\n"
	for _, tt := range []struct {
		name, values   string
		operator, crds bool
	}{
		{"default", "", true, true},
		{"crds by other means", "operator: {crds: false}\n", true, false},
		{"off", "operator: {enabled: false}\n", false, false},
		{"without a port of the nodes", "controller: {mode: node}\n", false, false},
		{"without replicators", "replication: {enabled: false}\n", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := renderText(t, site+tt.values)
			crds := 0
			for _, o := range objects {
				if o.kind == "CustomResourceDefinition" {
					crds++
				} else if strings.Contains(o.name, "operator") && !tt.operator {
					t.Errorf("%s %s is there", o.kind, o.name)
				}
			}
			if (crds == 4) != tt.crds {
				t.Errorf("%d CustomResourceDefinitions", crds)
			}
			if !tt.operator {
				return
			}
			pod := find[appsv1.Deployment](objects, "slipstream-operator").Spec.Template
			w := workload{id: "operator", pod: pod}
			c := w.container("operator")
			if secret := secretAt(w, c, "/etc/slipstream/controller-tls/tls.crt"); secret != "slipstream-controller-made-tls" {
				t.Errorf("certificate of Secret %q", secret)
			}
			if service, _ := argument(c, "node-service"); service != "slipstream-system/slipstream-nodes" {
				t.Errorf("node service %q", service)
			}
			policy := find[networkingv1.NetworkPolicy](objects, "slipstream-node")
			if from := callers(policy, "csi"); !slices.Equal(from, []string{"controller", "operator"}) {
				t.Errorf("the port of the nodes is open to %v", from)
			}
			for _, rule := range find[rbacv1.ClusterRole](objects, "slipstream-operator-objects").Rules {
				for _, verb := range rule.Verbs {
					own := slices.Equal(rule.APIGroups, []string{"slipstream.dev"}) || slices.Equal(rule.Resources, []string{"events"})
					limited := slices.Equal(rule.APIGroups, []string{""}) && // TestOperatorAccount
						!slices.Contains(rule.Resources, "pods") && slices.Contains([]string{"create", "patch", "delete"}, verb) ||
						(slices.Contains(rule.Resources, "jobs") || slices.Contains(rule.Resources, "networkpolicies")) &&
							verb == "create"
					if !own && !limited && !slices.Contains([]string{"get", "list", "watch"}, verb) {
						t.Errorf("may %s %v", verb, rule.Resources)
					}
				}
			}
			leader := find[rbacv1.Role](objects, "slipstream-operator-leader")
			if !slices.Equal(leader.Rules[0].ResourceNames, []string{"slipstream-operator"}) {
				t.Errorf("leases %v", leader.Rules[0].ResourceNames)
			}
		})
	}
}

// TestOperatorAccount: the account of the operator writes namespaces, volumes and claims of its own only.
func TestOperatorAccount(t *testing.T) {
	namespaces := corev1.SchemeGroupVersion.WithResource("namespaces")
	const driver = "csi.slipstream.dev"
	own := map[string]string{"app.kubernetes.io/managed-by": "slipstream-operator"}
	waiting := func(changes ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
		return with(volume(driver, "node-a"), append([]func(*corev1.PersistentVolume){func(v *corev1.PersistentVolume) {
			v.Labels, v.Spec.PersistentVolumeReclaimPolicy = own, corev1.PersistentVolumeReclaimRetain
		}}, changes...)...)
	}
	claimOf := func(labels map[string]string) *corev1.PersistentVolumeClaim {
		return with(claim(), func(c *corev1.PersistentVolumeClaim) { c.Labels = labels })
	}
	namespace := func(name string, labels map[string]string) *corev1.Namespace {
		return &corev1.Namespace{TypeMeta: metav1.TypeMeta{Kind: "Namespace", APIVersion: "v1"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	}
	ofTest := maps.Clone(own)
	ofTest["slipstream.dev/test-of"] = "shop"
	jobs := batchv1.SchemeGroupVersion.WithResource("jobs")
	job := func(namespace string, labels map[string]string) *batchv1.Job {
		return &batchv1.Job{TypeMeta: metav1.TypeMeta{Kind: "Job", APIVersion: "batch/v1"},
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "check-orders", Labels: labels}}
	}
	actions := schema.GroupVersionResource{Group: "slipstream.dev", Version: "v1alpha1", Resource: "groupactions"}
	action := func(finalizers ...string) *unstructured.Unstructured {
		u := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"group": "shop",
			"force": slices.Contains(finalizers, "spec")}}}
		u.SetGroupVersionKind(schema.GroupVersionKind{Group: "slipstream.dev", Version: "v1alpha1", Kind: "GroupAction"})
		u.SetNamespace("shop")
		u.SetFinalizers(slices.DeleteFunc(finalizers, func(f string) bool { return f == "spec" }))
		return u
	}
	const label, ofDriver = "with the label managed-by", "volumes of " + driver
	const retain, makes = "Retain", "makes namespaces"
	for _, tt := range []struct {
		name     string
		resource schema.GroupVersionResource
		old, new runtime.Object
		want     string
	}{
		{"make a volume", volumes, nil, waiting(), ""},
		{"change its volume", volumes, waiting(), waiting(), ""},
		{"delete its volume", volumes, waiting(), nil, ""},
		{"make a volume without the label", volumes, nil,
			waiting(func(v *corev1.PersistentVolume) { v.Labels = nil }), label},
		{"take a volume over", volumes, volume(driver, "node-a"), waiting(), label},
		{"delete a provisioned volume", volumes, volume(driver, "node-a"), nil, label},
		{"make a volume of another driver", volumes, nil, waiting(func(v *corev1.PersistentVolume) {
			v.Spec.CSI.Driver = "csi.example.com"
		}), ofDriver},
		{"make a volume of the host's files", volumes, nil, waiting(func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeSource = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}
		}), ofDriver},
		{"make a volume whose copy goes with the claim", volumes, nil, waiting(func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		}), retain},
		{"make a claim", claims, nil, claimOf(own), ""},
		{"change its claim", claims, claimOf(own), claimOf(own), ""},
		{"delete its claim", claims, claimOf(own), nil, ""},
		{"make a claim without the label", claims, nil, claimOf(nil), label},
		{"take a claim over", claims, claimOf(map[string]string{"app": "shop"}), claimOf(own), label},
		{"delete a claim", claims, claimOf(nil), nil, label},
		{"make a namespace", namespaces, nil, namespace("shop", own), ""},
		{"make a namespace without the label", namespaces, nil, namespace("shop", nil), label},
		{"make a system namespace", namespaces, nil, namespace("kube-x", own), makes},
		{"change a namespace", namespaces, namespace("shop", own), namespace("shop", own), makes},
		{"delete a namespace", namespaces, namespace("shop", nil), nil, label},
		{"delete a namespace of a copy", namespaces, namespace("shop", own), nil, makes},
		{"delete the namespace of a test", namespaces, namespace("shop-test", ofTest), nil, ""},
		{"make a job", jobs, nil, job("shop", own), "namespaces of test failovers only"},
		{"make a job of a test", jobs, nil, job("shop-test", own), ""},
		{"make a job without the label", jobs, nil, job("shop-test", nil), label},
		{"take its finalizer", actions, action("slipstream.dev/test-failover"), action(), ""},
		{"take a finalizer", actions, action("example.com/mine"), action(), "its finalizer"},
		{"change an action", actions, action(), action("slipstream.dev/test-failover", "spec"), "its finalizer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := rendered(t, "controller")
			inNamespace := namespace("shop", nil)
			if j, ok := tt.new.(*batchv1.Job); ok && j.Namespace == "shop-test" {
				inNamespace = namespace("shop-test", ofTest)
			}
			check := func(account, want string) {
				t.Helper()
				got := refusal(t, objects, request{account: account, resource: tt.resource, old: tt.old, new: tt.new,
					namespace: inNamespace})
				if (got == "") != (want == "") || !strings.Contains(got, want) {
					t.Errorf("account %s: %q, want %q", account, got, want)
				}
			}
			check("slipstream-operator", tt.want)
			check("stranger", "")
		})
	}
}

// TestCSIAddons: the sidecar reaches the driver, and only the controller of csi-addons reaches the sidecar.
func TestCSIAddons(t *testing.T) {
	const site = "site: {name: site-a}\n"
	off := renderText(t, site)
	for _, o := range off {
		if strings.Contains(o.name, "csi-addons") {
			t.Errorf("%s %s is there by default", o.kind, o.name)
		}
	}
	objects := renderText(t, site+"sidecars: {csiAddons: {enabled: true}}\n")
	w := workload{pod: find[appsv1.Deployment](objects, "slipstream-controller").Spec.Template}
	driver, sidecar := w.container("csi-driver"), w.container("csi-addons")
	if sidecar == nil {
		t.Fatal("no sidecar")
	}
	serves, _ := argument(driver, "csi-addons-endpoint")
	if calls, _ := argument(sidecar, "csi-addons-address"); calls != serves || calls == "" {
		t.Errorf("the driver serves %q, the sidecar calls %q", serves, calls)
	}
	var from []string
	for _, rule := range find[networkingv1.NetworkPolicy](objects, "slipstream-controller").Spec.Ingress {
		for _, port := range rule.Ports {
			for _, peer := range rule.From {
				if port.Port.String() == "csi-addons" && peer.NamespaceSelector != nil {
					from = append(from, peer.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"])
				}
			}
		}
	}
	if !slices.Equal(from, []string{"csi-addons-system"}) {
		t.Errorf("the port of the sidecar is open to %v", from)
	}
	role := find[rbacv1.Role](objects, "slipstream-csi-addons")
	for _, rule := range role.Rules {
		if slices.Contains(rule.Resources, "secrets") &&
			!slices.Equal(rule.ResourceNames, []string{"slipstream-csi-addons"}) {
			t.Errorf("may read the Secrets %v", rule.ResourceNames)
		}
	}
	if secret := find[corev1.Secret](objects, "slipstream-csi-addons"); len(secret.Data)+len(secret.StringData) > 0 {
		t.Error("the Secret that the driver does not need has content")
	}
}
