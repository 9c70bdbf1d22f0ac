package backup

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

// A pair is made in one pass, with what the application's manifests need and nothing else, and then nothing is written.
func TestPairWaits(t *testing.T) {
	w := newWorld(t, siteA())
	w.pass()
	pv, claim := w.pv("pvc-1"), w.claim("shop", "orders")
	if pv == nil || claim == nil {
		t.Fatal("nothing waits")
	}
	want := corev1.PersistentVolumeSpec{
		Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
		AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		VolumeMode:                    new(corev1.PersistentVolumeFilesystem),
		PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain, StorageClassName: "fast",
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: plugin.Name,
			VolumeHandle: "vol-1", FSType: "ext4"}},
		ClaimRef: &corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: "shop",
			Name: "orders"},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: plugin.TopologyKey, Operator: corev1.NodeSelectorOpIn,
				Values: []string{"b1"}}}}}}},
	}
	if diff := cmp.Diff(want, pv.Spec); diff != "" {
		t.Error(diff)
	}
	wantClaim := corev1.PersistentVolumeClaimSpec{AccessModes: want.AccessModes, VolumeMode: want.VolumeMode,
		VolumeName: "pvc-1", StorageClassName: new("fast"),
		Resources: corev1.VolumeResourceRequirements{Requests: want.Capacity}}
	if diff := cmp.Diff(wantClaim, claim.Spec); diff != "" {
		t.Error(diff)
	}
	if claim.Labels["app"] != "shop" || claim.Labels[v1alpha1.LabelManagedBy] != v1alpha1.ManagedByOperator ||
		len(claim.Finalizers)+len(claim.OwnerReferences) > 0 {
		t.Errorf("%+v", claim.ObjectMeta)
	}
	if event := <-w.events.Events; !strings.Contains(event, "secondary") || !strings.Contains(event,
		"kubectl slipstream failover shop-1 -n shop;") || !strings.Contains(event, "slipctl group promote shop-1") {
		t.Errorf("event %q names neither role nor command", event)
	}
	w.wantReason(v1alpha1.ReasonAllPresent, "")
	w.bind()
	for range 3 {
		if n := w.pass(); n > 0 {
			t.Errorf("%d writes with nothing to do", n)
		}
	}
}

// What the other site says is refused where it could reach what is not its own. Nothing is made then.
func TestRefused(t *testing.T) {
	accept := func(namespaces ...string) func(*v1alpha1.RemoteSite) {
		return func(s *v1alpha1.RemoteSite) { s.Spec.Accept.Namespaces = namespaces }
	}
	all := accept("*", "kube-system", "slipstream-system", "kube-public")
	for _, c := range []struct {
		name   string
		site   func(*v1alpha1.RemoteSite)
		claim  func(*sidecarpb.Claim)
		reason string
		text   string
	}{
		{"not accepted", accept("other"), nil, v1alpha1.ReasonNotAccepted, "spec.accept.namespaces"},
		{"a system namespace", all, func(c *sidecarpb.Claim) { c.Namespace = "kube-system" }, v1alpha1.ReasonNotAccepted,
			"kube-system"},
		{"the operator's namespace", all, func(c *sidecarpb.Claim) { c.Namespace = "slipstream-system" },
			v1alpha1.ReasonNotAccepted, "slipstream-system"},
		{"default by *", all, func(c *sidecarpb.Claim) { c.Namespace = "default" }, v1alpha1.ReasonNotAccepted, "default"},
		{"mapped to a system namespace", func(s *v1alpha1.RemoteSite) {
			all(s)
			s.Spec.Map.Namespaces = []v1alpha1.NameMapping{{Remote: "shop", Local: "kube-public"}}
		}, nil, v1alpha1.ReasonNotAccepted, "kube-public"},
		{"a path as namespace", all, func(c *sidecarpb.Claim) { c.Namespace = "../x" }, v1alpha1.ReasonNotAccepted,
			"no name of a namespace"},
		{"dots in a namespace", all, func(c *sidecarpb.Claim) { c.Namespace = "a.b" }, v1alpha1.ReasonNotAccepted,
			"no name of a namespace"},
		{"a path as claim", all, func(c *sidecarpb.Claim) { c.Name = "a/b" }, v1alpha1.ReasonNotAccepted,
			"no name of a claim"},
		{"a path as volume", all, func(c *sidecarpb.Claim) { c.Volume = "a/b" }, v1alpha1.ReasonNotAccepted,
			"no name of a PersistentVolume"},
		{"no such class", all, func(c *sidecarpb.Claim) { c.StorageClass = "slow" }, v1alpha1.ReasonStorageClassMissing,
			"spec.map.storageClasses"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, siteA(c.site))
			if c.claim != nil {
				c.claim(w.volume().Claim)
			}
			w.pass()
			w.wantReason(c.reason, c.text)
			volumes, claims, namespaces := &corev1.PersistentVolumeList{}, &corev1.PersistentVolumeClaimList{},
				&corev1.NamespaceList{}
			for _, list := range []client.ObjectList{volumes, claims, namespaces} {
				w.must(w.client.List(context.Background(), list))
			}
			if n := len(volumes.Items) + len(claims.Items) + len(namespaces.Items); n > 0 {
				t.Errorf("%d objects were made", n)
			}
		})
	}
}

