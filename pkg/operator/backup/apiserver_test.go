package backup

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/slipstream-storage/slipstream/internal/testkube"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const patience = testkube.Patience

// engine is what the nodes say, as a test changes it.
type engine struct {
	mu   sync.Mutex
	view View
}

func (e *engine) change(f func(*sidecarpb.GroupStatus)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := View{Complete: true}
	for _, g := range e.view.Groups {
		status := proto.CloneOf(g.Status)
		f(status)
		next.Groups = append(next.Groups, Group{Node: g.Node, Status: status})
	}
	e.view = next
}

func (e *engine) look() (View, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.view, true
}

// counted counts the requests that change something, and those of an event apart.
type counted struct {
	http.RoundTripper
	writes *atomic.Int64
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet {
		c.writes.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

func eventually(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// TestOnAnAPIServer runs passes on a real API server with the controllers that bind claims: the pair is bound in time,
// a tool that applies its manifest a hundred times changes nothing, growth follows, and a claim that is deleted waits
// again.
func TestOnAnAPIServer(t *testing.T) {
	config := testkube.Start(t, "../../..", "persistentvolume-binder-controller",
		"persistentvolumeclaim-protection-controller", "persistentvolume-protection-controller", "namespace-controller")
	scheme := newScheme(t)
	api, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(api.Create(ctx, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"},
		Provisioner: "csi.slipstream.dev", AllowVolumeExpansion: new(true),
		VolumeBindingMode: new(storagev1.VolumeBindingWaitForFirstConsumer)}))
	site := siteA()
	site.UID = ""
	must(api.Create(ctx, site))

	e := &engine{view: View{Complete: true, Groups: []Group{{Node: "b1", Status: shop()}}}}
	var writes atomic.Int64
	own := rest.CopyConfig(config)
	own.Wrap(func(next http.RoundTripper) http.RoundTripper { return counted{next, &writes} })
	mgr, err := ctrl.NewManager(own, ctrl.Options{Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"}})
	must(err)
	must(mgr.Add(&Runner{
		Teller: &Teller{Client: mgr.GetClient(), Replicator: func(string) sidecarpb.SidecarClient { return nil }},
		Waiter: &Waiter{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Events: mgr.GetEventRecorder("test"),
			Namespace: "slipstream-system", Now: time.Now}, View: e.look}))
	ended := make(chan error, 1)
	start := time.Now()
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	claim := func(name string) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{}
		if err := api.Get(ctx, client.ObjectKey{Namespace: "shop", Name: name}, c); err != nil {
			return &corev1.PersistentVolumeClaim{}
		}
		return c
	}
	bound := func(name, volume string) func() bool {
		return func() bool {
			c := claim(name)
			return c.Status.Phase == corev1.ClaimBound && c.Spec.VolumeName == volume && c.DeletionTimestamp.IsZero()
		}
	}
	eventually(t, "the claim is bound", bound("orders", "pvc-1"))
	t.Logf("the first pair was bound %v after the start of the process", time.Since(start))

	// A second member arrives.
	e.change(func(g *sidecarpb.GroupStatus) {
		v := proto.CloneOf(g.Volumes[0])
		v.VolumeId, v.Claim.Name, v.Claim.Volume = "vol-2", "stock", "pvc-2"
		g.Volumes = append(g.Volumes, v)
	})
	if took := eventually(t, "the second claim is bound", bound("stock", "pvc-2")); took > 5*time.Second {
		t.Errorf("bound after %v", took)
	} else {
		t.Logf("a pair was bound %v after the engine told of it", took)
	}

	// A tool applies its manifest without volumeName.
	sync := func(name string) {
		t.Helper()
		u := &unstructured.Unstructured{Object: map[string]any{
			"metadata": map[string]any{"labels": map[string]any{"app": "shop", "tier": "db"}},
			"spec": map[string]any{"accessModes": []any{"ReadWriteOnce"}, "storageClassName": "fast",
				"resources": map[string]any{"requests": map[string]any{"storage": "1Gi"}}}}}
		u.SetAPIVersion("v1")
		u.SetKind("PersistentVolumeClaim")
		u.SetNamespace("shop")
		u.SetName(name)
		must(api.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.FieldOwner("argocd"), client.ForceOwnership))
	}
	sync("orders")
	time.Sleep(2 * interval)
	version, before := claim("orders").ResourceVersion, writes.Load()
	for range 100 {
		sync("orders")
	}
	time.Sleep(2 * interval)
	if n := writes.Load() - before; n > 0 || claim("orders").ResourceVersion != version {
		t.Errorf("%d writes by the operator in 100 syncs, version %s, was %s", n, claim("orders").ResourceVersion, version)
	}
	if !bound("orders", "pvc-1")() {
		t.Error("the claim is not bound any more")
	}
	// The tool is first: its claim binds to the volume that waits.
	sync("clients")
	e.change(func(g *sidecarpb.GroupStatus) {
		v := proto.CloneOf(g.Volumes[0])
		v.VolumeId, v.Claim.Name, v.Claim.Volume = "vol-3", "clients", "pvc-3"
		g.Volumes = append(g.Volumes, v)
	})
	eventually(t, "the tool's claim is bound", bound("clients", "pvc-3"))
	before = writes.Load()
	sync("clients")
	time.Sleep(2 * interval)
	if n := writes.Load() - before; n > 0 {
		t.Errorf("%d writes by the operator for the tool's claim", n)
	}

	// Growth.
	e.change(func(g *sidecarpb.GroupStatus) {
		for _, v := range g.Volumes {
			v.SizeBytes, v.Claim.RequestBytes = 2<<30, 2<<30
		}
	})
	eventually(t, "the claim grows", func() bool {
		pv := &corev1.PersistentVolume{}
		must(api.Get(ctx, client.ObjectKey{Name: "pvc-2"}, pv))
		return claim("stock").Spec.Resources.Requests.Storage().Cmp(resource.MustParse("2Gi")) == 0 &&
			pv.Spec.Capacity.Storage().Cmp(resource.MustParse("2Gi")) == 0
	})

	// Deleted here, it waits again.
	uid := claim("stock").UID
	must(api.Delete(ctx, claim("stock")))
	eventually(t, "the claim waits again", func() bool { return claim("stock").UID != uid && bound("stock", "pvc-2")() })
	time.Sleep(2 * interval)
	before = writes.Load()
	time.Sleep(3 * interval)
	if n := writes.Load() - before; n > 0 {
		t.Errorf("%d writes with nothing to do", n)
	}
}
