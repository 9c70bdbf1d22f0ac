package backup

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
)

func TestMain(m *testing.M) { testenv.QuietMain(m) }

func newScheme(t testing.TB) *runtime.Scheme {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return scheme
}

// world is a cluster in memory with the operator's part.
type world struct {
	t      *testing.T
	client client.Client
	waiter *Waiter
	events *events.FakeRecorder
	now    time.Time
	writes int
	view   View
}

func newWorld(t *testing.T, objects ...client.Object) *world {
	w := &world{t: t, events: events.NewFakeRecorder(1000), now: time.Unix(1_800_000_000, 0)}
	objects = append(objects, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "fast"}})
	w.client = fake.NewClientBuilder().WithScheme(newScheme(t)).WithObjects(objects...).
		WithStatusSubresource(&v1alpha1.RemoteSite{}, &corev1.PersistentVolumeClaim{}).
		WithInterceptorFuncs(interceptor.Funcs{
			Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration,
				opts ...client.ApplyOption) error {
				w.writes++
				return c.Apply(ctx, o, opts...)
			},
			SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration,
				opts ...client.SubResourceApplyOption) error {
				w.writes++
				return c.SubResource(sub).Apply(ctx, o, opts...)
			},
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch,
				opts ...client.PatchOption) error {
				w.writes++
				return c.Patch(ctx, o, p, opts...)
			},
			Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
				w.writes++
				return c.Delete(ctx, o, opts...)
			},
		}).Build()
	w.waiter = &Waiter{Client: w.client, Live: w.client, Events: w.events, Namespace: "slipstream-system",
		Now: func() time.Time { return w.now }}
	w.view = View{Complete: true, Groups: []Group{{Node: "b1", Status: shop()}}}
	return w
}

// siteA accepts claims in the namespace shop.
func siteA(change ...func(*v1alpha1.RemoteSite)) *v1alpha1.RemoteSite {
	site := &v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: "site-a", UID: "a"},
		Spec: v1alpha1.RemoteSiteSpec{Accept: &v1alpha1.Accept{Namespaces: []string{"shop"},
			Claims: v1alpha1.AcceptClaimsBound}}}
	for _, c := range change {
		c(site)
	}
	return site
}

// shop is a secondary group of site-a with one volume.
func shop() *sidecarpb.GroupStatus {
	return &sidecarpb.GroupStatus{Name: "shop-1", GroupId: "g", Role: sidecarpb.Role_ROLE_SECONDARY, Peer: "site-a",
		Volumes: []*sidecarpb.VolumeStatus{{VolumeId: "vol-1", SizeBytes: 1 << 30, FsType: "ext4",
			Claim: &sidecarpb.Claim{Name: "orders", Namespace: "shop", Volume: "pvc-1", StorageClass: "fast",
				AccessModes: []string{"ReadWriteOnce"}, RequestBytes: 1 << 30, Labels: map[string]string{"app": "shop"}}}}}
}

func (w *world) group() *sidecarpb.GroupStatus   { return w.view.Groups[0].Status }
func (w *world) volume() *sidecarpb.VolumeStatus { return w.group().GetVolumes()[0] }

// pass runs passes until nothing is written any more, and returns how many writes there were.
func (w *world) pass() (writes int) {
	w.t.Helper()
	for range 10 {
		before := w.writes
		if err := w.waiter.Pass(context.Background(), w.view); err != nil {
			w.t.Fatal(err)
		}
		if w.writes == before {
			return writes
		}
		writes += w.writes - before
	}
	w.t.Fatalf("the passes never end: %d writes", writes)
	return 0
}

// bind does what the controller of Kubernetes does with pairs.
func (w *world) bind() {
	w.t.Helper()
	ctx := context.Background()
	volumes := &corev1.PersistentVolumeList{}
	w.must(w.client.List(ctx, volumes))
	for i := range volumes.Items {
		pv := &volumes.Items[i]
		claim := &corev1.PersistentVolumeClaim{}
		ref := pv.Spec.ClaimRef
		if ref == nil || w.client.Get(ctx, client.ObjectKey{Namespace: ref.Namespace, Name: ref.Name}, claim) != nil {
			continue
		}
		if ref.UID != "" && ref.UID != claim.UID || claim.Spec.VolumeName != "" && claim.Spec.VolumeName != pv.Name {
			continue
		}
		claim.Spec.VolumeName = pv.Name
		w.must(w.client.Update(ctx, claim))
		ref.UID, ref.ResourceVersion = claim.UID, claim.ResourceVersion
		w.must(w.client.Update(ctx, pv))
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pv returns a PersistentVolume, nil if there is none.
func (w *world) pv(name string) *corev1.PersistentVolume {
	w.t.Helper()
	pv := &corev1.PersistentVolume{}
	err := w.client.Get(context.Background(), client.ObjectKey{Name: name}, pv)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return pv
}

// claim returns a claim, nil if there is none.
func (w *world) claim(namespace, name string) *corev1.PersistentVolumeClaim {
	w.t.Helper()
	claim := &corev1.PersistentVolumeClaim{}
	err := w.client.Get(context.Background(), client.ObjectKey{Namespace: namespace, Name: name}, claim)
	if apierrors.IsNotFound(err) {
		return nil
	}
	w.must(err)
	return claim
}

// wantReason checks the condition of site-a. It must contain text.
func (w *world) wantReason(reason, text string) {
	w.t.Helper()
	site := &v1alpha1.RemoteSite{}
	w.must(w.client.Get(context.Background(), client.ObjectKey{Name: "site-a"}, site))
	c := meta.FindStatusCondition(site.Status.Conditions, v1alpha1.ConditionClaimsPresent)
	if c == nil || c.Reason != reason || !strings.Contains(c.Message, text) {
		w.t.Errorf("condition %+v, want reason %s and %q", c, reason, text)
	}
}

// fakeReplicator takes what is told of claims.
type fakeReplicator struct {
	sidecarpb.SidecarClient // nil: other calls are a mistake
	group                   *sidecarpb.GroupStatus
	calls                   int
	fail                    error
}

func (f *fakeReplicator) ModifyVolume(_ context.Context, r *sidecarpb.ModifyVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.ModifyVolumeResponse, error) {
	f.calls++
	if f.fail != nil {
		return nil, f.fail
	}
	for _, v := range f.group.GetVolumes() {
		if v.GetVolumeId() == r.GetVolumeId() {
			v.Claim = proto.CloneOf(r.GetClaim())
		}
	}
	return &sidecarpb.ModifyVolumeResponse{}, nil
}