// Nothing waits where nothing is accepted.
func TestNotWanted(t *testing.T) {
	for name, change := range map[string]func(*world, *v1alpha1.RemoteSite){
		"no accept": func(_ *world, s *v1alpha1.RemoteSite) { s.Spec.Accept = nil },
		"none":      func(_ *world, s *v1alpha1.RemoteSite) { s.Spec.Accept.Claims = v1alpha1.AcceptClaimsNone },
		"no claim":  func(w *world, _ *v1alpha1.RemoteSite) { w.volume().Claim = nil },
		"stranger":  func(w *world, _ *v1alpha1.RemoteSite) { w.group().Peer = "site-c" },
	} {
		site := siteA()
		w := newWorld(t)
		change(w, site)
		w.must(w.client.Create(context.Background(), site))
		w.pass()
		if w.pv("pvc-1") != nil || w.claim("shop", "orders") != nil {
			t.Errorf("%s: something waits", name)
		}
	}
	w := newWorld(t, siteA(func(s *v1alpha1.RemoteSite) { s.Spec.Accept.Claims = v1alpha1.AcceptClaimsReserve }))
	w.pass()
	if w.pv("pvc-1") == nil || w.claim("shop", "orders") != nil {
		t.Error("reserve: want a PersistentVolume and no claim")
	}
}

// Names are translated as the RemoteSite says.
func TestMapped(t *testing.T) {
	w := newWorld(t, siteA(func(s *v1alpha1.RemoteSite) {
		s.Spec.Accept.Namespaces = []string{"shop-copy"}
		s.Spec.Map = v1alpha1.Mapping{Namespaces: []v1alpha1.NameMapping{{Remote: "shop", Local: "shop-copy"}},
			StorageClasses: []v1alpha1.NameMapping{{Remote: "gold", Local: "fast"}}}
	}))
	w.volume().Claim.StorageClass = "gold"
	w.pass()
	claim := w.claim("shop-copy", "orders")
	if claim == nil || *claim.Spec.StorageClassName != "fast" || w.pv("pvc-1").Spec.ClaimRef.Namespace != "shop-copy" {
		t.Fatalf("%v", claim)
	}
}

// Objects of others are in the way and stay as they are.
func TestForeignObjects(t *testing.T) {
	foreignPV := func(name, handle, claim string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: plugin.Name, VolumeHandle: handle}},
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: claim}, StorageClassName: "fast"}}
	}
	foreignClaim := func(volume, class string, labels map[string]string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "orders", Namespace: "shop", Labels: labels},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume, StorageClassName: &class,
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	}
	stolen := map[string]string{v1alpha1.LabelManagedBy: v1alpha1.ManagedByOperator}
	for _, c := range []struct {
		name     string
		object   client.Object
		conflict string // empty: none
	}{
		{"the name of the volume is taken", foreignPV("pvc-1", "vol-9", "orders"), "another volume"},
		{"the volume is there for another claim", foreignPV("by-hand", "vol-1", "other"), "shop/other"},
		{"the volume is there for the claim", foreignPV("by-hand", "vol-1", "orders"), ""},
		{"the claim is bound to another volume", foreignClaim("pvc-9", "fast", nil), "bound to pvc-9"},
		{"the same with a label of ours", foreignClaim("pvc-9", "fast", stolen), "bound to pvc-9"},
		{"the claim has another class", foreignClaim("", "slow", nil), "StorageClass"},
		{"the claim waits for the volume", foreignClaim("", "fast", nil), ""},
		{"the namespace is there", &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop",
			Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, siteA(), c.object)
			before := w.get(c.object)
			w.pass()
			if diff := cmp.Diff(before, w.get(c.object)); diff != "" {
				t.Errorf("it was changed: %s", diff)
			}
			if c.conflict != "" {
				w.wantReason(v1alpha1.ReasonClaimConflict, c.conflict)
				if event := <-w.events.Events; !strings.Contains(event, c.conflict) &&
					!strings.Contains(event, "WaitsForFailover") {
					t.Errorf("event %q", event)
				}
			} else {
				w.wantReason(v1alpha1.ReasonAllPresent, "")
			}
			if n := w.pass(); n > 0 {
				t.Errorf("%d writes while nothing changes", n)
			}
		})
	}
}

func (w *world) get(o client.Object) *unstructured.Unstructured {
	w.t.Helper()
	gvk, err := w.client.GroupVersionKindFor(o)
	w.must(err)
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	w.must(w.client.Get(context.Background(), client.ObjectKeyFromObject(o), u))
	return u
}

// Growth and labels follow while the group is secondary here, and not after a failover.
func TestFollows(t *testing.T) {
	w := newWorld(t, siteA(func(s *v1alpha1.RemoteSite) { s.Spec.Accept.Labels = []string{"team.example.com/*"} }))
	w.volume().Claim.Labels = map[string]string{"app": "shop", "team.example.com/owner": "x", "secret": "y",
		"pod-security.kubernetes.io/enforce": "privileged", v1alpha1.LabelManagedBy: "Helm", "slipstream.dev/replicate": "x"}
	w.pass()
	w.bind()
	labels := func() map[string]string {
		own := w.claim("shop", "orders").Labels
		delete(own, v1alpha1.LabelManagedBy)
		delete(own, v1alpha1.LabelRemoteSite)
		return own
	}
	if diff := cmp.Diff(map[string]string{"app": "shop", "team.example.com/owner": "x"}, labels()); diff != "" {
		t.Error(diff)
	}
	w.volume().SizeBytes, w.volume().Claim.RequestBytes = 2<<30, 2<<30
	w.volume().Claim.Labels = map[string]string{"app": "store"}
	w.pass()
	size := func() (capacity, request string) {
		c := w.pv("pvc-1").Spec.Capacity[corev1.ResourceStorage]
		r := w.claim("shop", "orders").Spec.Resources.Requests[corev1.ResourceStorage]
		return c.String(), r.String()
	}
	if c, r := size(); c != "2Gi" || r != "2Gi" {
		t.Errorf("capacity %s, request %s", c, r)
	}
	if diff := cmp.Diff(map[string]string{"app": "store"}, labels()); diff != "" {
		t.Error(diff)
	}
	if w.pv("pvc-1").Spec.ClaimRef.UID != w.claim("shop", "orders").UID {
		t.Error("the claim is no longer bound")
	}
	w.group().Role = sidecarpb.Role_ROLE_PRIMARY
	w.volume().SizeBytes, w.volume().Claim.RequestBytes = 4<<30, 4<<30
	if n := w.pass(); n > 0 {
		t.Errorf("%d writes after the failover", n)
	}
}

// A claim that is deleted here waits again, with the same volume.
func TestClaimDeletedHere(t *testing.T) {
	w := newWorld(t, siteA())
	w.pass()
	w.bind()
	first := w.claim("shop", "orders")
	w.must(w.client.Delete(context.Background(), first))
	w.pass()
	if uid := w.pv("pvc-1").Spec.ClaimRef.UID; uid != "" {
		t.Errorf("the PersistentVolume still belongs to %s", uid)
	}
	w.bind()
	if again := w.claim("shop", "orders"); again == nil || again.Spec.VolumeName != "pvc-1" {
		t.Fatalf("%v", again)
	}
	if n := w.pass(); n > 0 {
		t.Errorf("%d writes with nothing to do", n)
	}
}

// The pair of a volume that its primary let go is removed, but only for sure.
func TestLeft(t *testing.T) {
	prepare := func(t *testing.T) *world {
		w := newWorld(t, siteA())
		w.pass()
		w.bind()
		w.group().Volumes = nil
		return w
	}
	later := func(w *world) { w.now = w.now.Add(removalPatience) }
	gone := func(w *world) bool { return w.pv("pvc-1") == nil && w.claim("shop", "orders") == nil }
	t.Run("two looks", func(t *testing.T) {
		w := prepare(t)
		w.pass()
		if gone(w) {
			t.Error("removed at the first look")
		}
		later(w)
		w.pass()
		if !gone(w) {
			t.Error("not removed")
		}
	})
	for name, change := range map[string]func(*world){
		"a node is silent":          func(w *world) { w.view.Complete = false },
		"the group is primary":      func(w *world) { w.group().Role = sidecarpb.Role_ROLE_PRIMARY },
		"its images are restored":   func(w *world) { w.group().RollingBack = true },
		"it is restored without it": func(w *world) { w.group().RollingBack, w.group().Volumes = true, another() },
		"the group is gone":         func(w *world) { w.view.Groups = nil },
		"it is back": func(w *world) {
			w.pass()
			w.group().Volumes = shop().Volumes
		},
		"it is in another group": func(w *world) {
			other := shop()
			other.Name = "shop-2"
			w.view.Groups = append(w.view.Groups, Group{Node: "b1", Status: other})
		},
		"the claim was taken over": func(w *world) {
			claim := w.claim("shop", "orders")
			claim.Labels[v1alpha1.LabelManagedBy] = "Helm"
			w.must(w.client.Update(context.Background(), claim))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := prepare(t)
			change(w)
			for range 3 {
				w.pass()
				later(w)
			}
			if w.pv("pvc-1") == nil || w.claim("shop", "orders") == nil {
				t.Error("removed")
			}
		})
	}
}

// another is a volume of no claim.
func another() []*sidecarpb.VolumeStatus { return []*sidecarpb.VolumeStatus{{VolumeId: "vol-2"}} }

// A GitOps tool applies its own manifest of the claim a hundred times, with its own labels and without volumeName.
// Neither side undoes what the other did.
func TestGitOps(t *testing.T) {
	for _, first := range []string{"operator", "tool"} {
		for _, force := range []bool{false, true} {
			t.Run(fmt.Sprint(first, " first, force ", force), func(t *testing.T) {
				w := newWorld(t, siteA())
				sync := func() {
					u := &unstructured.Unstructured{Object: map[string]any{
						"metadata": map[string]any{"labels": map[string]any{"app": "shop", "tier": "db"}},
						"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "storageClassName": "fast",
							"resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}}}}}
					u.SetAPIVersion("v1")
					u.SetKind("PersistentVolumeClaim")
					u.SetNamespace("shop")
					u.SetName("orders")
					options := []client.ApplyOption{client.FieldOwner("argocd")}
					if force {
						options = append(options, client.ForceOwnership)
					}
					w.must(w.client.Apply(context.Background(), client.ApplyConfigurationFromUnstructured(u), options...))
				}
				if first == "tool" {
					sync()
				}
				w.pass()
				w.bind()
				sync()
				w.pass()
				settled := w.claim("shop", "orders").ResourceVersion
				for range 100 {
					sync()
					w.writes = 0 // that was the tool's
					if n := w.pass(); n > 0 {
						t.Fatalf("%d writes by the operator", n)
					}
				}
				claim := w.claim("shop", "orders")
				if claim.Spec.VolumeName != "pvc-1" || claim.Labels["tier"] != "db" {
					t.Errorf("%+v", claim)
				}
				t.Logf("resource version %s, then %s", settled, claim.ResourceVersion)
			})
		}
	}
}

// A label that another manager has set to another value stays.
func TestLabelOfAnotherManager(t *testing.T) {
	w := newWorld(t, siteA())
	w.pass()
	claim := w.claim("shop", "orders")
	claim.Labels["app"] = "theirs"
	w.must(w.client.Update(context.Background(), claim, client.FieldOwner("person")))
	w.volume().Claim.Labels["app.kubernetes.io/name"] = "shop"
	w.volume().SizeBytes, w.volume().Claim.RequestBytes = 2<<30, 2<<30
	w.pass()
	claim = w.claim("shop", "orders")
	request := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	if claim.Labels["app"] != "theirs" || claim.Labels["app.kubernetes.io/name"] != "shop" || request.String() != "2Gi" {
		t.Errorf("%v, %s", claim.Labels, request.String())
	}
	w.wantReason(v1alpha1.ReasonAllPresent, "")
}

// FuzzPair: whatever another site says, nothing is made in a namespace that is not accepted, and no label is taken over
// that Kubernetes or this driver acts on.
func FuzzPair(f *testing.F) {
	f.Add("orders", "shop", "pvc-1", "fast", "app", "shop", int64(1))
	f.Add("a", "kube-system", "b", "", "pod-security.kubernetes.io/enforce", "privileged", int64(-1))
	f.Add("../a", "slipstream-system", "", "\x00", "kubernetes.io/x", "", int64(1<<62))
	f.Fuzz(func(t *testing.T, name, namespace, volume, class, key, value string, request int64) {
		g := shop()
		g.Volumes[0].Claim = &sidecarpb.Claim{Name: name, Namespace: namespace, Volume: volume, StorageClass: class,
			RequestBytes: request, Labels: map[string]string{key: value}}
		for _, accept := range [][]string{{"shop"}, {"*"}, {"*", "kube-system", "slipstream-system"}} {
			site := siteA(func(s *v1alpha1.RemoteSite) {
				s.Spec.Accept.Namespaces, s.Spec.Accept.Labels = accept, []string{"kubernetes.io/*", "slipstream.dev/*", key}
			})
			p, err := pairOf(site, "slipstream-system", "b1", g, g.Volumes[0])
			if p == nil || err != nil {
				continue
			}
			if strings.HasPrefix(p.namespace, "kube-") || p.namespace == "slipstream-system" ||
				strings.ContainsAny(p.namespace+p.claim+p.volume, "/\x00 ") || p.request <= 0 || p.request > p.size {
				t.Fatalf("%+v", p)
			}
			for key := range p.labels {
				if domain, _, _ := strings.Cut(key, "/"); domain != "app.kubernetes.io" &&
					(strings.HasSuffix(domain, "kubernetes.io") && strings.Contains(key, "/") &&
						(domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io")) ||
						domain == "slipstream.dev" && strings.Contains(key, "/")) {
					t.Fatalf("label %q", key)
				}
			}
		}
	})
}
